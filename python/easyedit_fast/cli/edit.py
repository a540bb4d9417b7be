"""``easyedit-fast edit``: edits a model, and saves the edit or the edited model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from easyedit_fast.cli import options
from easyedit_fast.cli.destinations import (
    require_file_path,
    require_folder_path,
    require_new_folder,
    require_other_files,
    require_results_path,
)
from easyedit_fast.cli.given import (
    batch_size_of,
    editor_of,
    overrides_of,
    records_unless_single,
    single_request,
)
from easyedit_fast.cli.memory import print_added, told_of_added
from easyedit_fast.cli.output import (
    edit_progress,
    print_json,
    print_line,
    print_summary,
    print_table,
    print_timings,
    print_warning,
)

if TYPE_CHECKING:
    from easyedit_fast.editor import Editor
    from easyedit_fast.requests import EditRequest
    from easyedit_fast.results import EditResult
    from easyedit_fast.runs import Run

_ROWS_SHOWN = 10


def edit(
    model: options.ModelOrFromHparams = None,
    method: options.Method = "rome",
    prompt: options.Prompt = None,
    subject: options.Subject = None,
    target: options.Target = None,
    file: options.File = None,
    limit: options.Limit = None,
    offset: options.Offset = 0,
    skip_bad: options.SkipBad = False,
    isolated: options.Isolated = False,
    sequential: options.Sequential = None,
    batch_size: options.BatchSize = "auto",
    hparams: options.Hparams = None,
    preset: options.Preset = None,
    layers: options.Layers = None,
    second_moment: options.SecondMoment = None,
    archive: options.Archive = None,
    threshold: options.Threshold = None,
    memory: options.Memory = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    evaluate: Annotated[bool, typer.Option(help="Score before and after the edit.")] = True,
    out: Annotated[
        Optional[Path],  # noqa: UP045  typer reads the annotation at run time, on Python 3.10 too
        typer.Option(
            help="Write the results of --isolated edits to this file as they come, a JSON line "
            "a record; the same command goes on with it after it was ended."
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    save: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Save the edit (.safetensors; a new folder for several of them)."),
    ] = None,
    peft: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Save the edit as a PEFT (LoRA) adapter in this folder."),
    ] = None,
    save_model: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Save the whole edited model in this folder."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Edit facts inside a model.

    Example: easyedit-fast edit --model demo --prompt "The mother tongue of {} is"
    --subject "Danielle Darrieux" --target English --save edit.safetensors
    """
    if method.lower() == "serac" or memory is not None:
        _require_memory(method, memory, [save, peft, save_model], isolated=isolated)
    _require_fitting(
        file, out, peft, save_model, isolated=isolated, sequential=sequential, overwrite=overwrite
    )
    single = {"--prompt": prompt, "--subject": subject, "--target": target}
    records = records_unless_single(single, file, limit=limit, offset=offset, skip_bad=skip_bad)
    requests = [single_request(single)] if records is None else records.requests
    several = len(requests) > 1 and (isolated or sequential is not None)
    if out is None:
        (require_new_folder if several else require_file_path)(save, "--save")
    else:
        require_results_path(out, "--out", folder=save)
    (require_new_folder if several else require_folder_path)(peft, "--peft")
    require_other_files(
        {"--out": out, "--save": save},
        {"--file": file, "--second-moment": second_moment, "--archive": archive},
    )
    require_folder_path(save_model, "--save-model")
    overrides = overrides_of(method, layers, second_moment, archive, threshold)
    loading = {"device": device, "dtype": dtype, "memory": memory}
    editor = editor_of(model, method, hparams, preset, overrides, **loading)
    settings: dict[str, Any] = {
        "batch_size": batch_size_of(batch_size),
        "on_error": "skip" if skip_bad else "raise",
        "evaluate": evaluate,
    }
    numbers = [0] if records is None else records.requests.records
    result: EditResult | Run
    with edit_progress(quiet=json) as progress:
        if out is None or records is None:
            settings |= {"isolated": isolated, "sequential": sequential, "progress": progress}
            result = _edit(editor, requests, numbers, **settings)
            _save(result, numbers if isolated else None, save, peft, several=several)
        else:
            from easyedit_fast.runs import EditJob, run_records

            job = EditJob(editor, save=save, **settings)
            result = run_records(job, records, out, overwrite=overwrite, progress=progress)
            _warn_of_failures(line["error"] for line in result.lines if "error" in line)
    if save_model is not None:
        editor.save_model(save_model)
    paths = {"edit": save, "peft": peft, "model": save_model, "results": out}
    if memory is not None:
        paths["memory"] = memory
    saved = {name: None if path is None else str(path) for name, path in paths.items()}
    added = {}
    if memory is not None:
        ids, superseded = (_in_memory(result, what) for what in ("ids", "superseded"))
        added["memory"] = told_of_added(memory, ids, superseded)
    if json:
        print_json({**_report(result, numbers), "saved": saved, **added})
        return
    _print(result)
    _print_saved(saved, method)
    if memory is not None:
        print_added(memory, added["memory"])


