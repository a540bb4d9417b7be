"""``easyedit-fast apply``: puts saved edits onto a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from easyedit_fast.cli import options
from easyedit_fast.cli.destinations import require_folder_path
from easyedit_fast.cli.output import print_json, print_line, print_table

_NEW_TOKENS = 20


def apply(
    edits: Annotated[list[Path], typer.Argument(help="Edit files, applied in this order.")],
    model: options.Model = "demo",
    prompt: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Continue this prompt before and after; may be given several times."),
    ] = None,
    save_model: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Save the edited model in this folder."),
    ] = None,
    check_model: Annotated[
        bool, typer.Option(help="Refuse a model with another fingerprint than the edit's.")
    ] = True,
    device: options.Device = None,
    dtype: options.Dtype = None,
    json: options.Json = False,
) -> None:
    """Apply saved edits to a model.

    Example: easyedit-fast apply edit.safetensors --model demo --save-model edited/
    """
    from easyedit_fast.edits import Edit
    from easyedit_fast.evaluation import continue_greedily
    from easyedit_fast.ledger import save_edited_model
    from easyedit_fast.models.loading import load_model

    require_folder_path(save_model, "--save-model")
    loaded = [Edit.load(path) for path in edits]
    language_model, tokenizer = load_model(model, device=device, dtype=dtype)
    prompts = prompt or list(
        dict.fromkeys(request.prompt for edit in loaded for request in edit.requests)
    )
    lengths = [_NEW_TOKENS] * len(prompts)
    before = continue_greedily(language_model, tokenizer, prompts, lengths)
    for edit in loaded:
        edit.apply(language_model, check_model=check_model)
    after = continue_greedily(language_model, tokenizer, prompts, lengths)
    if save_model is not None:
        save_edited_model(language_model, tokenizer, save_model)
    rows = list(zip(prompts, before, after, strict=True))
    if json:
        report: dict[str, Any] = {
            "model": model,
            "edits": [edit.describe() for edit in loaded],
            "generations": [
                dict(zip(("prompt", "before", "after"), row, strict=True)) for row in rows
            ],
            "saved_model": None if save_model is None else str(save_model),
        }
        print_json(report)
    else:
        print_table("Generations", ["prompt", "before", "after"], rows)
        if save_model is not None:
            print_line(f"the edited model is in {save_model}")
