"""What a profile holds: seconds, shares and bytes, and how they are written down."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from easyedit_fast.files import write_whole
from easyedit_fast.profiling.trace import chrome_trace
from easyedit_fast.timings import Span

OUTSIDE = "other"
WHOLE = "whole edit"


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Durations of the same piece of work, measured several times.

    Attributes:
        count: How many times.
        p50: The median; half of them took less.
        p90: Nine tenths took less.
        p99: 99 in 100 took less; with few measurements about the longest.
        mean: Their mean.
    """

    count: int
    p50: float
    p90: float
    p99: float
    mean: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Seconds:
        """Of at least one duration; percentiles lie between two of them, linearly."""
        p50, p90, p99 = (float(value) for value in np.percentile(seconds, [50, 90, 99]))
        return cls(len(seconds), p50, p90, p99, float(np.mean(seconds)))


@dataclasses.dataclass(frozen=True)
class Phase:
    """One phase of an edit.

    Attributes:
        name: Its name, `OUTSIDE` or `WHOLE`.
        seconds: What it took, one value a repeat.
        share: Of the whole edit, by the means.
        peak_memory: The most bytes above what was held before the edit; None where unknown.
    """

    name: str
    seconds: Seconds
    share: float
    peak_memory: int | None


@dataclasses.dataclass(frozen=True)
class Step:
    """One optimisation step of one batch.

    Attributes:
        seconds: All of it.
        forward: Its forward pass.
        backward: Its backward pass and the optimiser; 0 in a batch's last step, which only looks
            at the loss.
        operations: Operations of both passes, pads included.
        needed: The same without pads.
    """

    seconds: float
    forward: float
    backward: float
    operations: float
    needed: float

    @classmethod
    def mean(cls, steps: Sequence[Step]) -> Step:
        """The mean of the same step in several repeats."""
        return cls(*np.mean([dataclasses.astuple(step) for step in steps], axis=0).tolist())


@dataclasses.dataclass(frozen=True)
class Steps:
    """The optimisation steps of all repeats.

    Attributes:
        a_repeat: Steps of all batches in one repeat.
        seconds: A step.
        forward: Its forward pass.
        backward: Its backward pass and the optimiser; None where no step has one.
        operations: Operations of a step in the mean, pads included.
        needed: The same without pads: what no way to compute the step can save.
        rate: Operations a second that were reached, pads included.
        reachable: Operations a second of a large matrix product on the same device.
        floor: Seconds of the needed operations at the reachable rate.
        each: Step by step in the order of a repeat, each the mean over the repeats.
    """

    a_repeat: float
    seconds: Seconds
    forward: Seconds
    backward: Seconds | None
    operations: float
    needed: float
    rate: float
    reachable: float
    floor: float
    each: list[Step]


@dataclasses.dataclass(frozen=True)
class BatchSize:
    """Editing, without evaluation, in batches of one size.

    Attributes:
        batch_size: Requests in a batch.
        seconds: A batch.
        seconds_per_edit: Of all batches, divided by all requests in them.
        edits_per_second: Its inverse.
        peak_memory: The most bytes above what was held before the batch; None where unknown.
    """

    batch_size: int
    seconds: Seconds
    seconds_per_edit: float
    edits_per_second: float
    peak_memory: int | None


@dataclasses.dataclass(frozen=True)
class Profile:
    """Where the time and the memory of edits went.

    Attributes:
        settings: What was measured: model, device, dtype, threads, requests, repeats and so on.
        once: Seconds of what is done once, not at each edit: ``load`` where it was measured, and
            ``first edit``, the warm-up.
        phases: A row a phase, then `OUTSIDE` and `WHOLE`.
        steps: The optimisation steps; None where the method has none.
        batches: A row a batch size.
        before: Spans from before the repeats, e.g. ``load``.
        repeats: The spans of each repeat.
    """

    settings: dict[str, Any]
    once: dict[str, float]
    phases: list[Phase]
    steps: Steps | None
    batches: list[BatchSize]
    before: list[Span]
    repeats: list[list[Span]]

    @property
    def edits_per_second(self) -> float:
        """Requests a second of the repeats, evaluation included."""
        return float(self.settings["requests"] / self.phases[-1].seconds.mean)

    def to_dict(self) -> dict[str, Any]:
        """All but the spans as plain JSON values."""
        return {
            "settings": self.settings,
            "once": self.once,
            "phases": [dataclasses.asdict(phase) for phase in self.phases],
            "edits_per_second": self.edits_per_second,
            "steps": None if self.steps is None else dataclasses.asdict(self.steps),
            "batches": [dataclasses.asdict(row) for row in self.batches],
        }

    def save(self, folder: Path) -> dict[str, Path]:
        """Writes ``profile.json`` and ``trace.json``; the folder is made where it is not there.

        Returns:
            Their paths by what they hold.
        """
        folder.mkdir(parents=True, exist_ok=True)
        paths = {"profile": folder / "profile.json", "trace": folder / "trace.json"}
        for path, value in (
            (paths["profile"], self.to_dict()),
            (paths["trace"], chrome_trace(self.before, self.repeats)),
        ):
            text = json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False)
            write_whole(path, f"{text}\n".encode())
        return paths
