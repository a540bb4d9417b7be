"""What several commands are given: hyperparameters, records, and the editor made of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from easyedit_fast.cli import options
from easyedit_fast.cli.output import print_warning
from easyedit_fast.errors import HparamsError

if TYPE_CHECKING:
    from easyedit_fast.editor import Editor
    from easyedit_fast.requests import EditRequest
    from easyedit_fast.runs import Records


def records_of(
    file: Path, *, limit: int | None, offset: int, skip_bad: bool, tell: bool = True
) -> Records:
    """The records of ``--file``; each one that is left out gets a warning, if it is to be told.

    Raises:
        RequestError: A record cannot be used, or there is none.
    """
    from easyedit_fast.runs import Records

    on_error: Literal["raise", "skip"] = "skip" if skip_bad else "raise"
    records = Records.read(file, limit=limit, offset=offset, on_error=on_error)
    for error in records.requests.skipped if tell else ():
        print_warning(f"left out: {error}")
    return records


def records_unless_single(
    single: Mapping[str, str | None], file: Path | None, **part: Any
) -> Records | None:
    """The records of ``--file``, or None where a single edit is given in place of it.

    Args:
        single: ``--prompt``, ``--subject`` and ``--target``.
        file: ``--file``.
        **part: As `records_of` takes them.

    Raises:
        typer.BadParameter: Both are given, or a part of a single edit is missing.
        RequestError: As `records_of`.
    """
    if file is not None:
        if any(value is not None for value in single.values()):
            raise typer.BadParameter("give either --file, or --prompt, --subject and --target")
        return records_of(file, **part)
    missing = [name for name, value in single.items() if value is None]
    if missing:
        raise typer.BadParameter(f"{', '.join(missing)} missing; or give a --file of requests")
    return None


def single_request(single: Mapping[str, str | None]) -> EditRequest:
    """The edit of ``--prompt``, ``--subject`` and ``--target``, all of which are given."""
    from easyedit_fast.requests import EditRequest

    prompt, subject, target = map(str, single.values())
    return EditRequest(prompt=prompt, subject=subject, target_new=target)


def overrides_of(
    method: str,
    layers: str | None,
    second_moment: Path | None,
    archive: Path | None,
    threshold: float | None = None,
) -> dict[str, Any]:
    """The hyperparameters that have options of their own, as far as these are given.

    Raises:
        typer.BadParameter: One is given that the method does not have.
        HparamsError: There is no such method.
    """
    from easyedit_fast.methods import method_factory

    method_factory(method)  # one that is unknown is named first
    for option, value, owners in (
        ("--layers", layers, ("rome",)),
        ("--second-moment", second_moment, ("rome",)),
        ("--archive", archive, ("mend", "serac")),
        ("--threshold", threshold, ("serac",)),
    ):
        if value is not None and method.lower() not in owners:
            wanted = " or ".join(owners)
            raise typer.BadParameter(f"{option} is for --method {wanted}; leave it out")
    overrides: dict[str, Any] = {}
    if archive is not None:
        overrides["archive"] = str(archive)
    if threshold is not None:
        overrides["threshold"] = threshold
    if layers is not None:
        overrides["layers"] = options.layer_numbers(layers)
    if second_moment is not None:
        none = str(second_moment) == "none"
        overrides["second_moment"] = None if none else str(second_moment)
        overrides["mom2_adjustment"] = not none
    return overrides


def batch_size_of(text: str) -> int | Literal["auto"]:
    """``--batch-size``: ``auto`` or a number.

    Raises:
        typer.BadParameter: It is neither.
    """
    if text == "auto":
        return "auto"
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"--batch-size {text!r} is neither 'auto' nor a positive number")
    return int(text)


def editor_of(
    model: str | None,
    method: str,
    hparams: str | None,
    preset: str | None,
    overrides: dict[str, Any],
    **loading: Any,
) -> Editor:
    """The editor; where the command line goes over a file, both are named as the source."""
    from easyedit_fast.editor import Editor
    from easyedit_fast.hparams import find_hparams_file, read_yaml, require_method
    from easyedit_fast.methods import preset_values

    named = {} if preset is None else preset_values(method, preset)
    in_file = {} if hparams is None else read_yaml(find_hparams_file(hparams))
    require_method(in_file, method, hparams or "")
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
