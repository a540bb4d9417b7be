"""Trained editors on disk: our safetensors file, and the checkpoints of EasyEdit and of MEND."""

from __future__ import annotations

import collections
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from easyedit_fast.errors import DataFileError
from easyedit_fast.files import replacing
from easyedit_fast.training.editors import EditorFile, EditorFormat, refuse_folder

_FORMAT = EditorFormat("MEND")
_PICKLE = b"\x80"  # the first byte of one
_ZIP = b"PK\x03\x04"
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_OLD_PREFIX = "gtn."  # of the transforms, in MEND's own code


def write_editor(path: Path, editor: EditorFile) -> None:
    """Writes our form, whole or not at all.

    Raises:
        MissingFileError: The folder of `path` is not there.
    """
    _FORMAT.write(path, editor)


def read_editor(path: Path) -> EditorFile:
    """Reads our form, or the tensors of a checkpoint of EasyEdit or MEND; no code in it is run.

    Raises:
        MissingFileError: There is no such file.
        DataFileError: It is damaged, or holds no editor.
    """
    refuse_folder(path)
    if path.is_file():
        with path.open("rb") as file:
            head = file.read(9)
        if head.startswith(_ZIP):
            return _read_checkpoint(path)
        # A safetensors file begins with the length of its header, which may be anything.
        if head.startswith(_PICKLE) and not head.endswith(b"{"):
            raise DataFileError(
                f"{path} is a checkpoint of torch before 1.6; load it with torch and save it again"
            )
    return _FORMAT.read(path)


def read_card(path: Path) -> dict[str, Any]:
    """What is told of an editor of our form, without its tensors.

    Raises:
        MissingFileError: There is no such file.
        DataFileError: It is damaged, or no editor.
    """
    return _FORMAT.card(path)


def shipped_editor(fingerprint: str) -> Path | None:
    """The packaged editor that was trained for a model, by the model's fingerprint, or None."""
    return _FORMAT.shipped(Path(__file__).with_name("editors"), fingerprint)


def write_easyedit_checkpoint(path: Path, tensors: Mapping[str, Tensor], config: Any) -> None:
    """Writes a checkpoint that EasyEdit loads as ``archive``.

    Args:
        path: Where to.
        tensors: By the names of `EditorNetwork`.
        config: The model's config, which EasyEdit compares with that of its own.

    Raises:
        MissingFileError: The folder of `path` is not there.
    """
    plain = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
    with replacing(path) as partial:
        torch.save({"model": {**plain, "model_config": config}, "step": 0}, partial)


def _read_checkpoint(path: Path) -> EditorFile:
    content = _weights_only(path)
    state = dict.get(content, "model") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise DataFileError(f"{path} holds no 'model', as checkpoints of EasyEdit and MEND do")
    tensors: dict[str, Tensor] = {}
    for name, tensor in dict.items(state):  # not the object's own method
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            continue
        known = f"mend.{name.removeprefix(_OLD_PREFIX)}" if name.startswith(_OLD_PREFIX) else name
        if known in tensors:
            raise DataFileError(f"{path} holds {known!r} twice, under an old name and a new one")
        if tensor.layout != torch.strided or tensor.dtype not in _DTYPES or tensor.is_meta:
            raise DataFileError(f"{path}: {name!r} is no dense tensor of floating-point numbers")
        tensors[known] = tensor.detach().float().contiguous()
    if "edit_lrs" not in tensors:
        raise DataFileError(f"{path} holds no 'edit_lrs'; is it a checkpoint of MEND?")
    return EditorFile(tensors, {}, {})


def _weights_only(path: Path) -> Any:
    """What a checkpoint holds, with empty mappings for all that is not of torch's plain types."""
    try:
        with zipfile.ZipFile(path) as archive:
            stored = [part.compress_type == zipfile.ZIP_STORED for part in archive.infolist()]
    except (zipfile.BadZipFile, OSError) as error:
        raise DataFileError(f"{path} is damaged ({error}); get it again") from None
    if not all(stored):  # it would grow in memory
        raise DataFileError(f"{path} is compressed, as torch's checkpoints never are")
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        inert: list[Any] = [(_named(name), name) for name in names]
        with torch.serialization.safe_globals(inert):
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  a damaged pickle may raise anything
        # Torch's own text begins with the advice to read it unsafely.
        found = str(error).rpartition("trusted source.")[2].partition("Check the documentation")[0]
        reason = " ".join(found.split()) or type(error).__name__
        raise DataFileError(f"{path} is no checkpoint that can be read safely: {reason}") from None


class _Inert:
    """Stands in for whatever a checkpoint names: what should be made of it is a plain mapping."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        """Of torch's few types that may be filled when only weights are read."""
        return collections.OrderedDict()


def _named(name: str) -> type:
    """A class of its own for each name, as torch's table of them wants it."""
    return type(name.rpartition(".")[2], (_Inert,), {})
