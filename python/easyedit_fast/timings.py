"""Seconds, phase by phase; and, while somebody records, the spans within the phases.

A span marks where a piece of work begins and ends: a phase, one optimisation step, its forward
pass. Spans nest. They are noted only within `recording`; elsewhere a mark looks one variable up and
does nothing, so that the marks may stay in the code that they measure.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar, cast

_F = TypeVar("_F", bound=Callable[..., Any])
_T = TypeVar("_T")
_DOING_NOTHING = contextlib.nullcontext()


class Timings(dict[str, float]):
    """Seconds by phase name, in the order in which the phases first ran."""

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time of a ``with`` block to the phase, also where the block raises.

        The phase is a span too. Spans within it are not phases: they add nothing here.
        """
        self.setdefault(name, 0.0)
        start = time.perf_counter()
        try:
            with span(name):
                yield
        finally:
            self[name] += time.perf_counter() - start

    @property
    def total(self) -> float:
        """Sum over all phases, in seconds."""
        return sum(self.values())


@dataclasses.dataclass
class Span:
    """A piece of work.

    Attributes:
        name: What was done.
        depth: How many spans it lies in.
        start: When it began, in seconds of `time.perf_counter`.
        end: When it ended.
        details: Numbers that belong to it, e.g. tokens and operations.
    """

    name: str
    depth: int
    start: float
    end: float
    details: dict[str, Any]

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.start


class Recorder:
    """Notes spans.

    Attributes:
        spans: All spans that have ended or still run, in the order of their beginnings.
        settle: Called before every look at the clock: on a GPU it waits for the device, or the
            work would count where it is waited for, not where it was asked for.
    """

    def __init__(self, settle: Callable[[], object] = lambda: None) -> None:
        """Begins with no span."""
        self.spans: list[Span] = []
        self.settle = settle
        self._depth = 0

    @contextlib.contextmanager
    def span(self, name: str, details: Mapping[str, Any]) -> Iterator[None]:
        """Notes a ``with`` block as a span, also where the block raises."""
        self.settle()
        now = time.perf_counter()
        noted = Span(name, self._depth, now, now, dict(details))
        self.spans.append(noted)
        self._depth += 1
        try:
            yield
        finally:
            self.settle()
            noted.end = time.perf_counter()
            self._depth -= 1


_recorder: contextvars.ContextVar[Recorder | None] = contextvars.ContextVar(
    "easyedit_fast_recorder", default=None
)


@contextlib.contextmanager
def recording(recorder: Recorder) -> Iterator[Recorder]:
    """Lets a recorder note all spans of this thread for the time of a ``with`` block."""
    token = _recorder.set(recorder)
    try:
        yield recorder
    finally:
        _recorder.reset(token)


def span(name: str, **details: Any) -> contextlib.AbstractContextManager[None]:
    """A ``with`` block that is noted where somebody records."""
    recorder = _recorder.get()
    return _DOING_NOTHING if recorder is None else recorder.span(name, details)


def each(
    name: str, items: Iterable[_T], details: Callable[[_T], Mapping[str, Any]] | None = None
) -> Iterator[_T]:
    """The items of a loop, whose every round is a span.

    Args:
        name: Name of the spans.
        items: What the loop goes over.
        details: Gives what is noted of a round, by its item; called only where somebody records.
    """
    for item in items:
        noted = details(item) if details and _recorder.get() else {}
        with span(name, **noted):
            yield item


def spanned(
    name: str, details: Callable[..., Mapping[str, Any]] | None = None
) -> Callable[[_F], _F]:
    """Makes every call of a function a span.

    Args:
        name: Name of the spans.
        details: Gives what is noted of a call, by its arguments; called only where somebody
            records.
    """

    def decorate(function: _F) -> _F:
        @functools.wraps(function)
        def noted(*args: Any, **kwargs: Any) -> Any:
            if _recorder.get() is None:
                return function(*args, **kwargs)
            with span(name, **(details(*args, **kwargs) if details else {})):
                return function(*args, **kwargs)

        return cast("_F", noted)

    return decorate
