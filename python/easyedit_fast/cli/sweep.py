"""``easyedit-fast sweep``: the same records at several layers, in both second-moment modes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from easyedit_fast.cli import options
from easyedit_fast.cli.destinations import require_folder_path
from easyedit_fast.cli.given import editor_of, records_of
from easyedit_fast.cli.output import (
    phase_progress,
    print_json,
    print_line,
    print_table,
    print_timings,
    print_warning,
)
from easyedit_fast.errors import MissingPackageError
from easyedit_fast.failures import numbered

if TYPE_CHECKING:
    from easyedit_fast.data import Corpus
    from easyedit_fast.metrics import Estimate
    from easyedit_fast.sweeps import SweepResult


def sweep(
    file: Annotated[
        Path, typer.Option(help="Records: requests (JSON, JSONL), CounterFact, zsRE, KnowEdit.")
    ],
    layers: Annotated[str, typer.Option(help="Layers to compare, e.g. 3,5,9 or 2-8.")],
    out: Annotated[
        Path,
        typer.Option(help="Folder for sweep.csv, sweep.json and sweep.png; goes on where it was."),
    ],
    more_text: Annotated[
        Optional[list[Path]],  # noqa: UP045  typer reads the annotation at run time
        typer.Argument(metavar="[FILE]...", help="More text files."),
    ] = None,
    model: options.ModelOrFromHparams = None,
    modes: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="'full' (second moment C), 'simplified' (C = I), or both with a comma; both, "
            "where every layer has statistics."
        ),
    ] = None,
    limit: options.Limit = None,
    offset: options.Offset = 0,
    skip_bad: options.SkipBad = False,
    hparams: options.Hparams = None,
    preset: options.Preset = None,
    second_moment: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Second-moment statistics (.npz); '{}' stands for the layer's number."),
    ] = None,
    text: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(
            metavar="FILE...",
            help="Texts from which statistics are collected for the layers that have none.",
        ),
    ] = None,
    generate: Annotated[bool, typer.Option(help="Score greedy generations too.")] = True,
    plot: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option("--plot/--no-plot", help="Draw sweep.png; where matplotlib is installed."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin anew where the folder holds a sweep.")
    ] = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
    json: options.Json = False,
) -> None:
    """Compare layers and second-moment modes: records edited alone, at each layer in each mode.

    Example: easyedit-fast sweep --model demo --file counterfact.json --limit 50
    --layers 3,5,9,15,21 --text wiki.txt --out sweep/
    """
    require_folder_path(out, "--out")
    if plot:
        from easyedit_fast.plots import require_matplotlib

        require_matplotlib()
    corpus = _corpus([*(text or []), *(more_text or [])])
    requests = records_of(file, limit=limit, offset=offset, skip_bad=skip_bad).requests
    chosen = options.layer_numbers(layers)
    statistics = second_moment or _in_file(hparams).get("second_moment")
    # The sweep itself reads statistics, a layer at a time.
    overrides = {"layers": chosen, "mom2_adjustment": False, "second_moment": None}
    editor = editor_of(model, "rome", hparams, preset, overrides, device=device, dtype=dtype)
    from easyedit_fast.sweeps import sweep as run

    with phase_progress(quiet=json) as progress, numbered(requests.records):
        result = run(
            editor,
            requests,
            chosen,
            None if modes is None else [mode.strip() for mode in modes.split(",")],
            second_moment=statistics,
            text=corpus,
            folder=out,
            overwrite=overwrite,
            generate=generate,
            progress=progress,
        )
    picture = _plot(result, out / "sweep.png", plot)
    files = [out / "sweep.csv", out / "sweep.json", *([picture] if picture else [])]
    if json:
        print_json({**result.to_dict(), "files": [str(path) for path in files]})
    else:
        _print(result)
        print_line(f"written: {', '.join(map(str, files))}")


def _in_file(hparams: str | None) -> dict[str, Any]:
    from easyedit_fast.hparams import find_hparams_file, read_yaml

    return {} if hparams is None else read_yaml(find_hparams_file(hparams))


def _corpus(texts: list[Path]) -> Corpus | None:
    from easyedit_fast.data import TextFiles

    return TextFiles.of(*texts) if texts else None


def _plot(result: SweepResult, path: Path, wanted: bool | None) -> Path | None:
    """Draws the plot; unless it was asked for, a line says what is missing for it."""
    if wanted is False:
        return None
    try:
        result.plot(path)
    except MissingPackageError as error:
        if wanted:
            raise
        print_warning(f"no sweep.png: {error}")
        return None
    return path


def _print(result: SweepResult) -> None:
    from easyedit_fast.sweeps.rows import GENERATED, SECTIONS

    for prefix, title in (("", "Teacher-forced"), (GENERATED, "Generated")):
        names = [
            name for name in SECTIONS if any(prefix + name in row.records for row in result.rows)
        ]
        if not names:
            continue
        lines: list[tuple[object, str, dict[str, Estimate]]] = [
            *((row.layer, row.mode, row.scores) for row in result.rows),
            ("", "unedited", result.unedited),
            *((layer, "difference", scores) for layer, scores in result.differences.items()),
        ]
        cells = [
            [layer, what, *(_cell(scores.get(prefix + name)) for name in names)]
            for layer, what, scores in lines
        ]
        print_table(title, ["layer", "mode", *names], cells)
    costs = [[row.layer, row.mode, row.steps, row.update_norm, row.seconds] for row in result.rows]
    print_table("An edit, in the mean", ["layer", "mode", "steps", "‖Δ‖", "seconds"], costs)
    print_timings(result.timings)
    if result.differences:
        print_line("difference: full - simplified, record by record")


def _cell(score: Estimate | None) -> str:
    """The mean and its 95 % interval."""
    return "" if score is None else f"{score.mean:.2f} ({score.low:.2f}–{score.high:.2f})"