def _require_memory(
    method: str, memory: Path | None, saved: Sequence[Path | None], *, isolated: bool
) -> None:
    """Refuses what does not go with edits that lie in a memory."""
    if method.lower() != "serac":
        from easyedit_fast.methods import method_factory

        method_factory(method)  # one that is unknown is named first
        raise typer.BadParameter("--memory is for --method serac: add that, or leave --memory out")
    if any(path is not None for path in saved):
        raise typer.BadParameter(
            "SERAC changes no weight: --save, --peft and --save-model have nothing to save; keep "
            "the edits with --memory FILE"
        )
    if isolated and memory is not None:
        raise typer.BadParameter("isolated edits go into no memory; leave --memory out")
    require_file_path(memory, "--memory")


def _require_fitting(
    file: Path | None,
    out: Path | None,
    peft: Path | None,
    save_model: Path | None,
    *,
    isolated: bool,
    sequential: int | None,
    overwrite: bool,
) -> None:
    """Refuses options that do not go together."""
    if isolated and (save_model is not None or sequential is not None):
        option = "--sequential" if save_model is None else "--save-model"
        raise typer.BadParameter(
            f"isolated edits leave the model as it is; {option} needs --together"
        )
    if out is not None and (file is None or not isolated or peft is not None):
        raise typer.BadParameter("--out is for --isolated edits of a --file, without --peft")
    if overwrite and out is None:
        raise typer.BadParameter("--overwrite is for the results; name their file with --out")


def _edit(
    editor: Editor, requests: Sequence[EditRequest], numbers: Sequence[int], **settings: Any
) -> EditResult:
    """The edit of some records, whose numbers in the file name them in errors and warnings."""
    from easyedit_fast.failures import numbered

    with numbered(numbers):
        result = editor.edit(requests, **settings)
    failures = {
        numbers[place]: error.at(numbers[place]) for place, error in result.failures.items()
    }
    _warn_of_failures(failures.values())
    if not result.edits:
        raise next(iter(failures.values()))
    return result


def _in_memory(result: EditResult | Run, what: str) -> list[int]:
    """The ``ids`` of edits that lie in a memory, or of those that they have ``superseded``."""
    return [id_ for edit_ in result.to_dict()["edits"] for id_ in edit_[what]]


def _report(result: EditResult | Run, numbers: Sequence[int]) -> dict[str, Any]:
    """The JSON object; records that failed are named by their numbers in the file."""
    from easyedit_fast.results import EditResult

    report = result.to_dict()
    if isinstance(result, EditResult):
        failures = {place: error.at(numbers[place]) for place, error in result.failures.items()}
        report["failures"] = {numbers[place]: str(error) for place, error in failures.items()}
        report["metrics"] = [
            {**metrics, "error": str(failures[place])} if place in failures else metrics
            for place, metrics in enumerate(result.metrics)
        ]
    return report


def _warn_of_failures(errors: Iterable[object]) -> None:
    for error in errors:
        print_warning(f"left out: {error}")


def _save(
    result: EditResult,
    numbers: Sequence[int] | None,
    save: Path | None,
    peft: Path | None,
    *,
    several: bool,
) -> None:
    """Saves the edits, by the number of the record in the file where each has one of its own."""
    places = range(len(result.edits))
    named = places if numbers is None else [numbers[place] for place in result.finished]
    for place, edit_ in zip(named, result.edits, strict=True):
        if save is not None:
            path = save / f"edit-{place:05d}.safetensors" if several else save
            if several:
                save.mkdir(parents=True, exist_ok=True)
            edit_.save(path)
        if peft is not None:
            edit_.to_peft(peft / f"edit-{place:05d}" if several else peft)


def _print(result: EditResult | Run) -> None:
    for key, value in result.settings.items():
        print_line(f"{key}: {value}")
    scored = [metrics for metrics in result.metrics if "post" in metrics]
    rows = []
    for metrics in scored[:_ROWS_SHOWN]:
        before, after = (
            metrics[when].get("generated", {}).get("rewrite_text", [""])[0]
            for when in ("pre", "post")
        )
        request = metrics["requested_rewrite"]
        rows.append([request["prompt"], request["target_new"], before, after])
    if rows:
        title = "Edits" if len(scored) <= len(rows) else f"The first {len(rows)} edits"
        print_table(title, ["prompt", "target", "before", "after"], rows)
    print_summary(result.summary)
    print_timings(result.timings)


def _print_saved(saved: dict[str, str | None], method: str) -> None:
    for name, path in saved.items():
        if path is not None:
            print_line(f"saved: {name} in {path}")
    if not any(saved.values()):
        keeping = "--save, --peft or --save-model"
        if method.lower() == "serac":
            keeping = "--memory FILE"
        print_line(f"nothing was saved; {keeping} keeps the edit")
