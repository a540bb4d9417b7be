"""SERAC editors for tests of what does not depend on their quality."""

from __future__ import annotations

from pathlib import Path

from easyedit_fast.serac.editor_files import write_editor
from easyedit_fast.serac.hparams import SERACHparams
from easyedit_fast.serac.scope import Scope
from easyedit_fast.training.editors import EditorFile


def write_untrained_editor(path: Path) -> None:
    """One whose scope takes in like prompts, and whose base model reads the edit as it is.

    Raises:
        MissingPackageError: The packaged sentence encoder is not installed.
    """
    hparams = SERACHparams(freeze_cntr=True, cls_rank=1)
    state = Scope(hparams).trained_state()
    tensors = {f"scope.{name}": tensor for name, tensor in state.items()}
    kept = {name: value for name, value in hparams.to_dict().items() if name != "archive"}
    write_editor(path, EditorFile(tensors, kept, {}))
