"""SERAC's trained scope and adapter on disk: one safetensors file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from easyedit_fast.errors import DataFileError, HparamsError, ModelError
from easyedit_fast.models.sentence_encoders import pooling_of
from easyedit_fast.serac.counterfactual import CounterfactualAdapter
from easyedit_fast.serac.hparams import SERACHparams
from easyedit_fast.serac.scopes import AnyScope
from easyedit_fast.training.editors import EditorFile, EditorFormat

_FORMAT = EditorFormat("SERAC")
_CHECKPOINTS = (".pt", ".pth", ".bin", ".ckpt")


def write_editor(path: Path, editor: EditorFile) -> None:
    """Writes a file, whole or not at all; matrices in float16.

    Raises:
        MissingFileError: The folder of `path` is not there.
    """
    halves = {
        name: tensor.half() if tensor.dim() > 1 else tensor
        for name, tensor in editor.tensors.items()
    }
    _FORMAT.write(path, dataclasses.replace(editor, tensors=halves))


def read_editor(path: Path) -> EditorFile:
    """Reads a file: ``scope.…`` and ``counterfactual.…``, in float32. Nothing in it is run.

    Raises:
        MissingFileError: There is no such file.
        DataFileError: It is damaged, or holds no SERAC editor.
    """
    if path.is_file() and path.suffix in _CHECKPOINTS:
        raise DataFileError(
            f"{path}: SERAC's checkpoints of EasyEdit are not read, for their scope reads the "
            "target too; train an editor: easyedit-fast train --method serac"
        )
    found = _FORMAT.read(path)
    tensors = {name: tensor.to(torch.float32) for name, tensor in found.tensors.items()}
    return dataclasses.replace(found, tensors=tensors)


def read_card(path: Path) -> dict[str, Any]:
    """What is told of an editor, without its tensors.

    Raises:
        MissingFileError: There is no such file.
        DataFileError: It is damaged, or no editor.
    """
    return _FORMAT.card(path)


def shipped_editor(fingerprint: str) -> Path | None:
    """The packaged editor that was trained for a model, by the model's fingerprint, or None."""
    return _FORMAT.shipped(Path(__file__).with_name("editors"), fingerprint)


def require_encoder(archive: str | None, editor: EditorFile, scope: AnyScope) -> None:
    """Checks that an editor's scope was trained on this very sentence encoder.

    Raises:
        ModelError: It was not.
    """
    if editor.card.get("encoder", scope.origin) != scope.origin:
        raise ModelError(
            f"the scope of {archive} was trained on another sentence encoder than the one loaded "
            "now (its weights or its tokenizer differ); name that one as cls_name, or train the "
            "scope anew"
        )


def _require_distances(hparams: SERACHparams, editor: EditorFile) -> None:
    """Checks that distances mean what they meant when an editor's threshold was learned.

    Raises:
        HparamsError: They do not.
    """
    trained = SERACHparams(**editor.hparams)
    names = ["pooling"]  # a cross-encoder's head reads what is pooled, and learns no distance
    if not hparams.cross_attend:
        names += ["cos", "bound_embeds", "dist_heads", *([] if hparams.cos else ["square"])]
    for name in names:
        then, now = (getattr(one, name) for one in (trained, hparams))
        if name == "pooling" and then != now:  # None is what the encoder's folder says
            own = pooling_of(hparams.cls_name)
            then, now = then or own, now or own
        if then != now:
            raise HparamsError(
                f"{name} is {str(now).lower()}, and the scope of {hparams.archive} was trained "
                f"with {str(then).lower()}, so that its threshold means nothing here; leave "
                f"{name} out, or train a scope with it: easyedit-fast train --method serac"
            )


def load_editor(
    hparams: SERACHparams,
    editor: EditorFile,
    scope: AnyScope,
    adapter: CounterfactualAdapter | None = None,
) -> None:
    """Puts what a file holds into its two parts, or into the scope alone.

    Args:
        hparams: The hyperparameters, which name the file.
        editor: What it holds.
        scope: The scope, not trained yet.
        adapter: The adapter; None: it is left where it is.

    Raises:
        HparamsError: Distances are others than the scope was trained with.
        ModelError: The scope was trained on another sentence encoder.
        DataFileError: It does not fit.
    """
    archive = hparams.archive
    require_encoder(archive, editor, scope)
    _require_distances(hparams, editor)
    try:
        load_parts(editor.tensors, scope, adapter)
    except DataFileError as error:
        raise DataFileError(f"{archive}: {error}") from None


def load_parts(
    tensors: Mapping[str, Tensor], scope: AnyScope, adapter: CounterfactualAdapter | None
) -> None:
    """Puts what is trained into its two parts; see `load_editor`.

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
    if adapter is not None:
        adapter.load_state_dict(parts["counterfactual"])
