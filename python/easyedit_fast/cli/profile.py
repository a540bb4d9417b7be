"""``easyedit-fast profile``: where the time and the memory of an edit go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from easyedit_fast.cli import options
from easyedit_fast.cli.destinations import require_folder_path
from easyedit_fast.cli.given import (
    editor_of,
    overrides_of,
    records_unless_single,
    single_request,
)
from easyedit_fast.cli.output import (
    edit_progress,
    print_json,
    print_line,
    print_table,
    print_warning,
)
from easyedit_fast.errors import MissingPackageError

if TYPE_CHECKING:
    from easyedit_fast.profiling import Profile
    from easyedit_fast.profiling.results import BatchSize, Seconds, Steps
    from easyedit_fast.requests import EditRequest

_BATCH_SIZES = (1, 2, 4, 8, 16)
_MIB = 2**20
_SECONDS = ("p50", "p90", "p99", "mean")


def profile(
    model: options.ModelOrFromHparams = None,
    method: options.Method = "rome",
    prompt: options.Prompt = None,
    subject: options.Subject = None,
    target: options.Target = None,
    file: options.File = None,
    limit: Annotated[
        int, typer.Option(min=1, help="Records of the file at most; without one, of 16 examples.")
    ] = 4,
    offset: options.Offset = 0,
    isolated: options.Isolated = False,
    repeats: Annotated[int, typer.Option(min=1, help="Runs whose times count.")] = 5,
    batch_sizes: Annotated[
        Optional[str],  # noqa: UP045  typer reads the annotation at run time, on Python 3.10 too
        typer.Option(
            help="Requests a batch, e.g. 1,8,64, or 'none'; 1,2,4,8,16 where there are so many."
        ),
    ] = None,
    evaluate: Annotated[
        bool, typer.Option(help="Score before and after the edit, as 'edit' does.")
    ] = True,
    hparams: options.Hparams = None,
    preset: options.Preset = None,
    layers: options.Layers = None,
    second_moment: options.SecondMoment = None,
    archive: options.Archive = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder for profile.json, trace.json and the charts (PNG)."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Time an edit phase by phase and step by step, and batches of several sizes.

    The model is left as it was.

    Example: easyedit-fast profile --model demo --limit 8 --out profile/
    """
    single = {"--prompt": prompt, "--subject": subject, "--target": target}
    requests, numbers = _chosen(single, file, limit, offset)
    sizes = _sizes(batch_sizes, len(requests))
    require_folder_path(out, "--out")
    from easyedit_fast.failures import numbered
    from easyedit_fast.profiling import profile_edits
    from easyedit_fast.timings import Recorder, Timings, recording

    overrides = overrides_of(method, layers, second_moment, archive)
    with recording(Recorder()) as recorder, Timings().phase("load"):
        editor = editor_of(model, method, hparams, preset, overrides, device=device, dtype=dtype)
    with edit_progress(quiet=json) as progress, numbered(numbers):
        made = profile_edits(
            editor,
            requests,
            repeats=repeats,
            batch_sizes=sizes,
            isolated=isolated,
            evaluate=evaluate,
            before=recorder.spans,
            progress=progress,
        )
    saved = {} if out is None else _save(made, out)
    if json:
        print_json({**made.to_dict(), "saved": saved})
        return
    _print(made)
    for name, path in saved.items():
        print_line(f"saved: {name} in {path}")


def _chosen(
    single: dict[str, str | None], file: Path | None, limit: int, offset: int
) -> tuple[Sequence[EditRequest], Sequence[int]]:
    """Requests of the file, the one of the command line, or examples; and their numbers there."""
    if file is not None or any(value is not None for value in single.values()):
        records = records_unless_single(single, file, limit=limit, offset=offset, skip_bad=False)
        if records is None:
            return [single_request(single)], [0]
        return records.requests, records.requests.records
    from easyedit_fast.profiling.examples import example_requests

    examples = example_requests()
    if offset >= len(examples):
        raise typer.BadParameter(f"--offset {offset} leaves none of the {len(examples)} examples")
    places = range(len(examples))[offset:][:limit]
    return [examples[place] for place in places], places


def _sizes(text: str | None, requests: int) -> list[int]:
    """Batch sizes as a user writes them: ``1,8,64`` or ``none``."""
    if text is None:
        return [size for size in _BATCH_SIZES if size <= requests]
    if text == "none":
        return []
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"--batch-sizes {text!r} is no list of positive numbers")
    sizes = sorted({int(part) for part in parts})
    if sizes[-1] > requests:
        raise typer.BadParameter(
            f"--batch-sizes {sizes[-1]} needs as many requests, and there are {requests}; "
            "raise --limit, or give a larger --file"
        )
    return sizes


def _save(made: Profile, folder: Path) -> dict[str, str]:
    """Writes the files; charts that cannot be drawn are left out, with a line that says why."""
    from easyedit_fast.profiling.charts import save_charts

    paths = made.save(folder)
    try:
        paths.update(save_charts(made, folder))
    except MissingPackageError as error:
        print_warning(str(error))
    return {name: str(path) for name, path in paths.items()}


def _print(made: Profile) -> None:
    for key, value in made.settings.items():
        print_line(f"{key}: {value}")
    print_table(
        "Seconds of an edit, phase by phase",
        ["phase", *_SECONDS, "share", "peak memory, MiB"],
        [[row.name, *_four(row.seconds), row.share, _mib(row.peak_memory)] for row in made.phases],
    )
    once = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in made.once.items())
    print_line(f"{made.edits_per_second:.2f} edits a second; once: {once}")
    if made.steps is not None:
        _print_steps(made.steps)
    if made.batches:
        _print_batches(made.batches)


def _print_steps(steps: Steps) -> None:
    parts = {"whole step": steps.seconds, "forward": steps.forward, "backward": steps.backward}
    print_table(
        "Seconds of an optimisation step",
        ["part", *_SECONDS],
        [[name, *_four(seconds)] for name, seconds in parts.items() if seconds is not None],
    )
    pads = 1 - steps.needed / steps.operations
    print_line(
        f"{steps.a_repeat:g} steps; {steps.operations / 1e9:.2f} GFLOP a step ({pads:.0%} of it "
        f"pads) at {steps.rate / 1e9:.0f} GFLOP/s. A matrix product reaches "
        f"{steps.reachable / 1e9:.0f} GFLOP/s: the floor is {steps.floor:.3f} s a step."
    )


def _print_batches(rows: list[BatchSize]) -> None:
    print_table(
        "Batches, without evaluation",
        ["requests", *_SECONDS, "s an edit", "edits/s", "peak memory, MiB"],
        [
            [
                row.batch_size,
                *_four(row.seconds),
                row.seconds_per_edit,
                row.edits_per_second,
                _mib(row.peak_memory),
            ]
            for row in rows
        ],
    )


def _four(seconds: Seconds) -> list[float]:
    return [getattr(seconds, name) for name in _SECONDS]


def _mib(size: int | None) -> int | str:
    return "" if size is None else round(size / _MIB)
