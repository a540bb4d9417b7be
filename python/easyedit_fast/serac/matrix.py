"""The embeddings of a memory as one matrix, in float32 or int8."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

Precision = Literal["float32", "int8"]
_FIRST_ROWS = 64
_BLOCK = 8192
"""Rows of int8 that are multiplied at once: as float32 they stay in the cache."""

_LEVELS = 127


class EmbeddingMatrix:
    """Embeddings in rows, with room for more."""

    def __init__(self, size: int, heads: int, precision: Precision) -> None:
        """An empty one.

        Args:
            size: Numbers of an embedding.
            heads: Equal parts of an embedding; two are as near as the nearest of their parts.
            precision: ``int8`` takes a quarter of the memory, and keeps a scale a row.
        """
        self._heads = heads
        dtype = torch.int8 if precision == "int8" else torch.float32
        self._rows = torch.empty(_FIRST_ROWS, size, dtype=dtype)
        self._scales = torch.ones(_FIRST_ROWS) if precision == "int8" else None
        self._norms = torch.empty(_FIRST_ROWS, heads)  # squared
        self._count = 0

    def append(self, row: Tensor) -> None:
        """Adds an embedding ``[d]``."""
        at = self._count
        if at == len(self._rows):
            self._rows, self._norms = (_doubled(one) for one in (self._rows, self._norms))
            self._scales = None if self._scales is None else _doubled(self._scales)
        kept = row
        if self._scales is None:
            self._rows[at] = row
        else:
            scale = row.abs().max().clamp_min(1e-12) / _LEVELS
            self._scales[at] = scale
            self._rows[at] = (row / scale).round()
            kept = self._rows[at] * scale
        self._norms[at] = kept.view(self._heads, -1).square().sum(-1)
        self._count += 1

    def move_last_to(self, place: int) -> None:
        """Overwrites a row by the last one, which is there no longer."""
        self._count -= 1
        for one in (self._rows, self._norms, self._scales):
            if one is not None:
                one[place] = one[self._count]

    def rows(self, places: Sequence[int]) -> Tensor:
        """The rows at some places, ``[places, d]`` float32."""
        rows = self._rows[places]
        return rows if self._scales is None else rows * self._scales[places, None]

    def squared_distances(self, queries: Tensor, places: Sequence[int] | None = None) -> Tensor:
        """Squared distances in the nearest head.

        Args:
            queries: ``[q, d]``.
            places: Of the rows; None: all.

        Returns:
            ``[q, rows]`` float32.
        """
        parts = queries.float().view(len(queries), self._heads, -1).transpose(0, 1)  # [h, q, d/h]
        blocks = self._blocks() if places is None else [self._heads_of(places)]
        found = [
            parts.square().sum(-1)[..., None] + norms.T[:, None] - 2 * parts @ rows.permute(1, 2, 0)
            for rows, norms in blocks
        ]
        joined = torch.cat(found, dim=2) if found else parts.new_empty(self._heads, len(queries), 0)
        return joined.amin(0).clamp_min(0)

    def _heads_of(self, places: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Rows ``[n, h, d/h]`` float32 and their squared norms ``[n, h]``."""
        return self.rows(places).unflatten(1, (self._heads, -1)), self._norms[places]

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """All rows and norms, as `_heads_of` gives them."""
        step = max(1, self._count) if self._scales is None else _BLOCK
        for first in range(0, self._count, step):
            last = min(first + step, self._count)
            rows = self._rows[first:last]
            if self._scales is not None:
                rows = rows * self._scales[first:last, None]
            yield rows.view(last - first, self._heads, -1), self._norms[first:last]


def _doubled(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, torch.empty_like(tensor)])
