"""Phases add up by name, and spans are noted where somebody records, and only there."""

from __future__ import annotations

import itertools

import pytest

from easyedit_fast import timings as module
from easyedit_fast.timings import Recorder, Timings, each, recording, span, spanned


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock is one second after the one before."""
    ticks = itertools.count()
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(ticks)))


def outline(recorder: Recorder) -> list[tuple[int, str]]:
    return [(noted.depth, noted.name) for noted in recorder.spans]


def test_a_phase_adds_up_also_where_it_raises() -> None:
    timings = Timings()
    with timings.phase("trunk"):
        pass
    with timings.phase("solve"):
        pass
    with pytest.raises(KeyError), timings.phase("trunk"):
        raise KeyError
    assert list(timings.items()) == [("trunk", 2.0), ("solve", 1.0)]
    assert timings.total == 3.0


def test_spans_within_a_phase_are_nested_and_not_counted_twice() -> None:
    timings = Timings()
    with recording(Recorder()) as recorder, timings.phase("optimise"):
        for step in each("step", range(5), lambda step: {"number": step}):
            with span("forward", tokens=7):
                pass
            if step == 1:
                break
    assert outline(recorder) == [
        (0, "optimise"),
        (1, "step"),
        (2, "forward"),
        (1, "step"),
        (2, "forward"),
    ]
    assert set(timings) == {"optimise"}
    outer, *inner = recorder.spans
    assert all(outer.start < part.start < part.end < outer.end for part in inner)
    details = [part.details for part in inner]
    assert details == [{"number": 0}, {"tokens": 7}, {"number": 1}, {"tokens": 7}]
    # The round that ended with a break has an end too: that of the second span in it comes first.
    assert inner[3].end < inner[2].end
    assert [part.seconds for part in inner] == [3.0, 1.0, 3.0, 1.0]


def test_a_decorated_function_is_a_span_with_details_of_its_arguments() -> None:
    @spanned("double", lambda number: {"number": number})
    def double(number: int) -> int:
        """Twice."""
        if number < 0:
            raise ValueError
        return 2 * number

    with recording(Recorder()) as recorder:
        assert double(4) == 8
        with pytest.raises(ValueError):  # noqa: PT011
            double(-1)
        assert double(number=3) == 6
    assert double.__doc__ == "Twice."
    assert outline(recorder) == [(0, "double")] * 3
    assert [noted.details for noted in recorder.spans] == [{"number": n} for n in (4, -1, 3)]
    assert all(noted.seconds == 1.0 for noted in recorder.spans)


def test_where_nobody_records_no_clock_is_read_and_no_details_are_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        pytest.fail("computed although nobody records")

    monkeypatch.setattr(module.time, "perf_counter", refuse)
    called = spanned("call", refuse)(lambda number: number)
    assert [called(number) for number in each("loop", range(3), refuse)] == [0, 1, 2]
    with span("block"):
        pass


def test_the_device_is_waited_for_at_both_ends_of_a_span() -> None:
    told: list[str] = []
    with recording(Recorder(lambda: told.append("settled"))), span("work"):
        told.append("work")
    assert told == ["settled", "work", "settled"]


def test_recording_ends_with_its_block_and_the_outer_one_goes_on() -> None:
    with recording(Recorder()) as outer:
        with pytest.raises(ValueError), recording(Recorder()) as inner, span("inner"):  # noqa: PT011
            raise ValueError
        with span("outer"):
            pass
    with span("nobody"):
        pass
    assert outline(inner) == [(0, "inner")]
    assert outline(outer) == [(0, "outer")]
