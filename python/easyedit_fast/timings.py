"""Seconds, phase by phase."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Timings(dict[str, float]):
    """Seconds by phase name, in the order in which the phases first ran."""

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time of a ``with`` block to the phase, also where the block raises."""
        self.setdefault(name, 0.0)
        start = time.perf_counter()
        try:
            yield
        finally:
            self[name] += time.perf_counter() - start

    @property
    def total(self) -> float:
        """Sum over all phases, in seconds."""
        return sum(self.values())
