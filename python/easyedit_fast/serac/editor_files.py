"""SERAC's trained scope and adapter on disk: one safetensors file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from easyedit_fast.errors import DataFileError
from easyedit_fast.serac.counterfactual import CounterfactualAdapter
from easyedit_fast.serac.scope import Scope
from easyedit_fast.tensor_files import TensorFile

_FILE = TensorFile("SERAC editor", written_by="easyedit-fast")


@dataclasses.dataclass(frozen=True, eq=False)
class EditorFile:
    """What a file holds.

    Attributes:
        tensors: ``scope.…`` and ``counterfactual.…``, float32; on disk in half the bytes.
        hparams: The hyperparameters, as plain JSON values.
        card: What else is told of it: model, data, steps, scores.
    """

    tensors: dict[str, Tensor]
    hparams: dict[str, Any]
    card: dict[str, Any]


def write_editor(path: Path, editor: EditorFile) -> None:
    """Writes a file, whole or not at all; matrices in float16.

    Raises:
        MissingFileError: The folder of `path` is not there.
    """
    halves = {
        name: tensor.half() if tensor.dim() > 1 else tensor
        for name, tensor in editor.tensors.items()
    }
    _FILE.write(path, halves, {"hparams": editor.hparams, "card": editor.card})


def read_editor(path: Path) -> EditorFile:
    """Reads a file. Nothing in it is run.

    Raises:
        MissingFileError: There is no such file.
        DataFileError: It is damaged, or holds no SERAC editor.
    """
    tensors, told = _FILE.read(path)
    for key in ("hparams", "card"):
        if not isinstance(told.get(key), dict):
            raise DataFileError(f"{path}: header field {key!r} is missing; get the editor again")
    return EditorFile(
        {name: tensor.to(torch.float32) for name, tensor in tensors.items()},
        told["hparams"],
        told["card"],
    )


def read_card(path: Path) -> dict[str, Any]:
    """What is told of an editor, without its tensors.

    Raises:
        MissingFileError: There is no such file.
        DataFileError: It is damaged, or no editor.
    """
    card = _FILE.told(path).get("card")
    return card if isinstance(card, dict) else {}


def load_parts(tensors: Mapping[str, Tensor], scope: Scope, adapter: CounterfactualAdapter) -> None:
    """Puts what is trained into its two parts.

    Raises:
        DataFileError: It does not fit.
    """
    parts: dict[str, dict[str, Tensor]] = {"scope": {}, "counterfactual": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part not in parts:
            raise DataFileError(f"{name!r} is no part of SERAC; is it another method's file?")
        parts[part][rest] = tensor
    scope.load_trained_state(parts["scope"])
    adapter.load_state_dict(parts["counterfactual"])
