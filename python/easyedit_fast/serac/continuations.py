"""What a model says after a target: the end of its last word, and the text that follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from easyedit_fast.evaluation.decoding import Decoder, Passage
from easyedit_fast.models.generation import end_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Continuations:
    """Continues texts one by one with the most probable tokens, so that it does not matter when.

    Attributes:
        ends: The tokens that end a text.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Takes the model and its tokenizer."""
        self.ends = frozenset(end_ids(model, tokenizer))
        self._model, self._tokenizer = model, tokenizer
        self._word_ends: Tensor | None = None

    def word_end(self, tokens: Sequence[int]) -> int:
        """The token after a text, among those that do not go on with its last word.

        Raises:
            ModelError: The model keeps more of the past than keys and values.
        """
        decoder = Decoder(self._model, choose=self._after_a_word)
        (outcome,) = decoder.run([Passage(tokens, len(tokens), 1)])
        (found,) = outcome.continuation
        return found

    def after(self, tokens: Sequence[int], count: int) -> list[int]:
        """So many tokens after a text; fewer where it ends, the token of its end included.

        Raises:
            ModelError: The model keeps more of the past than keys and values.
        """
        (outcome,) = Decoder(self._model, self.ends).run([Passage(tokens, len(tokens), count)])
        return outcome.continuation

    def _after_a_word(self, logits: Tensor, _: Tensor) -> Tensor:
        if self._word_ends is None:
            ends = ~going_on(self._tokenizer)[: logits.shape[-1]]
            self._word_ends = ends.nonzero()[:, 0].to(logits.device)
        return self._word_ends[logits[:, self._word_ends].argmax(dim=-1)]


def going_on(tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """``[tokens]`` bool: those that go on with a word, "ism" of "Catholicism" say."""
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    # Byte-level tokens write white space as letters between U+0100 and U+0143.
    return torch.tensor(
        [
            bool(token)
            and (token.startswith("##") or token[0].isalnum())
            and not "\u0100" <= token[0] <= "\u0143"
            for token in tokens
        ]
    )
