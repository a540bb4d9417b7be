"""SERAC's model where another model with another vocabulary is the counterfactual one.

Its tokens are not the base model's, so no logits of it can be; whole answers are switched. The
small model reads the edit and the query as text, and writes its answer; this is told in the base
model's tokens by the base model's loop, so that streamers, and what stops it, see tokens as ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from easyedit_fast.data.contexts import with_context
from easyedit_fast.errors import ModelError
from easyedit_fast.models.generation import generation_settings
from easyedit_fast.models.limits import context_length
from easyedit_fast.serac.arguments import setting
from easyedit_fast.serac.contexts import Contexts, prompts_of
from easyedit_fast.serac.model import SeracModel
from easyedit_fast.serac.switched import leading

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NEW_TOKENS = 20
"""What transformers generates where nothing says how much."""

_SHARED = (
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "num_beams",
    "num_return_sequences",
    "length_penalty",
    "early_stopping",
    "repetition_penalty",
    "no_repeat_ngram_size",
)
"""Settings of ``generate`` that do not speak of tokens, so that they hold for both models."""


class WholeAnswersModel(SeracModel):
    """As `SeracModel`; a prompt of an edit has the answer of a model with another vocabulary.

    Attributes:
        small: The small model, which holds the adapter.
    """

    small: Any

    def __init__(
        self,
        base: Any,
        tokenizer: PreTrainedTokenizerBase,
        *parts: Any,
        **options: Any,
    ) -> None:
        """As `SeracModel`; the adapter's model is the small one."""
        super().__init__(base, tokenizer, *parts, **options)
        self.small = self.adapter.model
        self._tokenizer = tokenizer

    def asked(self, prompt: Sequence[int], context: Sequence[int]) -> list[int]:
        """A prompt's query after its edit, in the small model's tokens.

        Args:
            prompt: The prompt, in the base model's tokens.
            context: The edit, in the small model's.
        """
        text = self._reader.read(prompt).text
        (query,) = self.adapter.encode_prompts([text])
        return with_context(query, context, self.adapter.tokenizer.bos_token_id)

    def _answered(self, contexts: Contexts, given: dict[str, Any], soft: bool) -> NoReturn:
        self._continued(contexts, given)

    def _continued(self, contexts: Contexts, given: dict[str, Any]) -> NoReturn:
        raise ModelError(
            f"row {contexts.routed.index(True)} is in an edit's scope, and what answers it has "
            "another vocabulary, so that there are no logits of it; call generate, or take a small "
            "model with the base model's tokenizer, or small_name: null"
        )

    def _generated(
        self,
        contexts: Contexts,
        ids: Tensor,
        config: GenerationConfig | None,
        given: dict[str, Any],
    ) -> Any:
        if not any(contexts.routed):
            return self.base.generate(ids, config, **given)
        settings = self._settings(ids.shape[1], config, given)
        prompts = prompts_of(ids, given["attention_mask"])
        rows = [row for row, routed in enumerate(contexts.routed) if routed]
        asked = [self.asked(prompts[row], contexts.rows[row].tokens) for row in rows]
        texts = self._texts(asked, settings)
        answers = [
            [self._told(prompts[row], text) for text in own]
            for row, own in zip(rows, texts, strict=True)
        ]
        wanted: list[list[list[int]]] = [[] for _ in prompts]
        for row, own in zip(rows, answers, strict=True):
            wanted[row] = own
        told = _Told(wanted, self._end(config, given), ids.shape[1])
        given["logits_processor"] = LogitsProcessorList(
            [*(given.get("logits_processor") or ()), told]
        )
        return leading(self.base, contexts, _NoPasses(self.base)).generate(ids, config, **given)

    def _settings(
        self, columns: int, config: GenerationConfig | None, given: dict[str, Any]
    ) -> dict[str, Any]:
        """How the small model generates."""
        configs = [config, self.base.generation_config]
        settings = {name: setting(name, given, configs) for name in _SHARED}
        settings = {name: value for name, value in settings.items() if value is not None}
        if settings.get("num_beams", 1) > 1 and settings.get("num_return_sequences", 1) > 1:
            raise ModelError(
                "of a prompt in an edit's scope the best beam alone is told where the small model "
                "has another vocabulary; leave num_return_sequences or num_beams out"
            )
        new = setting("max_new_tokens", given, configs)
        if new is None:
            length = setting("max_length", given, configs)
            new = (
                _NEW_TOKENS if length in (None, GenerationConfig().max_length) else length - columns
            )
        return {**settings, "max_new_tokens": max(1, new)}

    def _end(self, config: GenerationConfig | None, given: dict[str, Any]) -> int:
        """The base model's token that follows an answer."""
        ends = setting("eos_token_id", given, [config, self.base.generation_config])
        if isinstance(ends, list):
            ends = ends[0]
        own = (ends, self._tokenizer.eos_token_id, self._tokenizer.pad_token_id, 0)
        return int(next(end for end in own if end is not None))

    def _texts(self, asked: Sequence[list[int]], settings: dict[str, Any]) -> list[list[str]]:
        """What the small model answers to each row of its tokens, so many times as is wanted.

        Raises:
            ModelError: A row is too long.
        """
        tokenizer, device = self.adapter.tokenizer, self.small.device
        longest, limit = max(map(len, asked)), context_length(self.small)
        if limit is not None:
            if longest >= limit:
                raise ModelError(
                    f"a prompt with its edit takes {longest} tokens, and the small model reads "
                    f"{limit} at most, new ones included; shorten the prompt"
                )
            settings = {
                **settings,
                "max_new_tokens": min(settings["max_new_tokens"], limit - longest),
            }
        pads = [longest - len(row) for row in asked]
        ids = torch.tensor([[0] * gap + row for gap, row in zip(pads, asked, strict=True)])
        mask = (torch.arange(longest) >= torch.tensor(pads)[:, None]).long()
        with self.adapter.on(), generation_settings(self.small, tokenizer, **settings):
            found = self.small.generate(ids.to(device), attention_mask=mask.to(device))
        times = len(found) // len(asked)
        texts = [
            _continuation(tokenizer, asked[row // times], found[row, longest:].tolist())
            for row in range(len(found))
        ]
        return [texts[first : first + times] for first in range(0, len(texts), times)]

    def _told(self, prompt: Sequence[int], answer: str) -> list[int]:
        """An answer in the base model's tokens, as they follow a prompt's, if they do."""

        def tokens(text: str) -> list[int]:
            ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            return ids

        before = _text(self._tokenizer, prompt, skip_special_tokens=False)
        first, whole = tokens(before), tokens(before + answer)
        return whole[len(first) :] if whole[: len(first)] == first else tokens(answer)


class _NoPasses:
    """Routed rows need no pass: what they say is known; see `switched.RoutedPasses`."""

    def __init__(self, base: Any) -> None:
        self._width, self._dtype = int(base.config.get_text_config().vocab_size), base.dtype

    def __call__(self, given: dict[str, Any]) -> Tensor:
        ids = given["input_ids"]
        return torch.zeros(len(ids), 1, self._width, dtype=self._dtype, device=ids.device)

    def reorder(self, rows: Tensor) -> None:
        """Nothing is kept."""


class _Told(LogitsProcessor):
    """Leaves one token to choose, in the rows whose answer is known; it comes last."""

    def __init__(self, answers: Sequence[Sequence[Sequence[int]]], end: int, columns: int) -> None:
        """Takes the answers of each prompt, none where it is not routed."""
        self._answers, self._end, self._columns = answers, end, columns

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores ``[rows, vocabulary]`` of the next tokens."""
        step = input_ids.shape[1] - self._columns
        times = len(scores) // len(self._answers)
        for row in range(len(scores)):
            own = self._answers[row // times]
            if own:
                answer = own[row % times % len(own)]  # beams tell the same one
                scores[row] = -torch.inf
                scores[row, answer[step] if step < len(answer) else self._end] = 0
        return scores


def _continuation(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], new: Sequence[int]
) -> str:
    """The text of new tokens, with the space that some tokenizers leave out at a start."""
    before, whole = (_text(tokenizer, own) for own in (prompt, [*prompt, *new]))
    text = whole[len(before) :] if whole.startswith(before) else _text(tokenizer, new)
    return text.rstrip("\ufffd")  # a character that was not whole yet


def _text(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], *, skip_special_tokens: bool = True
) -> str:
    return str(
        tokenizer.decode(
            list(tokens),
            skip_special_tokens=skip_special_tokens,
            clean_up_tokenization_spaces=False,
        )
    )
