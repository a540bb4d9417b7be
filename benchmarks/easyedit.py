"""Runs EasyEdit's own ROME from a checkout of zjunlp/EasyEdit, without its whole dependency tree.

Only ``easyeditor.models.rome`` and ``easyeditor.util`` are imported: the packages above them get
empty stand-ins, for their own ``__init__`` imports every method and its requirements.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

_EMPTY_PACKAGES = ("easyeditor", "easyeditor.models", "easyeditor.util")


class EasyEditRome:
    """EasyEdit's ``execute_rome`` on a loaded model."""

    def __init__(
        self,
        checkout: Path,
        model: torch.nn.Module,
        tokenizer: Any,
        hparams: dict[str, Any],
        templates: Sequence[str],
    ) -> None:
        """Imports the checkout's code; it computes with the same templates as ours."""
        self.model, self.tokenizer = model, tokenizer
        _stand_in(checkout)
        main = importlib.import_module("easyeditor.models.rome.rome_main")
        main.CONTEXT_TEMPLATES_CACHE = list(templates)
        self._execute = main.execute_rome
        self.hparams = main.ROMEHyperParams(**hparams)

    def update(self, prompt: str, subject: str, target: str) -> torch.Tensor:
        """One edit: the update [d_out, d_in] of the one edited weight."""
        request = {"prompt": prompt, "subject": subject, "target_new": target}
        with contextlib.redirect_stdout(io.StringIO()):
            deltas = self._execute(self.model, self.tokenizer, request, self.hparams)
        ((left, right),) = deltas.values()
        return torch.outer(right, left)


def _stand_in(checkout: Path) -> None:
    """Registers the empty packages, with the checkout's folders as their paths."""
    if not (checkout / "easyeditor" / "models" / "rome").is_dir():
        raise SystemExit(f"error: {checkout} is no checkout of zjunlp/EasyEdit")
    for name in _EMPTY_PACKAGES:
        package = types.ModuleType(name)
        package.__path__ = [str(checkout.joinpath(*name.split(".")))]
        sys.modules[name] = package
