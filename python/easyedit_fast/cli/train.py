"""``easyedit-fast train``: trains the editor of a method for a model."""

from __future__ import annotations

import dataclasses
import math
import re
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from easyedit_fast.cli import options
from easyedit_fast.cli.destinations import require_folder_path
from easyedit_fast.cli.given import records_of
from easyedit_fast.cli.output import (
    print_json,
    print_line,
    print_table,
    print_warning,
    training_bar,
)
from easyedit_fast.cli.stopping import told_where_stopped
from easyedit_fast.errors import HparamsError, MissingPackageError, RecordError

if TYPE_CHECKING:
    from easyedit_fast.requests import EditRequest
    from easyedit_fast.training.loop import TrainingResult

_OF_THE_DEMO_MODEL = "TRAINING/{}/smollm2-135m"


def train(
    file: Annotated[
        list[str],
        typer.Option(
            help="Records to learn from: requests (JSON, JSONL), CounterFact, zsRE or KnowEdit. "
            "'FILE[100:200]' takes records 100 to 199 of it. Give the option again for more files."
        ),
    ],
    validation: Annotated[
        Optional[list[str]],  # noqa: UP045  typer reads the annotation at run time
        typer.Option(
            help="Records that say when the editor is best; unless given, a tenth of the others "
            "(200 at most) is kept for it."
        ),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Folder of the run, which goes on where it was; "
            "RESULTS_DIR/models/METHOD/MODEL unless given, as EasyEdit has it."
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(help="Method whose editor is trained: 'mend' or 'serac'.")
    ] = "mend",
    model: options.ModelOrFromHparams = None,
    hparams: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Hyperparameters: a YAML file, or a name such as TRAINING/MEND/llama-7b; unless "
            "given, the demo model has its own (TRAINING/METHOD/smollm2-135m), and another model "
            "the method's defaults."
        ),
    ] = None,
    max_iters: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            min=1,
            help="Iterations at most, in place of the hyperparameters'. A larger number makes "
            "a run longer, unless its learning rate decays (lr_decay).",
        ),
    ] = None,
    skip_bad: options.SkipBad = False,
    plot: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option("--plot/--no-plot", help="Draw curves.png; where matplotlib is installed."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin anew where the folder holds another run.")
    ] = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
    json: options.Json = False,
) -> None:
    """Train an editor. A run that was ended goes on when the same command is given again.

    Example: easyedit-fast train --method mend --model demo --file counterfact-train.json
    --validation counterfact-val.json --out run/ --plot

    Example: easyedit-fast train --method serac --model ./my-model --file counterfact-train.json
    --validation 'counterfact-val.json[:150]' --hparams my-serac.yaml --out run/
    """
    _require_plot(plot)
    if hparams is None and model in (None, "demo"):
        hparams = _OF_THE_DEMO_MODEL.format(method.upper())
    keys = _keys(method, hparams, max_iters)
    if dtype is None and keys.get("half"):
        dtype = "bfloat16"
    name = model or keys.get("model_name") or "demo"
    folder = out or Path(
        keys.get("results_dir") or "./results", "models", method.upper(), Path(name).name
    )
    require_folder_path(folder, "--out" if out else "results_dir")
    about = {"data": _names(file), "validation_data": _names(validation or [])}
    how = {"skip_bad": skip_bad, "tell": not json}
    requests, validated = _split(_numbered(file, **how), _numbered(validation or [], **how))
    from easyedit_fast.models.loading import device_of, load_model
    from easyedit_fast.processes import own_device, rank_and_ranks
    from easyedit_fast.trainers import train_editor

    first = rank_and_ranks()[0] == 0
    place = device or own_device() or device_of(keys, spread=False)
    with told_where_stopped(tell=first):
        loaded, tokenizer = load_model(name, device=place, dtype=dtype)
        with training_bar(quiet=json or not first) as (progress, cache_progress):
            try:
                result = train_editor(
                    loaded,
                    tokenizer,
                    [one.request for one in requests],
                    [one.request for one in validated],
                    folder,
                    method=method,
                    hparams=keys,
                    about=about,
                    overwrite=overwrite,
                    name_of=lambda place: str(requests[place]),
                    progress=progress,
                    cache_progress=cache_progress,
                )
            except RecordError as error:
                raise _placed(error, validated if error.among else requests) from error
    if first:
        _report(result, method, _plot(result, plot, f"{method} for {name}"), json=json)


def _require_plot(wanted: bool | None) -> None:
    if wanted:
        from easyedit_fast.plots import require_matplotlib

        require_matplotlib()


def _names(files: list[str]) -> list[str]:
    return [Path(name).name for name in files]


