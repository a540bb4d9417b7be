"""``easyedit-fast export``: turns a saved edit into what other programs load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from easyedit_fast.cli import options
from easyedit_fast.cli.destinations import require_folder_path
from easyedit_fast.cli.output import print_json, print_line, print_table


def export(
    edit: Annotated[Path, typer.Argument(help="The edit file.")],
    peft: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Write a PEFT (LoRA) adapter into this folder."),
    ] = None,
    base_model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Model that the adapter names; the edit's own."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Describe a saved edit, and export it.

    Example: easyedit-fast export edit.safetensors --peft adapter/
    """
    from easyedit_fast.edits import Edit

    require_folder_path(peft, "--peft")
    loaded = Edit.load(edit)
    if peft is not None:
        loaded.to_peft(peft, base_model=base_model)
    description = loaded.describe()
    if json:
        print_json({**description, "peft": None if peft is None else str(peft)})
        return
    rows = [
        [name, str(update["shape"]), update["rank"], update["norm"]]
        for name, update in description["updates"].items()
    ]
    requests = len(description["requests"])
    print_line(
        f"{description['method']}, {requests} request{'s' if requests > 1 else ''}, model "
        f"{description['model_name']}"
    )
    print_table("Updates", ["weight", "shape (out, in)", "rank", "norm"], rows)
    if peft is not None:
        print_line(f"PEFT adapter written to {peft}")
