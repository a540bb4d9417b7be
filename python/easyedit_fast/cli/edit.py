"""``easyedit-fast edit``: edits a model, and saves the edit or the edited model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from easyedit_fast.cli import options
from easyedit_fast.cli.destinations import (
    require_file_path,
    require_folder_path,
    require_new_folder,
)
from easyedit_fast.cli.output import (
    edit_progress,
    print_json,
    print_line,
    print_summary,
    print_table,
    print_timings,
    print_warning,
)
from easyedit_fast.errors import HparamsError, RequestError

if TYPE_CHECKING:
    from easyedit_fast.editor import Editor
    from easyedit_fast.requests import EditRequest
    from easyedit_fast.results import EditResult

_ROWS_SHOWN = 10


def edit(
    model: Annotated[
        Optional[str],  # noqa: UP045  typer reads the annotation at run time, on Python 3.10 too
        typer.Option(
            "--model",
            "-m",
            help="'demo' (the packaged model), a folder, or a name on the hub; unless given, "
            "the model_name of --hparams, else 'demo'.",
        ),
    ] = None,
    method: Annotated[str, typer.Option(help="Editing method: 'rome'.")] = "rome",
    prompt: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Prompt of one edit; holds the subject, or '{}' in its place."),
    ] = None,
    subject: Annotated[Optional[str], typer.Option(help="Subject of the edit.")] = None,  # noqa: UP045
    target: Annotated[Optional[str], typer.Option(help="New answer to the prompt.")] = None,  # noqa: UP045
    file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Many edits: requests (JSON, JSONL), CounterFact or zsRE."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Records of the file at most.")] = None,
    offset: Annotated[int, typer.Option(min=0, help="Records of the file to pass over.")] = 0,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out records that cannot be used, and say so.")
    ] = False,
    isolated: Annotated[
        bool,
        typer.Option(
            "--isolated/--together",
            help="Each edit in its own copy of the model, or all in one model.",
        ),
    ] = False,
    hparams: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Hyperparameters: a YAML file, or a name such as ROME/llama-7b."),
    ] = None,
    preset: options.Preset = None,
    layers: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Layers to edit, e.g. 5, 4,5 or 4-6."),
    ] = None,
    second_moment: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Second-moment statistics (.npz); turns them on. For several layers '{}' in the "
            "path stands for the layer's number."
        ),
    ] = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    evaluate: Annotated[bool, typer.Option(help="Score before and after the edit.")] = True,
    save: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Save the edit (.safetensors; a new folder for several isolated ones)."),
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
    requests = _requests(prompt, subject, target, file, (limit, offset, skip_bad))
    if isolated and save_model is not None:
        raise typer.BadParameter("isolated edits leave the model as it is; use --together")
    overrides = _overrides(layers, second_moment)
    several = isolated and len(requests) > 1
    (require_new_folder if several else require_file_path)(save, "--save")
    (require_new_folder if several else require_folder_path)(peft, "--peft")
    require_folder_path(save_model, "--save-model")
    editor = _editor(model, method, hparams, preset, overrides, device=device, dtype=dtype)
    with edit_progress(quiet=json) as progress:
        result = editor.edit(requests, isolated=isolated, evaluate=evaluate, progress=progress)
    _save(result, save, peft)
    if save_model is not None:
        editor.save_model(save_model)
    saved = {
        name: None if path is None else str(path)
        for name, path in (("edit", save), ("peft", peft), ("model", save_model))
    }
    if json:
        print_json({**result.to_dict(), "saved": saved})
    else:
        _print(requests, result)
        _print_saved(saved)


def _requests(
    prompt: str | None,
    subject: str | None,
    target: str | None,
    file: Path | None,
    part: tuple[int | None, int, bool],
) -> list[EditRequest]:
    single = {"--prompt": prompt, "--subject": subject, "--target": target}
    if file is not None:
        if any(value is not None for value in single.values()):
            raise typer.BadParameter("give either --file, or --prompt, --subject and --target")
        from easyedit_fast.data import read_requests

        limit, offset, skip_bad = part
        requests = read_requests(
            file, limit=limit, offset=offset, on_error="skip" if skip_bad else "raise"
        )
        for error in requests.skipped:
            print_warning(f"left out: {error}")
        if not requests:
            raise RequestError(f"{file} holds no record; there is nothing to edit")
        return requests
    missing = [name for name, value in single.items() if value is None]
    if missing:
        raise typer.BadParameter(f"{', '.join(missing)} missing; or give a --file of requests")
    from easyedit_fast.requests import EditRequest

    return [EditRequest(prompt=str(prompt), subject=str(subject), target_new=str(target))]


def _overrides(layers: str | None, second_moment: Path | None) -> dict[str, Any]:
    overrides: dict[str, Any] = {}
    if layers is not None:
        overrides["layers"] = options.layer_numbers(layers)
    if second_moment is not None:
        overrides["second_moment"] = str(second_moment)
        overrides["mom2_adjustment"] = True
    return overrides


def _editor(
    model: str | None,
    method: str,
    hparams: str | None,
    preset: str | None,
    overrides: dict[str, Any],
    **loading: Any,
) -> Editor:
    """The editor; where the command line goes over a file, both are named as the source."""
    from easyedit_fast.editor import Editor
    from easyedit_fast.hparams import find_hparams_file, read_yaml
    from easyedit_fast.methods import method_factory, preset_values

    method_factory(method)  # what is unknown is refused before the model is loaded
    named = {} if preset is None else preset_values(method, preset)
    in_file = {} if hparams is None else read_yaml(find_hparams_file(hparams))
    name = model or in_file.get("model_name") or "demo"
    if hparams is None or not overrides:
        given = overrides if hparams is None else hparams
        return Editor.from_pretrained(name, method=method, hparams=given, preset=preset, **loading)
    source = "; ".join(
        [hparams, *([f"preset {preset}"] if preset else []), f"given: {', '.join(overrides)}"]
    )
    try:
        values = {**in_file, **named, **overrides}
        editor = Editor.from_pretrained(name, method=method, hparams=values, **loading)
    except HparamsError as error:
        raise HparamsError(f"{source}: {error}") from None
    editor.method.hparams.came_from(source)
    return editor


def _save(result: EditResult, save: Path | None, peft: Path | None) -> None:
    for place, edit_ in enumerate(result.edits):
        alone = len(result.edits) == 1
        if save is not None:
            path = save if alone else save / f"edit-{place:05d}.safetensors"
            if not alone:
                save.mkdir(parents=True, exist_ok=True)
            edit_.save(path)
        if peft is not None:
            edit_.to_peft(peft if alone else peft / f"edit-{place:05d}")


def _print(requests: list[EditRequest], result: EditResult) -> None:
    for key, value in result.settings.items():
        print_line(f"{key}: {value}")
    rows = []
    for request, metrics in zip(requests[:_ROWS_SHOWN], result.metrics, strict=False):
        before, after = (
            metrics[when].get("generated", {}).get("rewrite_text", [""])[0]
            for when in ("pre", "post")
        )
        rows.append([request.prompt, request.target_new, before, after])
    if rows:
        title = "Edits" if len(requests) <= len(rows) else f"The first {len(rows)} edits"
        print_table(title, ["prompt", "target", "before", "after"], rows)
    print_summary(result.summary)
    print_timings(result.timings)


def _print_saved(saved: dict[str, str | None]) -> None:
    for name, path in saved.items():
        if path is not None:
            print_line(f"saved: {name} in {path}")
    if not any(saved.values()):
        print_line("nothing was saved; --save, --peft or --save-model keeps the edit")
