"""``easyedit-fast evaluate``: scores of a method, of saved edits or of a model, on a data file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional, TypedDict

import typer

from easyedit_fast.cli import options
from easyedit_fast.cli.destinations import require_file_path, require_other_files
from easyedit_fast.cli.given import batch_size_of, editor_of, overrides_of, records_of
from easyedit_fast.cli.output import (
    edit_progress,
    json_text,
    print_json,
    print_line,
    print_scores,
    print_timings,
    print_warning,
)
from easyedit_fast.files import write_whole

if TYPE_CHECKING:
    from easyedit_fast.failures import OnError
    from easyedit_fast.runs import PerplexityText, ScoreJob, Scores

_TOKENS = 5_000


class _How(TypedDict):
    fluency: bool
    text: PerplexityText | None
    on_error: OnError


def evaluate(
    file: Annotated[
        Optional[Path],  # noqa: UP045  typer reads the annotation at run time, on Python 3.10 too
        typer.Option(
            "--file", "--data", help="Requests (JSON, JSONL), CounterFact, zsRE or KnowEdit."
        ),
    ] = None,
    model: options.ModelOrFromHparams = None,
    method: options.Method = "rome",
    limit: options.Limit = None,
    offset: options.Offset = 0,
    skip_bad: options.SkipBad = False,
    isolated: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option(
            "--isolated/--together",
            help="Each record in its own copy of the model (unless given), or all in one.",
        ),
    ] = None,
    sequential: options.Sequential = None,
    edit: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Score a saved edit on all records. Or a folder of edits: each on its own record, "
            "or with --together all of them in one model."
        ),
    ] = None,
    no_edit: Annotated[bool, typer.Option("--no-edit", help="Score the model as it is.")] = False,
    hparams: options.Hparams = None,
    preset: options.Preset = None,
    layers: options.Layers = None,
    second_moment: options.SecondMoment = None,
    archive: options.Archive = None,
    threshold: options.Threshold = None,
    batch_size: options.BatchSize = "auto",
    fluency: Annotated[
        bool, typer.Option("--fluency", help="Measure the n-gram entropy of generated texts.")
    ] = False,
    perplexity_text: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(
            help="Measure the perplexity on this text (.txt, .jsonl, .gz); may be given several "
            "times. Where each record has its own copy of the model, the first 10 of these."
        ),
    ] = None,
    perplexity_tokens: Annotated[
        int, typer.Option(min=1, help="Predicted tokens of the text at most.")
    ] = _TOKENS,
    results: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Write each record's scores to this file as they come, a JSON line a record; the "
            "same command goes on with it. Without --file: show the scores of this file alone."
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Write the scores to this file, as JSON."),
    ] = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    json: options.Json = False,
) -> None:
    """Score edits on a data file, each score with its count and 95 % interval.

    Edits each record in its own copy of the model; or all of them in one (--together,
    --sequential), or scores saved edits (--edit) or the model as it is (--no-edit).

    Example: easyedit-fast evaluate --model demo --file counterfact.json --limit 100
    --perplexity-text wiki.txt --results results.jsonl --out scores.json
    """
    require_file_path(out, "--out")
    require_file_path(results, "--results")
    read = {"--file": file, "--edit": edit, "--second-moment": second_moment, "--archive": archive}
    texts = {f"--perplexity-text {path}": path for path in perplexity_text or []}
    require_other_files({"--out": out}, {**read, **texts, "--results": results})
    require_other_files({"--results": results}, {**read, **texts})
    overrides = overrides_of(method, layers, second_moment, archive, threshold)
    of_method = {"hparams": hparams, "preset": preset, **overrides}
    modes = {"edit": edit, "no-edit": no_edit or None, "sequential": sequential}
    if file is None:
        others = {
            **modes,
            **of_method,
            "model": model,
            "limit": limit,
            "offset": offset or None,
            "skip-bad": skip_bad or None,
            "isolated/--together": isolated,
            "fluency": fluency or None,
            "perplexity-text": perplexity_text,
            "batch-size": None if batch_size == "auto" else batch_size,
            "overwrite": overwrite or None,
            "device": device,
            "dtype": dtype,
        }
        _tell(_saved(results, others), None, out, json)
        return
    _check(modes, of_method, isolated, results, overwrite=overwrite)
    size = batch_size_of(batch_size)
    how: _How = {
        "fluency": fluency,
        "text": _text(perplexity_text, perplexity_tokens),
        "on_error": "skip" if skip_bad else "raise",
    }
    # What cannot be read is told at the end, with what fails.
    records = records_of(file, limit=limit, offset=offset, skip_bad=skip_bad, tell=False)
    from easyedit_fast.runs import EditJob, score_apart, score_in_one_model

    loading = {"device": device, "dtype": dtype}
    job: EditJob | ScoreJob
    if edit is not None or no_edit:
        sized = {} if size == "auto" else {"batch_size": size}
        job = _score_job(model or "demo", edit, isolated, loading, **how, **sized)
    else:
        job = EditJob(editor_of(model, method, hparams, preset, overrides, **loading), size, **how)
    with edit_progress(quiet=json) as progress:
        if isinstance(job, EditJob) and _in_one_model(isolated, sequential):
            scores = score_in_one_model(
                job.editor,
                records,
                sequential=sequential,
                batch_size=size,
                progress=progress,
                **how,
            )
        else:
            scores = score_apart(job, records, results, overwrite=overwrite, progress=progress)
    _tell(scores, results, out, json)


def _check(
    modes: Mapping[str, Any],
    of_method: Mapping[str, Any],
    isolated: bool | None,
    results: Path | None,
    *,
    overwrite: bool,
) -> None:
    """Refuses options that exclude each other.

    Raises:
        typer.BadParameter: They do.
    """
    given = [f"--{mode}" for mode, value in modes.items() if value is not None]
    if isolated is not None and (modes["no-edit"] or (isolated and modes["sequential"])):
        given.append("--isolated" if isolated else "--together")
    if len(given) > 1:
        raise typer.BadParameter(f"give only one of {', '.join(given)}")
    saved = modes["edit"] is not None or modes["no-edit"] is not None
    if saved and any(value is not None for value in of_method.values()):
        raise typer.BadParameter(f"{given[0]} edits nothing; leave the method's options out")
    if results is not None and not saved and _in_one_model(isolated, modes["sequential"]):
        raise typer.BadParameter("--results is for records apart from each other; use --isolated")
    if overwrite and results is None:
        raise typer.BadParameter("--overwrite is for the results; name their file with --results")


def _in_one_model(isolated: bool | None, sequential: int | None) -> bool:
    return isolated is False or sequential is not None


def _text(files: list[Path] | None, tokens: int) -> PerplexityText | None:
    from easyedit_fast.data import TextFiles
    from easyedit_fast.runs import PerplexityText

    return PerplexityText(TextFiles.of(*files), tokens) if files else None


def _score_job(
    model: str, edit: Path | None, isolated: bool | None, loading: dict[str, Any], **options: Any
) -> ScoreJob:
    from easyedit_fast.evaluation import Evaluator
    from easyedit_fast.models.loading import load_model
    from easyedit_fast.runs import SavedEdits, ScoreJob

    edits = None if edit is None else SavedEdits.load(edit, isolated=isolated)
    return ScoreJob(Evaluator(*load_model(model, **loading)), edits, **options)


def _saved(results: Path | None, others: Mapping[str, Any]) -> Scores:
    """The scores of a results file alone.

    Raises:
        typer.BadParameter: There is none, or something is to be done.
    """
    from easyedit_fast.runs import saved_scores

    given = [f"--{name.replace('_', '-')}" for name, value in others.items() if value is not None]
    if results is None or given:
        reason = f"{given[0]} needs one" if given else "or --results alone, to show its scores"
        raise typer.BadParameter(f"give the records as --file, {reason}")
    return saved_scores(results)


def _tell(scores: Scores, results: Path | None, out: Path | None, json: bool) -> None:
    report = scores.to_dict()
    for error in scores.failures:
        print_warning(f"left out: {error}")
    if out is not None:
        write_whole(out, json_text(report).encode())
    if json:
        print_json(report)
        return
    for key, value in {**scores.about, "records": report["records"], **scores.settings}.items():
        if value is not None:
            print_line(f"{key}: {value}")
    print_scores(report["scores"])
    print_timings(scores.timings)
    for name, path in (("results", results), ("scores", out)):
        if path is not None:
            print_line(f"saved: {name} in {path}")
