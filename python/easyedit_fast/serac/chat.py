"""The query inside a prompt's tokens: its text, where an edit's context goes, and rows with one.

A plain prompt is the query. A prompt that the tokenizer's chat template has made holds turns, of
which the last user message is the query; the rest of it says nothing of the edit's scope.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from easyedit_fast.data.tokenizer import IGNORED_LABEL
from easyedit_fast.errors import ModelError
from easyedit_fast.models.passes import columns_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MESSAGES = ("firstquestion", "firstanswer", "secondquestion")


@dataclasses.dataclass(frozen=True)
class Query:
    """What a prompt asks.

    Attributes:
        text: The text that is routed; empty where the prompt is.
        place: Tokens of the prompt that go before a context: a BOS, or all up to the user message.
    """

    text: str
    place: int


@dataclasses.dataclass(frozen=True)
class ChatFormat:
    """How a chat template writes a user's turn.

    Attributes:
        opening: What goes before each user message.
        closing: What goes after the last one, up to where the answer starts.
    """

    opening: str
    closing: str

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> ChatFormat | None:
        """The format of a tokenizer's template; None without one, or where it cannot be told.

        It is read off a conversation of known messages. What goes before both user messages opens
        one; a template that writes the second in another way than the first has no format.
        """
        if not getattr(tokenizer, "chat_template", None):
            return None
        roles = ("user", "assistant", "user")
        messages = [
            {"role": role, "content": text} for role, text in zip(roles, _MESSAGES, strict=True)
        ]
        try:
            text = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except Exception:  # noqa: BLE001  a template is a program, which may raise anything
            return None
        if not isinstance(text, str) or any(text.count(message) != 1 for message in _MESSAGES):
            return None
        first, answer, second = (text.index(message) for message in _MESSAGES)
        opening = _common_end(text[:first], text[answer + len(_MESSAGES[1]) : second])
        closing = text[second + len(_MESSAGES[2]) :]
        return cls(opening, closing) if opening and closing and first < answer < second else None

    def message(self, prompt: str) -> tuple[int, int] | None:
        """The characters [start, end) of the last user message; None where it is no chat prompt.

        Args:
            prompt: The prompt, special tokens included.
        """
        if not prompt.endswith(self.closing):
            return None
        end = len(prompt) - len(self.closing)
        start = prompt.rfind(self.opening, 0, end)
        if start < 0:
            return None
        start += len(self.opening)
        # A closing inside: another turn than the user's is the last.
        return None if self.closing in prompt[start:end] else (start, end)


def _common_end(one: str, other: str) -> str:
    pairs = zip(reversed(one), reversed(other), strict=False)
    common = itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
    return "".join(character for character, _ in common)[::-1]


class QueryReader:
    """Finds the query in prompts of one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Takes the tokenizer; its template is read when the first prompt is."""
        self._tokenizer = tokenizer
        self._known: tuple[object, ChatFormat | None] = (None, None)

    def text(self, prompt: str) -> str:
        """The query of a text."""
        chat = self._format()
        span = chat.message(prompt) if chat else None
        return (prompt[slice(*span)] if span else prompt).strip()

    def read(self, tokens: Sequence[int]) -> Query:
        """The query of a prompt's tokens, pads left out.

        In a chat prompt the context opens the user message, so that it belongs to the user's turn.
        Where no token starts with the message, it goes before the whole prompt.
        """
        chat = self._format()
        if chat:
            prompt = self._decoded(tokens)
            span = chat.message(prompt)
            if span:
                place = self._place(tokens, prompt[: span[0]])
                place = self._after_bos(tokens) if place is None else place
                return Query(prompt[slice(*span)].strip(), place)
        text = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return Query(str(text).strip(), self._after_bos(tokens))

    def _after_bos(self, tokens: Sequence[int]) -> int:
        bos, chat = self._tokenizer.bos_token_id, self._format()
        if bos is None or (chat and str(self._tokenizer.bos_token) in chat.opening):
            return 0  # it opens every turn, and no context may part it from its turn
        return int(list(tokens[:1]) == [bos])

    def _place(self, tokens: Sequence[int], before: str) -> int | None:
        """How many tokens make up the text `before`; None where one of them goes on beyond it."""
        low, high = 0, len(tokens)
        while low < high:
            middle = (low + high) // 2
            if len(self._decoded(tokens[:middle])) < len(before):
                low = middle + 1
            else:
                high = middle
        return low if self._decoded(tokens[:low]) == before else None

    def _decoded(self, tokens: Sequence[int]) -> str:
        text = self._tokenizer.decode(
            list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return str(text)

    def _format(self) -> ChatFormat | None:
        template = getattr(self._tokenizer, "chat_template", None)
        if template != self._known[0]:
            self._known = (template, ChatFormat.of(self._tokenizer))
        return self._known[1]


@dataclasses.dataclass(frozen=True)
class Context:
    """What is put into a row.

    Attributes:
        tokens: The edit's; none in a row that the base model answers.
        place: Tokens of the row's own that go before them.
        weight: The route's similarity.
    """

    tokens: list[int]
    place: int = 0
    weight: float = 0.0


class Contexts:
    """The contexts of a batch's rows, which were routed once, and where they lie in its passes.

    Attributes:
        rows: One context a row of the user's.
        places: Where the user's columns went: ``[rows, columns]``, -1 for pads.
    """

    def __init__(self, rows: Sequence[Context], limit: int | None) -> None:
        """Takes the contexts, and how many tokens the model reads."""
        self.rows = rows
        self.places = self._mask = torch.empty(0, 0, dtype=torch.long)
        self._limit = limit
        self._longest = 0

    @property
    def routed(self) -> list[bool]:
        """Whether each row has a context."""
        return [bool(row.tokens) for row in self.rows]

    def of(self, rows: Sequence[int]) -> Contexts:
        """Those of some rows, before any pass."""
        return Contexts([self.rows[row] for row in rows], self._limit)

    def first(self, ids: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """The model's arguments for a first pass: contexts put in, all rows padded on the left.

        Args:
            ids: ``[rows, columns]``, or as many neighbours of each row (beams).
            mask: ``[rows, columns]``; None: there are no pads.

        Raises:
            ModelError: A row with its context is too long for the model.
        """
        mask = (torch.ones_like(ids) if mask is None else mask).to(ids.device, torch.long)
        times = len(ids) // len(self.rows)
        contexts = [context for context in self.rows for _ in range(times)]
        rows = []
        for row, own, one in zip(ids.tolist(), mask.tolist(), contexts, strict=True):
            tokens = [token for token, real in zip(row, own, strict=True) if real]
            rows.append([*tokens[: one.place], *one.tokens, *tokens[one.place :]])
        self._longest = max(
            (len(row) for row, one in zip(rows, contexts, strict=True) if one.tokens), default=0
        )
        self._refuse_too_long(0)
        width = max(map(len, rows))
        whole = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=ids.device)
        starts, before, shifts = (
            torch.tensor(numbers, device=ids.device)[:, None]
            for numbers in (
                [width - len(row) for row in rows],
                [one.place for one in contexts],
                [len(one.tokens) for one in contexts],
            )
        )
        self._mask = (torch.arange(width, device=ids.device) >= starts).long()
        number = mask.cumsum(1) - 1
        places = starts + number + shifts * (number >= before)
        self.places = places.masked_fill(mask == 0, -1)
        return _arguments(whole, self._mask)

    def next(self, ids: Tensor, mask: Tensor | None, seen: int) -> dict[str, Tensor]:
        """The model's arguments for a further pass, over a cache.

        Args:
            ids: ``[rows, new columns]``.
            mask: ``[rows, all columns]`` of the user's; None: all that came later are tokens.
            seen: Columns of the cache.

        Raises:
            ModelError: A row with its context is too long for the model.
        """
        if mask is None:
            later = ids.new_ones(len(ids), seen - self._mask.shape[1] + ids.shape[1])
        else:
            later = mask[:, self.places.shape[1] :].to(ids.device, torch.long)
        self._refuse_too_long(later.shape[1])
        return _arguments(ids, torch.cat([self._mask.to(ids.device), later], dim=1))

    def logits(self, wide: Tensor, keep: int | Tensor) -> Tensor:
        """The logits at the user's tokens ``[rows, n, vocabulary]``, zeros at pads.

        Args:
            wide: ``[rows, k, vocabulary]``, of the last k columns of the first pass.
            keep: At the user's last so many columns, or at the columns ``[n]``; 0: at all.
        """
        places = self._kept(keep).to(wide.device)
        start = self._mask.shape[1] - wide.shape[1]
        logits = columns_of(wide, (places - start).clamp_min(0))
        return logits.masked_fill(places[..., None] < 0, 0.0)

    def last(self, keep: int | Tensor) -> int:
        """How many columns of the first pass, from the last, hold those that `logits` reads."""
        width, places = self._mask.shape[1], self._kept(keep)
        return width - int(places.masked_fill(places < 0, width - 1).min())

    def _kept(self, keep: int | Tensor) -> Tensor:
        if isinstance(keep, int):
            return self.places[:, -keep:]  # -0: all
        return self.places[:, keep.to(self.places.device)]

    def mixed(self, base: Tensor, edited: Tensor) -> Tensor:
        """Logits of ``(1 - w) · base + w · edited`` as probabilities, w a row's similarity.

        Soft weighting of SERAC's authors (Mitchell et al., arXiv 2206.06520, their code).

        Args:
            base: Logits ``[rows, n, vocabulary]``.
            edited: Logits ``[rows, n, vocabulary]``.
        """
        weight = torch.tensor([one.weight for one in self.rows], device=base.device)[:, None, None]
        first, second = (one.to(base.device).float().log_softmax(-1) for one in (base, edited))
        return torch.logaddexp(first + (-weight).log1p(), second + weight.log()).to(base.dtype)

    def _refuse_too_long(self, later: int) -> None:
        if self._limit is not None and self._longest and self._longest + later > self._limit:
            raise ModelError(
                f"a prompt with its edit takes {self._longest + later} tokens, and the model reads "
                f"{self._limit} at most; shorten the prompt, or ask for fewer new tokens"
            )


def _arguments(ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    positions = (mask.cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1] :]
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


def prompts_of(
    ids: Tensor,
    mask: Tensor | None,
    labels: Tensor | None = None,
    length: int | Tensor | None = None,
) -> list[list[int]]:
    """The prompts' tokens, pads left out.

    Args:
        ids: ``[rows, columns]``.
        mask: ``[rows, columns]``; None: there are no pads.
        labels: ``[rows, columns]``; a prompt ends before its first label that is not -100.
        length: How many tokens a prompt has instead, or ``[rows]``.
    """
    real = (torch.ones_like(ids) if mask is None else mask).bool()
    if length is not None:
        lengths = torch.as_tensor(length, device=ids.device).reshape(-1, 1)
        real = real & (real.cumsum(1) <= lengths)
    elif labels is not None:
        real = real & ((labels != IGNORED_LABEL).cumsum(1) == 0).to(ids.device)
    return [row[own].tolist() for row, own in zip(ids, real, strict=True)]


def likely_mask(ids: Tensor, pad: int | None, ends: int | list[int] | None) -> Tensor:
    """The mask that transformers takes where none is given: no pads, unless they are told apart.

    Args:
        ids: ``[rows, columns]``.
        pad: What pads.
        ends: What ends texts.
    """
    if pad is None or pad in (ends if isinstance(ends, list) else [ends]):
        return torch.ones_like(ids)
    return (ids != pad).long()