def _keys(method: str, hparams: str | None, max_iters: int | None) -> dict[str, Any]:
    """The hyperparameters that are given, checked before the model is loaded."""
    from easyedit_fast.hparams import find_hparams_file, named, read_yaml, require_method
    from easyedit_fast.methods import trainee_factory, training_keys

    trainee_factory(method)  # one that is unknown is named first
    keys: dict[str, Any] = {}
    if hparams is not None:
        folder = f"TRAINING/{method.upper()}"
        keys = read_yaml(find_hparams_file(hparams, folder))
        require_method(keys, method, hparams, folder)
    if max_iters is not None:
        keys["max_iters"] = max_iters
    with named(hparams or "given"):
        return training_keys(method, keys)


@dataclasses.dataclass(frozen=True)
class _Numbered:
    """A record, and where it is from."""

    request: EditRequest
    path: Path
    number: int

    def __str__(self) -> str:
        return f"record {self.number} of {self.path.name}"


def _numbered(files: list[str], *, skip_bad: bool, tell: bool) -> list[_Numbered]:
    found: list[_Numbered] = []
    for name in files:
        path, first, last = _slice(name)
        limit = None if last is None else last - first
        own = records_of(path, limit=limit, offset=first, skip_bad=skip_bad, tell=tell).requests
        for one in map(_Numbered, own, repeat(path), own.records):
            if skip_bad and not any(one.request.locality.values()):
                if tell:
                    print_warning(f"left out: {one}: has no locality prompt")
                continue
            found.append(one)
    return found


def _slice(name: str) -> tuple[Path, int, int | None]:
    """A file, the first record of it that is wanted, and the one after the last."""
    found = re.fullmatch(r"(?s)(.+)\[(\d*):(\d*)\]", name)
    if found is None or Path(name).exists():
        return Path(name), 0, None
    path, first, last = found.groups()
    start, end = int(first or 0), int(last) if last else None
    if end is not None and end <= start:
        raise typer.BadParameter(f"{name!r} takes no record; write the lower number first")
    return Path(path), start, end


def _placed(error: RecordError, records: list[_Numbered]) -> RecordError:
    """The same error with the record's number in its file."""
    if error.record is None:
        return error
    record = records[error.record]
    return error.at(record.number, among=record.path.name)


def _split(
    requests: list[_Numbered], validation: list[_Numbered]
) -> tuple[list[_Numbered], list[_Numbered]]:
    """The records to learn from and those of the validations, where none were given apart."""
    if validation:
        return requests, validation
    kept = min(200, len(requests) // 10)
    if not kept:
        raise HparamsError(
            f"{len(requests)} records are too few to keep a tenth for the validations; give more, "
            "or others as --validation"
        )
    # Every tenth: a file may be sorted.
    places = set(range(0, kept * 10, 10))
    return (
        [request for place, request in enumerate(requests) if place not in places],
        [request for place, request in enumerate(requests) if place in places],
    )


def _plot(result: TrainingResult, wanted: bool | None, title: str) -> Path | None:
    """Draws the curves; unless they were asked for, a line says what is missing for it."""
    from easyedit_fast.training.logs import read_log
    from easyedit_fast.training.plot import plot_training

    if wanted is False:
        return None
    path = result.folder / "curves.png"
    try:
        plot_training(read_log(result.folder), path, title)
    except MissingPackageError as error:
        if wanted:
            raise
        print_warning(f"no curves.png: {error}")
        return None
    return path


def _report(result: TrainingResult, method: str, picture: Path | None, *, json: bool) -> None:
    if json:
        print_json(
            {
                "editor": str(result.editor),
                "iterations": result.iterations,
                "resumed": result.resumed,
                "best_iteration": result.best_iteration,
                "stopped_early": result.stopped_early,
                "values": {k: v if math.isfinite(v) else None for k, v in result.values.items()},
                "seconds": result.seconds,
                "plot": None if picture is None else str(picture),
            }
        )
        return
    rows = [[name, value] for name, value in result.values.items()]
    print_table(f"Validation at iteration {result.best_iteration:,}, the best", ["", ""], rows)
    done = f"{result.iterations:,} iterations in {result.seconds:,.0f} s"
    resumed = f", {result.resumed:,} of them before" if result.resumed else ""
    print_line(f"{done}{resumed}; the editor: {result.editor}")
    if result.stopped_early:
        print_line(
            "ended before max_iters: early_stop_key was not better for early_stop_patience "
            "iterations; a larger max_iters changes nothing"
        )
    print_line(f"use it: easyedit-fast edit --method {method} --archive {result.editor} …")
