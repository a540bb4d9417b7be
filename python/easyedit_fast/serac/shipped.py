"""The trained scopes and adapters that come with the package, each with its card beside it."""

from __future__ import annotations

from pathlib import Path

from easyedit_fast.serac.editor_files import read_card

_FOLDER = Path(__file__).with_name("editors")


def shipped_editor(fingerprint: str) -> Path | None:
    """The one that was trained for a model, by the model's fingerprint; None: there is none."""
    for path in sorted(_FOLDER.glob("*.safetensors")):
        if read_card(path).get("model_fingerprint") == fingerprint:
            return path
    return None
