"""Rows of a batch, some of which have the context of an edit before their query."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from easyedit_fast.data.tokenizer import IGNORED_LABEL
from easyedit_fast.errors import ModelError
from easyedit_fast.models.passes import columns_of
from easyedit_fast.serac.refusals import refuse_lengths


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

    @property
    def rows_of_a_pass(self) -> int:
        """Rows of the first pass: as many neighbours of each row of the user's as it had."""
        return len(self._mask)

    def of(self, rows: Sequence[int]) -> Contexts:
        """Those of some rows, before any pass."""
        return Contexts([self.rows[row] for row in rows], self._limit)

    def select(self, rows: Tensor) -> None:
        """Puts some rows of the first pass, by their numbers or a mask, in the place of all."""
        chosen = torch.arange(len(self._mask))[rows.cpu()]
        times = len(self._mask) // len(self.rows)
        self.rows = [self.rows[row // times] for row in chosen.tolist()]
        self._mask = self._mask[chosen.to(self._mask.device)]
        self.places = self.places[chosen.to(self.places.device)]
        lengths = zip(self._mask.sum(1).tolist(), self.rows, strict=True)
        self._longest = max((length for length, one in lengths if one.tokens), default=0)

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
            ModelError: A row with its context is too long for the model, or these are not the
                cache's rows and columns.
        """
        new = seen - self._mask.shape[1] + ids.shape[1]  # since the first pass
        if new < 0:
            raise ModelError(
                "the cache was cut back into its prompts, some of which have an edit; pass again "
                "all that was cut off, or begin with a new cache"
            )
        columns = self.places.shape[1] + new
        mask = ids.new_ones(len(ids), columns) if mask is None else mask
        if len(ids) != len(self._mask) or mask.shape != (len(ids), columns):
            raise ModelError(
                f"the cache has {len(self._mask)} rows and, without edits, "
                f"{columns - ids.shape[1]} columns; input_ids {[*ids.shape]} and attention_mask "
                f"{[*mask.shape]} do not go on from it; pass the mask of all columns so far"
            )
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

    Raises:
        ModelError: The rows have no prompts of that length.
    """
    real = (torch.ones_like(ids) if mask is None else mask).bool()
    if length is not None:
        lengths = torch.as_tensor(length, device=ids.device).reshape(-1)
        refuse_lengths(lengths, real.sum(1))
        real = real & (real.cumsum(1) <= lengths[:, None])
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
