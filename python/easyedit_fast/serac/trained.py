"""The scope of a trained editor by itself: what embeds prompts, without a language model."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from easyedit_fast.serac.editor_files import load_editor
from easyedit_fast.serac.scopes import AnyScope, make_scope
from easyedit_fast.serac.serac import resolve_serac_hparams

_DEMO_EDITOR = Path(__file__).with_name("editors") / "smollm2-135m.safetensors"


def trained_scope(archive: str | os.PathLike[str] | None = None) -> AnyScope:
    """Loads the scope of a trained editor.

    Args:
        archive: The editor's file; None: the packaged one of the demo model.

    Raises:
        HparamsError: The editor's hyperparameters cannot be used.
        MissingFileError: There is no such file.
        MissingPackageError: A package is missing.
        DataFileError: The file is damaged, or another kind of file.
        ModelError: There is no such encoder, or it is not the one that the scope was trained on.
    """
    hparams, editor = resolve_serac_hparams({"archive": os.fspath(archive or _DEMO_EDITOR)})
    scope = make_scope(hparams, torch.device("cpu"))
    load_editor(hparams, editor, scope)
    return scope
