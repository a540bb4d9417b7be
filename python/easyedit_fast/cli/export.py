"""``easyedit-fast export``: turns a saved edit into what other programs load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from easyedit_fast.cli import options
from easyedit_fast.cli.output import console, print_json, print_table


def export(
    edit: Annotated[Path, typer.Argument(help="The edit file.")],
    peft: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Write a PEFT (LoRA) adapter into this folder."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Describe a saved edit, and export it.

    Example: easyedit-fast export edit.safetensors --peft adapter/
    """
    from easyedit_fast.edits import Edit

    loaded = Edit.load(edit)
    if peft is not None:
        loaded.to_peft(peft)
    description = loaded.describe()
    if json:
        print_json({**description, "peft": None if peft is None else str(peft)})
        return
    rows = [
        [name, str(update["shape"]), update["rank"], update["norm"]]
        for name, update in description["updates"].items()
    ]
    console.print(
        f"{description['method']}, {len(description['requests'])} requests, model "
        f"{description['model_name']}",
        highlight=False,
    )
    print_table("Updates", ["weight", "shape (out, in)", "rank", "norm"], rows)
    if peft is not None:
        console.print(f"PEFT adapter written to {peft}", highlight=False)
