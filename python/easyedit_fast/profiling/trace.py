"""Spans as a trace that chrome://tracing and Perfetto open.

The form is the JSON object of Google's "Trace Event Format": complete events (``"ph": "X"``) with
begin and duration in microseconds; viewers nest those of one thread by their times.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from easyedit_fast.timings import Span

_PROCESS, _THREAD = 1, 1


def chrome_trace(before: Sequence[Span], repeats: Sequence[Sequence[Span]]) -> dict[str, Any]:
    """The trace of some repeats of an edit.

    Args:
        before: Spans from before the repeats.
        repeats: The spans of each repeat; each is put into an event ``edit 1``, ``edit 2`` and so
            on.

    Returns:
        The object that the file holds.
    """
    spans = [*before, *(span for repeat in repeats for span in repeat)]
    origin = min((span.start for span in spans), default=0.0)
    wholes = [
        Span(f"edit {number}", 0, repeat[0].start, max(span.end for span in repeat), {})
        for number, repeat in enumerate(repeats, start=1)
        if repeat
    ]
    events = [_event(span, origin) for span in sorted([*wholes, *spans], key=_outer_first)]
    names = [("process_name", "easyedit-fast"), ("thread_name", "edits")]
    return {"traceEvents": [*(_name(*pair) for pair in names), *events], "displayTimeUnit": "ms"}


def _outer_first(span: Span) -> tuple[float, float]:
    return span.start, -span.end


def _event(span: Span, origin: float) -> dict[str, Any]:
    return {
        "name": span.name,
        "cat": "phase" if span.depth == 0 else "part",
        "ph": "X",
        "ts": (span.start - origin) * 1e6,
        "dur": span.seconds * 1e6,
        "pid": _PROCESS,
        "tid": _THREAD,
        "args": span.details,
    }


def _name(kind: str, name: str) -> dict[str, Any]:
    """An event that names the process or the thread."""
    return {"name": kind, "ph": "M", "pid": _PROCESS, "tid": _THREAD, "args": {"name": name}}
