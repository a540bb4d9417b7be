"""Requests that are left out, and why."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from easyedit_fast.errors import HparamsError, RecordError

OnError: TypeAlias = Literal["raise", "skip"]
"""What becomes of a request that fails: its error ends the whole call, or it is left out."""


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
            raise named from None
        self[place] = named

    def others(self, requests: int) -> list[int]:
        """The places of the requests that have not failed, of that many in all."""
        return [place for place in range(requests) if place not in self]
