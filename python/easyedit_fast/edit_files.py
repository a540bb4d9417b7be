"""Edits on disk: our own safetensors file, and the adapter folder of the PEFT library."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from easyedit_fast.errors import (
    DataFileError,
    MissingFileError,
    MissingPackageError,
    NonFiniteError,
)
from easyedit_fast.files import write_whole
from easyedit_fast.models.architectures import Architecture
from easyedit_fast.updates import LowRankUpdate

FORMAT = "easyedit-fast.edit"
FORMAT_VERSION = 1
_METADATA_TYPES: Mapping[str, type] = {
    "method": str,
    "model_name": str,
    "model_fingerprint": str,
    "architecture": dict,
    "requests": list,
    "hparams": dict,
    "versions": dict,
    "settings": dict,
    "weight_layouts": dict,
}


def write_edit_file(
    path: Path, updates: Mapping[str, LowRankUpdate], metadata: Mapping[str, Any]
) -> None:
    """Writes updates and metadata to `path`, whole or not at all.

    Tensors are named ``<parameter>.output_factor`` and ``<parameter>.input_factor``; the file's
    metadata holds ``format``, ``format_version``, ``edit`` (JSON) and ``sha256`` (see `_digest`).

    Raises:
        MissingFileError: The folder of `path` is not there.
    """
    from safetensors.torch import save

    tensors: dict[str, torch.Tensor] = {}
    for name, update in updates.items():
        tensors[f"{name}.output_factor"] = update.output_factor.cpu()
        tensors[f"{name}.input_factor"] = update.input_factor.cpu()
    layouts = {name: update.weight_layout for name, update in updates.items()}
    edit = json.dumps({**metadata, "weight_layouts": layouts}, ensure_ascii=False)
    header = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "edit": edit,
        "sha256": _digest(edit, tensors),
    }
    write_whole(path, save(tensors, metadata=header))


def read_edit_file(path: Path) -> tuple[dict[str, LowRankUpdate], dict[str, Any]]:
    """Reads what `write_edit_file` wrote.

    Raises:
        MissingFileError: There is no such file.
        DataFileError: The file is damaged, or is no edit of this package.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise MissingFileError(f"there is no edit file {str(path)!r}; check the path")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise DataFileError(
            f"{path} is damaged or no safetensors file ({error}); save the edit again"
        ) from None
    _check_header(path, header)
    edit = header.get("edit", "")
    if header.get("sha256") != _digest(edit, tensors):
        raise DataFileError(
            f"{path} is damaged (its contents do not match its digest); get or make it again"
        )
    metadata = _read_metadata(path, edit)
    updates = {
        name: _read_update(path, name, layout, tensors)
        for name, layout in metadata.pop("weight_layouts").items()
    }
    if tensors or not updates:
        raise DataFileError(
            f"{path} holds tensors that its header does not name, or no update at all; "
            "save the edit again"
        )
    return updates, metadata


def write_peft_adapter(
    folder: Path, updates: Mapping[str, LowRankUpdate], base_model: str | None
) -> None:
    """Writes ``adapter_config.json`` and ``adapter_model.safetensors``.

    Each update becomes one LoRA pair with ``lora_B = output_factor``, ``lora_A = input_factor``
    and a scaling of 1, so that the adapter equals the edit exactly.

    Raises:
        MissingPackageError: The ``peft`` package is not installed.
    """
    try:
        from peft import LoraConfig
    except ImportError:
        raise MissingPackageError(
            "the PEFT export needs the package 'peft'; pip install \"easyedit-fast[peft]\""
        ) from None
    from safetensors.torch import save

    ranks = {name.removesuffix(".weight"): update.rank for name, update in updates.items()}
    largest = max(ranks.values())
    config = LoraConfig(
        r=largest,
        lora_alpha=largest,
        target_modules=list(ranks),
        rank_pattern=ranks,
        alpha_pattern=ranks,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        fan_in_fan_out=any(update.weight_layout == "in_out" for update in updates.values()),
        base_model_name_or_path=base_model or None,
        inference_mode=True,
    )
    tensors: dict[str, torch.Tensor] = {}
    for name, update in updates.items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{stem}.lora_A.weight"] = update.input_factor.cpu()
        tensors[f"{stem}.lora_B.weight"] = update.output_factor.cpu()
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    write_whole(folder / "adapter_model.safetensors", save(tensors, metadata={"format": "pt"}))


def _digest(edit: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """Hexadecimal SHA-256 over all that a file says, however safetensors lays it out.

    It is taken over the metadata (JSON, as it stands in the file), then, in the order of the
    names, over name, dtype, shape and values of each tensor. Each text is preceded by its length.
    """
    digest = hashlib.sha256()

    def add_text(text: str) -> None:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)

    add_text(edit)
    for name, tensor in sorted(tensors.items()):
        add_text(f"{name} {tensor.dtype} {list(tensor.shape)}")
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _check_header(path: Path, header: Mapping[str, str]) -> None:
    if header.get("format") != FORMAT:
        raise DataFileError(
            f"{path} is a safetensors file, but no edit of easyedit-fast; name one that "
            "Edit.save wrote"
        )
    if header.get("format_version") != str(FORMAT_VERSION):
        raise DataFileError(
            f"{path} is of format version {header.get('format_version')}, this package reads "
            f"{FORMAT_VERSION}; install the version that wrote it"
        )


def _read_metadata(path: Path, edit: str) -> dict[str, Any]:
    try:
        metadata = json.loads(edit)
    except ValueError as error:
        raise DataFileError(f"{path}: its header is damaged ({error}); save it again") from None
    if not isinstance(metadata, dict):
        raise DataFileError(f"{path}: its header is damaged; save the edit again")
    for key, kind in _METADATA_TYPES.items():
        if not isinstance(metadata.get(key), kind):
            raise DataFileError(
                f"{path}: header field {key!r} is missing or no {kind.__name__}; save it again"
            )
    if not all(isinstance(record, dict) for record in metadata["requests"]):
        raise DataFileError(f"{path}: header field 'requests' is damaged; save the edit again")
    try:
        metadata["architecture"] = TypeAdapter(Architecture).validate_python(
            metadata["architecture"]
        )
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise DataFileError(
            f"{path}: header field 'architecture.{place}' is damaged; save the edit again"
        ) from None
    return metadata


def _read_update(
    path: Path, name: str, layout: Any, tensors: dict[str, torch.Tensor]
) -> LowRankUpdate:
    if layout not in ("out_in", "in_out"):
        raise DataFileError(f"{path}: weight layout {layout!r} of {name!r} is unknown")
    try:
        output_factor = tensors.pop(f"{name}.output_factor")
        input_factor = tensors.pop(f"{name}.input_factor")
        return LowRankUpdate(output_factor, input_factor, layout)
    except KeyError as missing:
        raise DataFileError(f"{path}: tensor {missing} is missing; save the edit again") from None
    except (ValueError, NonFiniteError) as error:
        raise DataFileError(
            f"{path}: the update of {name!r} is damaged ({error}); save the edit again"
        ) from None
