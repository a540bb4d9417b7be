"""Measures edits: some repeats of the same edit, then batches of several sizes."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from easyedit_fast.errors import RequestError
from easyedit_fast.failures import numbered
from easyedit_fast.models.memory import BatchSize as BatchSizeOrAuto
from easyedit_fast.profiling.devices import Devices, PeakRecorder
from easyedit_fast.profiling.results import (
    OUTSIDE,
    WHOLE,
    BatchSize,
    Phase,
    Profile,
    Seconds,
    Step,
    Steps,
)
from easyedit_fast.profiling.steps import StepReader
from easyedit_fast.timings import Recorder, Span, recording

if TYPE_CHECKING:
    from easyedit_fast.editor import Editor
    from easyedit_fast.methods import Progress
    from easyedit_fast.requests import EditRequest


def profile_edits(
    editor: Editor,
    requests: Sequence[EditRequest],
    *,
    repeats: int = 5,
    batch_sizes: Sequence[int] = (),
    isolated: bool = False,
    evaluate: bool = True,
    before: Sequence[Span] = (),
    progress: Progress | None = None,
) -> Profile:
    """Edits the same requests again and again, and tells where time and memory went.

    First comes a warm-up, then a run for the memory, then the repeats, whose times count. Every run
    is reverted, so that each starts from the same weights and the model is left as it was. Batches
    of the given sizes follow, without evaluation: all sizes go over the same requests.

    On a GPU the repeats wait for the device at both ends of each span, so that the times of the
    parts are true; that slows the whole down a little. The batches wait at their ends alone.

    Args:
        editor: The editor.
        requests: The requests; edited in one call, together unless `isolated`.
        repeats: Timed runs, and batches of a size at least.
        batch_sizes: Requests in a batch; none skips that part.
        isolated: As for `Editor.edit`.
        evaluate: Whether the repeats score before and after, as `Editor.edit` does.
        before: Spans that come before, e.g. the loading of the model, for table and trace.
        progress: Called with the number of requests that were edited, and will be.

    Raises:
        RequestError: A batch size is larger than the number of requests, or a request cannot be
            used.
    """
    for size in batch_sizes:
        if size > len(requests):
            raise RequestError(
                f"a batch of {size} needs {size} requests, and there are {len(requests)}; give "
                "more requests or smaller batches"
            )
    runner = _Runner(
        editor,
        isolated=isolated,
        progress=progress,
        planned=_planned(len(requests), repeats, batch_sizes),
    )
    warm_up = runner.run(requests, Recorder(), evaluate=evaluate)
    memory = runner.run(requests, PeakRecorder(runner.devices), evaluate=evaluate)
    runs = [
        runner.run(requests, Recorder(runner.devices.settle), evaluate=evaluate)
        for _ in range(repeats)
    ]
    return Profile(
        settings=_settings(runner, repeats, len(requests), evaluate=evaluate),
        once={**{span.name: span.seconds for span in before}, "first edit": warm_up.seconds},
        phases=_phases(runs, memory.peaks),
        steps=_steps(runner, runs),
        batches=[_batch_size(runner, requests, size, repeats) for size in batch_sizes],
        before=list(before),
        repeats=[run.spans for run in runs],
    )


@dataclasses.dataclass(frozen=True)
class _Run:
    """One call of `Editor.edit`.

    Attributes:
        requests: How many it edited.
        seconds: What it took, without taking the edit out again.
        phases: Seconds by phase.
        spans: Its spans.
    """

    requests: int
    seconds: float
    phases: dict[str, float]
    spans: list[Span]

    @property
    def peaks(self) -> dict[str, int]:
        """Peak memory by phase, where it was measured."""
        found: dict[str, int] = {}
        for span in self.spans:
            if "peak_memory" in span.details:
                found[span.name] = max(found.get(span.name, 0), span.details["peak_memory"])
        return found


class _Runner:
    """Makes edits and takes them out again."""

    def __init__(
        self, editor: Editor, *, isolated: bool, progress: Progress | None, planned: int
    ) -> None:
        self.editor = editor
        self.devices = Devices.of(editor.model)
        self.isolated = isolated
        self._progress, self._planned, self._done = progress, planned, 0

    def run(
        self,
        requests: Sequence[EditRequest],
        recorder: Recorder | None = None,
        *,
        batch_size: BatchSizeOrAuto = "auto",
        evaluate: bool = False,
    ) -> _Run:
        """One edit; its spans are noted where there is a recorder."""
        spans = contextlib.nullcontext() if recorder is None else recording(recorder)
        with spans, contextlib.ExitStack() as reverted_at_the_end:
            self.devices.settle()
            start = time.perf_counter()
            editing = self.editor.editing(
                requests, isolated=self.isolated, batch_size=batch_size, evaluate=evaluate
            )
            result = reverted_at_the_end.enter_context(editing)
            self.devices.settle()
            seconds = time.perf_counter() - start
        self._done += len(requests)
        if self._progress is not None:
            self._progress(self._done, self._planned)
        noted = [] if recorder is None else recorder.spans
        return _Run(len(requests), seconds, dict(result.timings), noted)


def _passes(requests: int, size: int, repeats: int) -> int:
    """How often all requests are edited, so that there are `repeats` batches at least."""
    return -(-repeats // (requests // size))


def _planned(requests: int, repeats: int, batch_sizes: Sequence[int]) -> int:
    """Requests that will be edited in all, one after the other or at once."""
    batches = sum(
        size + _passes(requests, size, repeats) * (requests // size) * size for size in batch_sizes
    )
    return (repeats + 2) * requests + batches


def _batch_size(
    runner: _Runner, requests: Sequence[EditRequest], size: int, repeats: int
) -> BatchSize:
    """Batches of one size; the first is measured for its memory and does not count."""

    def run(first: int, recorder: Recorder | None = None) -> _Run:
        with numbered(range(first, first + size)):
            return runner.run(requests[first : first + size], recorder, batch_size=size)

    memory = run(0, PeakRecorder(runner.devices))
    runs = [
        run(first)
        for _ in range(_passes(len(requests), size, repeats))
        for first in range(0, len(requests) - size + 1, size)
    ]
    seconds = sum(run.seconds for run in runs)
    edits = sum(run.requests for run in runs)
    return BatchSize(
        batch_size=size,
        seconds=Seconds.of([run.seconds for run in runs]),
        seconds_per_edit=seconds / edits,
        edits_per_second=edits / seconds,
        peak_memory=max(memory.peaks.values(), default=None),
    )


def _phases(runs: Sequence[_Run], peaks: Mapping[str, int]) -> list[Phase]:
    """The rows of the table, in the order in which the phases ran."""
    whole = [run.seconds for run in runs]
    by_name = {name: [run.phases.get(name, 0.0) for run in runs] for name in runs[0].phases}
    by_name[OUTSIDE] = [run.seconds - sum(run.phases.values()) for run in runs]
    by_name[WHOLE] = whole
    return [
        Phase(
            name=name,
            seconds=Seconds.of(seconds),
            share=sum(seconds) / sum(whole),
            peak_memory=max(peaks.values(), default=None) if name == WHOLE else peaks.get(name),
        )
        for name, seconds in by_name.items()
    ]


def _steps(runner: _Runner, runs: Sequence[_Run]) -> Steps | None:
    """The optimisation steps of all runs; None where there is none."""
    reader = StepReader(runner.editor.model, runner.editor.method.architecture)
    by_run = [list(reader.steps(run.spans)) for run in runs]
    steps = [step for of_run in by_run for step in of_run]
    if not steps:
        return None
    backward = [step.backward for step in steps if step.backward]
    needed = sum(step.needed for step in steps) / len(steps)
    operations = sum(step.operations for step in steps)
    reachable = runner.devices.matmul_rate(runner.editor.model.dtype)
    return Steps(
        a_repeat=len(steps) / len(runs),
        seconds=Seconds.of([step.seconds for step in steps]),
        forward=Seconds.of([step.forward for step in steps]),
        backward=Seconds.of(backward) if backward else None,
        operations=operations / len(steps),
        needed=needed,
        rate=operations / sum(step.seconds for step in steps),
        reachable=reachable,
        floor=needed / reachable,
        each=[Step.mean(same) for same in zip(*by_run, strict=False)],
    )


def _settings(runner: _Runner, repeats: int, requests: int, *, evaluate: bool) -> dict[str, Any]:
    """What was measured, as plain JSON values."""
    editor = runner.editor
    main = runner.devices.main
    return {
        "model": str(getattr(editor.model, "name_or_path", "")),
        "method": editor.method.name,
        **editor.method.settings(),
        "device": torch.cuda.get_device_name(main) if main.type == "cuda" else str(main),
        "dtype": str(editor.model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "requests": requests,
        "repeats": repeats,
        "isolated": runner.isolated,
        "evaluate": evaluate,
    }
