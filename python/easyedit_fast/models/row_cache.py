"""Keys and values of rows of different lengths, for decoding them together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from easyedit_fast.models.prefix import StandInCache

States = dict[int, tuple[Tensor, Tensor]]
"""Layer to its (keys, values), each ``[rows, heads, columns, head size]``."""


class RowCache(StandInCache):
    """Rows right-aligned at their last token, so that new tokens of all rows share a column.

    The distance between two columns of a row is then that of its tokens, as sliding windows and
    ALiBi's biases need it.

    Attributes:
        length: Columns that are filled.
    """

    def __init__(self, lengths: Tensor, steps: Tensor) -> None:
        """Makes an empty cache; `put` fills it.

        Args:
            lengths: ``[rows]``, tokens that each row begins with, on the CPU.
            steps: ``[rows]``, tokens that each row is fed, on the CPU; a row that has had them
                all stays at its last position, lest it leave the model's context.
        """
        self._width = int(lengths.max())
        super().__init__(self._width)
        self._lengths, self._steps = lengths, steps
        columns = torch.arange(self._width + int(steps.max()))
        self._mask = (columns >= self._width - lengths[:, None]).to(lengths.dtype)
        self._states: States = {}

    @property
    def mask(self) -> Tensor:
        """Attention mask ``[rows, length + 1]`` of the next step."""
        return self._mask[:, : self.length + 1]

    @property
    def positions(self) -> Tensor:
        """Positions ``[rows, 1]`` of the next step's tokens."""
        steps = (self._steps - 1).clamp(max=self.length - self._width)
        return (self._lengths + steps)[:, None]

    def put(self, rows: Sequence[int], sources: Sequence[int], states: States) -> None:
        """Fills some rows from a recorded forward pass, in which rows begin at column 0.

        Args:
            rows: The n rows to fill.
            sources: Their n rows in the recording.
            states: The recording; what it holds beyond a row's length is not read.
        """
        if not rows:
            return
        lengths = self._lengths[rows]
        longest = int(lengths.max())
        # Before a shorter row its first token is repeated; the mask hides it there.
        columns = (lengths[:, None] + torch.arange(-longest, 0)).clamp(min=0)[:, None, :, None]
        for layer, recorded in states.items():
            if layer not in self._states:
                keys, values = (self._room(part) for part in recorded)
                self._states[layer] = keys, values
            for room, part in zip(self._states[layer], recorded, strict=True):
                taken = part[sources].take_along_dim(columns.to(part.device), dim=2)
                room[rows, :, self._width - longest : self._width] = taken

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Stores one new column and hands back all, ``[rows, heads, length + 1, head size]``."""
        keys, values = self._states[layer_idx]
        end = self.length + 1
        keys[:, :, self.length : end] = key_states
        values[:, :, self.length : end] = value_states
        return keys[:, :, :end], values[:, :, :end]

    def advance(self) -> None:
        """Goes on to the next column; to be called after every forward pass."""
        self.length += 1

    def select(self, rows: Sequence[int]) -> None:
        """Keeps some of the rows, numbered anew."""
        kept = list(rows)
        self._lengths, self._steps = self._lengths[kept], self._steps[kept]
        self._mask = self._mask[kept]
        for layer, (keys, values) in self._states.items():
            self._states[layer] = keys[kept], values[kept]

    def _room(self, part: Tensor) -> Tensor:
        """Zeros, since a column that the mask hides still meets a weight of 0."""
        _, heads, _, size = part.shape
        return part.new_zeros(len(self._lengths), heads, self._mask.shape[1], size)
