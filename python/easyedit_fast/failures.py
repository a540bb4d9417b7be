"""Requests that are left out, and why."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, TypeAlias, TypeVar, get_args

from easyedit_fast.errors import HparamsError, RecordError

OnError: TypeAlias = Literal["raise", "skip"]
"""What becomes of a request that fails: its error ends the whole call, or it is left out."""


_Request = TypeVar("_Request")
_Made = TypeVar("_Made")


class Failures(dict[int, RecordError]):
    """The errors of requests that failed, by their places in the list.

    Attributes:
        on_error: Whether a failure is raised, or kept here.
    """

    def __init__(self, on_error: OnError = "raise") -> None:
        """Takes what becomes of a request that fails.

        Raises:
            HparamsError: It is neither ``raise`` nor ``skip``.
        """
        super().__init__()
        if on_error not in get_args(OnError):
            raise HparamsError(f"on_error must be 'raise' or 'skip', not {on_error!r}")
        self.on_error = on_error

    def refuse(self, place: int, error: RecordError) -> None:
        """Leaves a request out, or raises its error, which then names that place.

        Raises:
            RecordError: The error, where `on_error` is ``raise``.
        """
        named = error.at(place)
        if self.on_error == "raise":
            raise named from error
        self.setdefault(place, named)

    @contextlib.contextmanager
    def part(self, first: int, requests: int) -> Iterator[Failures]:
        """The failures of a part of the list, by the places in that part.

        Those that the ``with`` block adds are taken over.

        Args:
            first: Place of the part's first request.
            requests: How many there are in it.
        """
        own = Failures(self.on_error)
        own.update(
            (place, self[first + place].at(place))
            for place in range(requests)
            if first + place in self
        )
        yield own
        self.update((first + place, error.at(first + place)) for place, error in own.items())

    @contextlib.contextmanager
    def catching(self, places: Sequence[int]) -> Iterator[None]:
        """Refuses the request that a ``with`` block's error names; the block ends there.

        Args:
            places: The places of the requests that the block works on.

        Raises:
            RecordError: The error, where it names none, or `on_error` is ``raise``.
        """
        try:
            yield
        except RecordError as error:
            if error.record is None:
                raise
            self.refuse(places[error.record], error)

    def made_of_others(
        self, places: Iterable[int], make: Callable[[list[int]], _Made]
    ) -> tuple[list[int], _Made | None]:
        """Calls `make` on the places that have not failed, again without each that it refuses.

        Args:
            places: Some places.
            make: Takes places; a `RecordError` of its names one by its number among them.

        Returns:
            The places that did not fail, and what is made of them; None where none is left.

        Raises:
            RecordError: As `catching`.
        """
        fitting = self.among(places)
        made: _Made | None = None
        while fitting and made is None:
            with self.catching(fitting):
                made = make(fitting)
            fitting = self.among(fitting)
        return fitting, made

    def among(self, places: Iterable[int]) -> list[int]:
        """Those of some places whose requests have not failed."""
        return [place for place in places if place not in self]

    def others(self, requests: Sequence[_Request]) -> list[_Request]:
        """Those of all requests that have not failed."""
        return [request for place, request in enumerate(requests) if place not in self]


@contextlib.contextmanager
def numbered(records: Sequence[int]) -> Iterator[None]:
    """Renumbers the errors of a ``with`` block that works on a part of a list.

    Args:
        records: The number in the whole list of each record of the part.

    Raises:
        RecordError: The block's, with the record's number in the whole list.
    """
    try:
        yield
    except RecordError as error:
        if error.record is None:
            raise
        raise error.at(records[error.record]) from error
