"""Which leading tokens rows have in common, so that each such lead is run once."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Leads:
    """Leads that several rows share.

    Attributes:
        tokens: The tokens of each lead.
        of_row: The lead of each row; −1 where it shares none.
    """

    tokens: list[tuple[int, ...]]
    of_row: list[int]

    @property
    def lengths(self) -> list[int]:
        """Tokens of each row's lead; 0 where it shares none."""
        return [len(self.tokens[lead]) if lead >= 0 else 0 for lead in self.of_row]


def find_leads(rows: Sequence[Sequence[int]]) -> Leads:
    """Finds the leads that spare the most tokens, where each row has one lead at most.

    Rows of one lead are neighbours among the sorted rows; now and then others would spare more.

    Args:
        rows: The tokens of each row.
    """
    order = sorted(range(len(rows)), key=lambda row: tuple(rows[row]))
    in_order = [tuple(rows[row]) for row in order]
    common = [_common(one, other) for one, other in itertools.pairwise(in_order)]
    found = Leads([], [-1] * len(rows))
    for first, last, length in _best_groups(common, len(rows)):
        for place in order[first:last]:
            found.of_row[place] = len(found.tokens)
        found.tokens.append(in_order[first][:length])
    return found


def _best_groups(common: Sequence[int], rows: int) -> list[tuple[int, int, int]]:
    """Groups of sorted rows that share a lead, each as (first row, last row + 1, length of it).

    Args:
        common: How many leading tokens each row has in common with the next.
        rows: Number of rows.
    """
    best = [
        (0, 0, 0)
    ]  # by the end of the last group: (tokens spared, its start, its lead's length)
    for end in range(1, rows + 1):
        choice, least = (best[end - 1][0], end - 1, 0), 0
        for start in range(end - 2, -1, -1):
            least = min(least or common[start], common[start])
            if least == 0:
                break
            choice = max(choice, (best[start][0] + (end - start - 1) * least, start, least))
        best.append(choice)
    groups, end = [], rows
    while end:
        _, start, length = best[end]
        if length:
            groups.append((start, end, length))
        end = start
    return groups


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many leading tokens two rows have in common."""
    equal = (left == right for left, right in zip(one, other, strict=False))
    return sum(1 for _ in itertools.takewhile(bool, equal))
