"""The parts of a profile: percentiles, the trace and memory."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from easyedit_fast.profiling import devices
from easyedit_fast.profiling.devices import Devices, PeakRecorder
from easyedit_fast.profiling.examples import example_requests
from easyedit_fast.profiling.results import Seconds
from easyedit_fast.profiling.trace import chrome_trace
from easyedit_fast.timings import Span, Timings, recording

MIB = 2**20


def test_percentiles() -> None:
    seconds = Seconds.of([0.1 * number for number in range(101)])
    found = (seconds.count, seconds.p50, seconds.p90, seconds.p99, seconds.mean)
    assert found == pytest.approx((101, 5.0, 9.0, 9.9, 5.0))


def check_trace(trace: dict[str, Any]) -> list[dict[str, Any]]:
    """Holds a trace to the format's rules; gives its complete events."""
    assert set(trace) == {"traceEvents", "displayTimeUnit"}
    names, events = [], []
    for event in trace["traceEvents"]:
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert isinstance(event["args"], dict)
        (names if event["ph"] == "M" else events).append(event)
    assert {event["name"] for event in names} == {"process_name", "thread_name"}
    opened: list[float] = []
    for event in events:
        assert event["ph"] == "X"
        assert event["ts"] >= 0
        assert event["dur"] >= 0
        end = event["ts"] + event["dur"]
        while opened and opened[-1] <= event["ts"]:
            opened.pop()
        # Viewers nest by time: an event lies wholly inside the one that is open.
        assert not opened or end <= opened[-1] + 1e-3
        opened.append(end)
    return events


def test_the_trace_nests_and_counts_in_microseconds() -> None:
    load = Span("load", 0, 10.0, 12.0, {})
    repeats = [
        [
            Span("optimise", 0, start, start + 1.0, {}),
            Span("step", 1, start, start + 0.5, {}),
            Span("head", 2, start + 0.25, start + 0.5, {"places": 3}),
            Span("solve", 0, start + 1.0, start + 1.5, {}),
        ]
        for start in (13.0, 15.0)
    ]
    events = check_trace(chrome_trace([load], repeats))
    assert [event["name"] for event in events] == ["load"] + [
        name
        for number in (1, 2)
        for name in (f"edit {number}", "optimise", "step", "head", "solve")
    ]  # fmt: skip
    assert (events[0]["ts"], events[0]["dur"]) == (0.0, 2e6)
    assert (events[1]["ts"], events[1]["dur"]) == (3e6, 1.5e6)
    assert events[4]["args"] == {"places": 3}


def test_memory_is_that_of_the_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    places = Devices.of(torch.nn.Linear(1, 1))
    if not places.reset_peak():
        pytest.skip("the peak of the resident memory cannot be reset here")
    timings = Timings()
    # Over 32 MiB each, glibc's largest mmap threshold: smaller ones may lie in memory that the
    # process has freed and still holds.
    with recording(PeakRecorder(places)) as recorder:
        with timings.phase("large"):
            kept = torch.ones(48 * MIB // 4)
            torch.ones(96 * MIB // 4)  # freed at once
        with timings.phase("small"), timings.phase("within"):
            torch.ones(40 * MIB // 4)
    del kept
    large, small, within = recorder.spans
    assert large.details["peak_memory"] == pytest.approx(144 * MIB, abs=4 * MIB)
    assert small.details["peak_memory"] == pytest.approx(88 * MIB, abs=4 * MIB)
    assert "peak_memory" not in within.details
    monkeypatch.setattr(devices, "_CLEAR_REFS", Path("/nonexistent/clear_refs"))
    with recording(PeakRecorder(places)) as recorder, timings.phase("large"):
        pass
    assert recorder.spans[0].details == {}


def test_the_examples_differ_and_change_something() -> None:
    requests = example_requests()
    assert len({request.prompt for request in requests}) == len(requests) == 16
    assert all(request.target_new != request.ground_truth for request in requests)
    for one, other in itertools.pairwise(requests):
        (probe,) = one.locality["neighborhood"]
        assert (probe.prompt, probe.ground_truth) == (other.prompt, other.ground_truth)
