"""The rows of a running batch: each with its own sampling, stops and listener."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from easyedit_fast.serac.routing import Route
from easyedit_fast.serving.text import TextPieces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Reason = Literal["stop", "length"]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How one answer is made.

    Attributes:
        max_tokens: New tokens at most.
        temperature: 0: the likeliest token each time.
        top_p: The likeliest tokens that have this probability together are drawn from.
        stop: Texts that end the answer, and are no part of it.
        seed: Of the draws; None: another one each time.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None


@dataclasses.dataclass(frozen=True)
class Told:
    """News of a row.

    Attributes:
        row: The row.
        text: New text.
        reason: Why the answer has ended; None: it goes on.
        error: Why there is no answer.
    """

    row: Row
    text: str = ""
    reason: Reason | None = None
    error: BaseException | None = None


class Row:
    """One answer that is wanted.

    Attributes:
        tokens: The prompt's.
        sampling: How it is made.
        index: Of the answer in its request.
        name: What errors call the prompt.
        room: New tokens at most, after the edit has its room too.
        route: What the prompt was routed to, once it was.
        made: New tokens so far, the end-of-text token included.
        is_over: Whether it has ended, or nobody waits for it.
    """

    def __init__(
        self,
        tokens: list[int],
        sampling: Sampling,
        tell: Callable[[Told], None],
        index: int = 0,
        name: str = "the prompt",
    ) -> None:
        """Takes the prompt, how it is answered, and who is told; `tell` is called by the worker."""
        self.tokens = tokens
        self.sampling = sampling
        self.index = index
        self.name = name
        self.room = sampling.max_tokens
        self.route = Route(None)
        self.made = 0
        self.is_over = False
        self._tell = tell
        self._pieces: TextPieces | None = None
        self._draws: torch.Generator | None = None

    def cancel(self) -> None:
        """Nobody waits for it any more; it ends with the next token."""
        self.is_over = True

    def fail(self, error: BaseException) -> None:
        """Ends it without an answer."""
        if not self.is_over:
            self.is_over = True
            self._tell(Told(self, error=error))

    def take(self, token: int, tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> None:
        """Takes a new token, and tells what it says."""
        if self._pieces is None:
            self._pieces = TextPieces(tokenizer, self.tokens, self.sampling.stop)
        self.made += 1
        reason: Reason | None = None
        text = ""
        if token in ends:
            reason = "stop"
        else:
            text = self._pieces.add(token)
            if self._pieces.stopped:
                reason = "stop"
            elif self.made >= self.room:
                reason = "length"
        if reason is not None:
            text += self._pieces.rest()
            self.is_over = True
        if text or reason is not None:
            self._tell(Told(self, text, reason))

    def chosen(self, logits: Tensor) -> int:
        """Draws a token.

        Args:
            logits: ``[vocabulary]`` float32.
        """
        if self._draws is None:
            self._draws = torch.Generator(logits.device)
            if self.sampling.seed is None:
                self._draws.seed()
            else:
                self._draws.manual_seed((self.sampling.seed + self.index) % (1 << 63))
        # Below zero, so that a temperature near zero overflows to minus infinity alone.
        below = (logits - logits.max()).double() / self.sampling.temperature
        probabilities = below.nan_to_num(neginf=-torch.inf).softmax(-1)
        if self.sampling.top_p < 1:
            values, order = probabilities.sort(descending=True, stable=True)
            before = values.cumsum(0) - values
            values[1:][before[1:] >= self.sampling.top_p] = 0  # the likeliest stays
            probabilities = torch.zeros_like(values).scatter_(0, order, values)
        return int(torch.multinomial(probabilities, 1, generator=self._draws))


class RowDraws(LogitsProcessor):
    """Leaves one token to choose, in the rows that are drawn."""

    def __init__(self, rows: Sequence[Row]) -> None:
        """Takes the rows of the batch."""
        self._rows = rows

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores ``[rows, vocabulary]`` of the next tokens."""
        for place, row in enumerate(self._rows):
            if row.sampling.temperature > 0 and not row.is_over:
                token = row.chosen(scores[place].float())
                scores[place] = -torch.inf
                scores[place, token] = 0
        return scores


class RowEnds(StoppingCriteria):
    """Hands each row its new token, and ends it where it is over."""

    def __init__(
        self,
        rows: Sequence[Row],
        tokenizer: PreTrainedTokenizerBase,
        ends: Collection[int],
    ) -> None:
        """Takes the rows of the batch, and the tokens that end a text."""
        self._rows, self._tokenizer, self._ends = rows, tokenizer, ends

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """Whether each row is over: ``[rows]``."""
        for row, token in zip(self._rows, input_ids[:, -1].tolist(), strict=True):
            if not row.is_over:
                row.take(token, self._tokenizer, self._ends)
        over = [row.is_over for row in self._rows]
        return torch.tensor(over, dtype=torch.bool, device=input_ids.device)
