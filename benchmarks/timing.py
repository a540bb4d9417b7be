"""Timing several ways to one result, in turn, so that the machine's moods meet all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def interleaved(
    ways: Mapping[str, Callable[[], Any]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Runs every way once a round; every other round runs them in the opposite order.

    Returns:
        The seconds of each way, round by round, and each way's last result.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    results: dict[str, Any] = {}
    for number in range(rounds):
        for name in list(ways) if number % 2 == 0 else list(ways)[::-1]:
            start = time.perf_counter()
            results[name] = ways[name]()
            seconds[name].append(time.perf_counter() - start)
            print(f"round {number + 1}: {name} {seconds[name][-1]:.3f} s", flush=True)
    return seconds, results


def median_ratio(slow: list[float], fast: list[float]) -> float:
    """The median over the rounds of one way's time in units of another's."""
    return statistics.median(one / other for one, other in zip(slow, fast, strict=True))


def spread(seconds: list[float], digits: int = 2) -> str:
    """Median and range, as text."""
    low, middle, high = min(seconds), statistics.median(seconds), max(seconds)
    return f"{middle:.{digits}f} ({low:.{digits}f} – {high:.{digits}f})"
