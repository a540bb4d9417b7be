"""Prompts that a scope is to tell from an edit's: near edits, and other facts of its subject."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from numpy.random import Generator
from torch import Tensor

from easyedit_fast.serac.scope import Scope

if TYPE_CHECKING:
    from easyedit_fast.requests import EditRequest

_NEAR = 64
"""So many records that are nearest to one may be its hard negatives."""

_ALIKE = 0.5
"""Prompts whose wordings without the subject have this cosine or more may ask the same."""

_TRIES = 16
_ROWS_AT_ONCE = 512


class Negatives:
    """What may be drawn beside some records.

    An untrained encoder says what is near to what, so that it does not matter when.
    """

    def __init__(self, scope: Scope, requests: Sequence[EditRequest]) -> None:
        """Embeds the prompts.

        Args:
            scope: A scope that is not trained.
            requests: The records.
        """
        self._requests = requests
        prompts = scope.embed([request.prompt for request in requests])
        self._near = _nearest(prompts, min(_NEAR, len(requests) - 1))
        self._wordings = [_wording(request) for request in requests]
        kinds = list(dict.fromkeys(map(_told, self._wordings)))
        places = {text: place for place, text in enumerate(kinds)}
        self._kinds = [places[_told(wording)] for wording in self._wordings]
        rows = torch.nn.functional.normalize(scope.embed(kinds), dim=1)
        self._unlike = rows @ rows.T < _ALIKE

    def near(self, place: int, count: int, draw: Generator) -> list[int]:
        """Some of the records that are nearest to one."""
        chosen = draw.permutation(self._near.shape[1])[:count]
        return [int(other) for other in self._near[place, chosen]]

    def beside(self, places: Sequence[int], count: int, draw: Generator) -> list[int]:
        """Some records, then of each of them some that are nearest to it."""
        near: dict[int, None] = {}
        for place in places:
            near |= dict.fromkeys(self.near(place, count, draw))
        return [*places, *(place for place in near if place not in places)]

    def of_subject(self, place: int, count: int, draw: Generator) -> list[str]:
        """Prompts about a record's subject, in the wording of other records that ask other facts.

        The record's own locality prompts are no such thing: they are of other subjects.
        """
        made: list[str] = []
        for _ in range(_TRIES * count):
            other = int(draw.integers(len(self._requests)))
            if self._unlike[self._kinds[place], self._kinds[other]]:
                made.append(self._requests[place].subject.join(self._wordings[other]))
            if len(made) == count:
                break
        return made


def _wording(request: EditRequest) -> tuple[str, str]:
    """What goes before the subject in a prompt, and after it."""
    start, end = request.subject_span
    return request.prompt[:start], request.prompt[end:]


def _told(wording: tuple[str, str]) -> str:
    return "it".join(wording)


def _nearest(rows: Tensor, count: int) -> Tensor:
    """The places of the `count` nearest others of each row, ``[rows, count]``."""
    # Its own place is among them, or one that is the very same.
    found = [
        torch.cdist(part, rows).topk(count + 1, dim=1, largest=False).indices[:, 1:]
        for part in rows.split(_ROWS_AT_ONCE)
    ]
    return torch.cat(found)
