"""Rows of tokens cut at a start column: the prefix before it and the tail from it on.

The caches here stand in for transformers' own during the passes of `tail`. Attention layers ask
a cache for two things only: its length, to build masks, and ``update``, to exchange their new
keys and values for all that they shall attend to.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from easyedit_fast.errors import ModelError


@dataclasses.dataclass(frozen=True, slots=True)
class Cut:
    """The columns of padded rows, sorted into prefix and tail.

    The prefix is right-aligned and the tail left-aligned, so that on both sides of the cut the
    distance between two columns is the distance between their tokens. Sliding windows and
    ALiBi's biases then come out exact.

    Attributes:
        start: ``[rows]``, column of the first token of the tail.
        prefix_columns: ``[rows, P]``, columns of the prefix; meaningless where masked.
        tail_columns: ``[rows, T]``, columns of the tail; past its end, the last token's column.
        mask: ``[rows, P + T]``, 1 where there is a token.
        positions: ``[rows, columns]``, position of each token in its row, from 0.
        tail_positions: ``[rows, T]``, positions of the tail.
    """

    start: Tensor
    prefix_columns: Tensor
    tail_columns: Tensor
    mask: Tensor
    positions: Tensor
    tail_positions: Tensor

    @classmethod
    def at(cls, attention_mask: Tensor, start: Tensor) -> Cut:
        """Cuts rows padded on the left, on the right or not at all.

        Args:
            attention_mask: ``[rows, columns]``, 1 for tokens and 0 for pads.
            start: ``[rows]``, column of the first token of the tail.

        Raises:
            ModelError: Pads between tokens, or a start that is not at a token.
        """
        real = attention_mask.bool()
        columns = torch.arange(real.shape[1], device=real.device)
        first = real.int().argmax(dim=1)
        last = first + real.sum(dim=1) - 1
        _check(real, columns, first, last, start)
        width = int((start - first).max())
        length = int((last - start).max()) + 1
        prefix = start[:, None] + torch.arange(-width, 0, device=start.device)
        tail = start[:, None] + torch.arange(length, device=start.device)
        mask = torch.cat([prefix >= first[:, None], tail <= last[:, None]], dim=1)
        tail = tail.minimum(last[:, None])
        positions = (columns - first[:, None]).clamp(min=0).minimum((last - first)[:, None])
        return cls(
            start=start,
            prefix_columns=prefix.clamp(min=0),
            tail_columns=tail,
            mask=mask.to(attention_mask.dtype),
            positions=positions,
            tail_positions=tail - first[:, None],
        )

    @property
    def lengths(self) -> Tensor:
        """``[rows]``, tokens in each row's tail."""
        return self.mask[:, self.prefix_columns.shape[1] :].sum(dim=1)

    def select(self, rows: Tensor) -> Cut:
        """The same for some of the rows, as narrow as these allow."""
        width = self.prefix_columns.shape[1]
        used = self.mask[rows].any(dim=0)
        before, after = int(used[:width].sum()), int(used[width:].sum())
        return Cut(
            start=self.start[rows],
            prefix_columns=self.prefix_columns[rows, width - before :],
            tail_columns=self.tail_columns[rows, :after],
            mask=self.mask[rows, width - before : width + after],
            positions=self.positions[rows],
            tail_positions=self.tail_positions[rows, :after],
        )


class StandInCache(Cache):
    """A cache of a given length whose ``update`` stores nothing that was not asked for."""

    def __init__(self, length: int = 0) -> None:
        # Not Cache.__init__: its arguments differ between releases, and no layer is wanted.
        self.layers = []
        self.layer_class_to_replicate = None
        self.offloading = False
        self.length = length

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Hands back what the layer brought."""
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """The number of columns before the new ones."""
        return self.length

    def get_mask_sizes(self, query_length: int | Tensor, layer_idx: int = 0) -> tuple[int, int]:
        """The number of columns that a layer attends to, and the first of them."""
        # Until transformers 5.2 the argument was the tensor of the new columns' numbers.
        new = query_length if isinstance(query_length, int) else query_length.shape[0]
        return self.length + new, 0

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """No limit."""
        return -1


class PrefixRecorder(StandInCache):
    """Keeps the prefix's keys and values of the layers from `first_layer` on.

    Attributes:
        states: Layer to its (keys, values), each ``[rows, heads, P, head size]``.
    """

    def __init__(self, first_layer: int, cut: Cut) -> None:
        super().__init__()
        self.first_layer = first_layer
        self.columns = cut.prefix_columns
        self.states: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Records the prefix and hands back what the layer brought."""
        if layer_idx >= self.first_layer:
            index = self.columns.to(key_states.device)[:, None, :, None]
            self.states[layer_idx] = (
                key_states.take_along_dim(index, dim=2),
                value_states.take_along_dim(index, dim=2),
            )
        return key_states, value_states


class PrefixCache(StandInCache):
    """Puts recorded keys and values before the new ones and stores nothing."""

    def __init__(self, states: dict[int, tuple[Tensor, Tensor]], width: int) -> None:
        super().__init__(width)
        self.states = states

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Prefix and new columns together, ``[rows, heads, P + T, head size]``."""
        if self.length == 0:
            return key_states, value_states
        keys, values = self.states[layer_idx]
        return torch.cat([keys, key_states], dim=2), torch.cat([values, value_states], dim=2)


class RecordingCache(PrefixCache):
    """Puts recorded keys and values before the new ones, and keeps the new ones.

    Attributes:
        new: Layer to its new (keys, values), each ``[rows, heads, T, head size]``.
    """

    def __init__(self, states: dict[int, tuple[Tensor, Tensor]], width: int) -> None:
        super().__init__(states, width)
        self.new: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Prefix and new columns together, as `PrefixCache`."""
        self.new[layer_idx] = key_states, value_states
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


def _check(real: Tensor, columns: Tensor, first: Tensor, last: Tensor, start: Tensor) -> None:
    whole = (columns >= first[:, None]) & (columns <= last[:, None])
    if not torch.equal(whole, real):
        raise ModelError("attention_mask has pads between tokens; pad each row on one side only")
    if bool(((start < first) | (start > last)).any()):
        raise ModelError("start must be the column of a token in every row")
