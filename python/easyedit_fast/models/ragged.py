"""Tails of different lengths, run in groups so that little of the work is padding.

Rows of one batch go on for one token or for twenty after the edited one. Padded to the longest,
a third of the tokens and more are pads. Each group of rows here is as long as its own longest row.
A group costs something of its own (every weight is read once a group), so that rows are not
grouped by exact length: `partition` finds the groups of least cost.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from easyedit_fast.models.tail import Tail
from easyedit_fast.timings import each, span

_GROUP_COST = {"cpu": 48}
_OTHER_GROUP_COST = 4096
"""What a group costs beside its tokens, in tokens: reading the weights, launching the kernels.

The first is measured on two cores. The other is a guess, by which a GPU has one group almost
always.
"""


def group_cost(device: torch.device) -> int:
    """What a group costs beside its tokens, in tokens."""
    return _GROUP_COST.get(device.type, _OTHER_GROUP_COST)


def partition(lengths: Sequence[int], group_cost: int) -> list[list[int]]:
    """Groups rows so that padded tokens and groups together cost the least.

    Args:
        lengths: Length of each row.
        group_cost: Cost of a group, in tokens.

    Returns:
        The places of the rows of each group, shorter rows first.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    # A best grouping ends its groups where the length changes.
    ends = [
        place
        for place in range(1, len(order) + 1)
        if place == len(order) or lengths[order[place]] != lengths[order[place - 1]]
    ]
    best: dict[int, tuple[int, int]] = {0: (0, 0)}  # end: (cost, start of the last group)
    for end in ends:
        longest = lengths[order[end - 1]]
        best[end] = min(
            (cost + group_cost + (end - start) * longest, start)
            for start, (cost, _) in best.items()
        )
    groups: list[list[int]] = []
    end = len(order)
    while end:
        start = best[end][1]
        groups.append(order[start:end])
        end = start
    return groups[::-1]


@dataclasses.dataclass(frozen=True)
class Group:
    """Rows of about the same length.

    Attributes:
        rows: ``[m]``, their numbers in the whole.
        tail: Their tail.
        reads: ``[r]``, which of the n things to read are theirs.
        read_rows: ``[r]``, their rows within the group.
        read_columns: ``[r]``, their columns.
    """

    rows: Tensor
    tail: Tail
    reads: Tensor
    read_rows: Tensor
    read_columns: Tensor

    def shape(self) -> dict[str, int]:
        """Edited layer, rows, their tokens without pads, width with pads, columns of the prefix."""
        rows, width = self.tail.cut.tail_columns.shape
        return {
            "layer": self.tail.layer,
            "rows": rows,
            "tokens": int(self.tail.cut.lengths.sum()),
            "width": width,
            "prefix": self.tail.cut.prefix_columns.shape[1],
        }


class RaggedTail:
    """A tail in groups, and what is read of it.

    Attributes:
        groups: The groups, shorter rows first.
    """

    def __init__(
        self, tail: Tail, rows: Tensor, columns: Tensor, *, cost: int | None = None
    ) -> None:
        """Groups the rows of a tail.

        Args:
            tail: The tail of all rows.
            rows: ``[n]``, the row of each place to read.
            columns: ``[n]``, its column, as `Tail.hidden_states` takes them.
            cost: Cost of a group in tokens; None: what is usual on the device.
        """
        self._tail = tail
        if cost is None:
            cost = group_cost(rows.device)
        groups = partition(tail.cut.lengths.tolist(), cost)
        self.groups = [_group(tail, group, rows, columns) for group in groups]
        self._order = torch.argsort(torch.cat([group.reads for group in self.groups]))

    def logits(self, delta: Tensor) -> Tensor:
        """Logits at the places to read, as `Tail.logits` gives them.

        Args:
            delta: ``[rows, d_out]``, as there.

        Returns:
            ``[n, vocabulary]``, in the model's dtype.
        """
        hidden = [
            group.tail.hidden_states(delta[group.rows], group.read_rows, group.read_columns)
            for group in each("group", self.groups, Group.shape)
        ]
        with span("head", places=len(self._order)):
            return self._tail.head(torch.cat(hidden)[self._order.to(hidden[0].device)])


def _group(tail: Tail, group: Sequence[int], rows: Tensor, columns: Tensor) -> Group:
    members = torch.tensor(sorted(group), device=rows.device)
    reads = torch.isin(rows, members).nonzero().squeeze(1)
    return Group(
        rows=members,
        # On the CPU, since its layers may be on several devices; all rows need no copy.
        tail=tail if len(group) == len(tail.entering) else tail.select(members.cpu()),
        reads=reads,
        read_rows=torch.searchsorted(members, rows[reads]),
        read_columns=columns[reads],
    )
