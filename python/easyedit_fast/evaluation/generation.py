"""Continuations of prompts as texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from easyedit_fast.data import RequestTokenizer
from easyedit_fast.evaluation.decoding import Decoder, Passage
from easyedit_fast.evaluation.isolation import Updates
from easyedit_fast.models.generation import end_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SAMPLED_FROM = 5  # most probable tokens, as in ROME's and EasyEdit's generate_fast


def continue_greedily(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    new_tokens: Sequence[int],
    *,
    updates: Sequence[Updates] | None = None,
    batch_size: int = 64,
) -> list[str]:
    """Continues each prompt with the most probable tokens, whatever the model's own settings.

    A row's text depends on the row alone, not on the rows that share its batch.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        prompts: The n prompts.
        new_tokens: Tokens at most, for each prompt; the text ends earlier at an end-of-sequence.
        updates: One edit a prompt, or None.
        batch_size: Prompts that run together.

    Returns:
        The n continuations, without the prompts and without special tokens.

    Raises:
        ModelError: The model keeps more of the past than keys and values.
    """
    ends = frozenset(end_ids(model, tokenizer))
    decoder = Decoder(model, ends, batch_size)
    encoded = RequestTokenizer.from_transformers(tokenizer).encode_prompts(prompts)
    passages = [
        Passage(tokens, len(tokens), new) for tokens, new in zip(encoded, new_tokens, strict=True)
    ]
    return [
        text_of(tokenizer, outcome.continuation, ends) for outcome in decoder.run(passages, updates)
    ]


def text_of(
    tokenizer: PreTrainedTokenizerBase, tokens: list[int], ends: frozenset[int] = frozenset()
) -> str:
    """Tokens as text, without special tokens and without a last token of `ends`."""
    kept = tokens[:-1] if tokens and tokens[-1] in ends else tokens
    return str(tokenizer.decode(kept, skip_special_tokens=True))


class TopFive:
    """Draws one of the five most probable tokens, as ROME's fluency is measured.

    All rows share their random numbers, one for each place, so that a row's text depends on the
    row alone, and texts before and after an edit differ by the edit alone.
    """

    def __init__(self, places: int, seed: int = 0) -> None:
        """Draws the random numbers of `places` places."""
        generator = torch.Generator().manual_seed(seed)
        self._numbers = torch.rand(places, generator=generator)

    def __call__(self, logits: Tensor, places: Tensor) -> Tensor:
        """See `Choice`."""
        best = logits.float().topk(_SAMPLED_FROM, dim=-1)
        bounds = best.values.softmax(dim=-1).cumsum(dim=-1)
        drawn = self._numbers.to(logits.device)[places, None]
        pick = (bounds < drawn).sum(dim=-1, keepdim=True).clamp(max=_SAMPLED_FROM - 1)
        return best.indices.gather(-1, pick).squeeze(-1)
