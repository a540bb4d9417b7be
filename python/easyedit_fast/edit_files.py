"""Edits on disk: our own safetensors file, and the adapter folder of the PEFT library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from easyedit_fast.errors import DataFileError, EditStateError, MissingPackageError, NonFiniteError
from easyedit_fast.files import write_whole
from easyedit_fast.models.architectures import Architecture
from easyedit_fast.tensor_files import TensorFile
from easyedit_fast.updates import LowRankUpdate

_FILE = TensorFile("edit", written_by="Edit.save")
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

    Tensors are named ``<parameter>.output_factor`` and ``<parameter>.input_factor``; see
    `TensorFile.write` for the rest.

    Raises:
        MissingFileError: The folder of `path` is not there.
    """
    tensors: dict[str, torch.Tensor] = {}
    for name, update in updates.items():
        tensors[f"{name}.output_factor"] = update.output_factor
        tensors[f"{name}.input_factor"] = update.input_factor
    layouts = {name: update.weight_layout for name, update in updates.items()}
    _FILE.write(path, tensors, {**metadata, "weight_layouts": layouts})


def read_edit_file(path: Path) -> tuple[dict[str, LowRankUpdate], dict[str, Any]]:
    """Reads what `write_edit_file` wrote.

    Raises:
        MissingFileError: There is no such file.
        DataFileError: The file is damaged, or is no edit of this package.
    """
    tensors, told = _FILE.read(path)
    metadata = _checked(path, told)
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
        EditStateError: The edit is of rank 0.
    """
    try:
        from peft import LoraConfig
    except ImportError:
        raise MissingPackageError(
            "the PEFT export needs the package 'peft'; pip install \"easyedit-fast[peft]\""
        ) from None
    from safetensors.torch import save

    changing = {name: update for name, update in updates.items() if update.rank}
    if not changing:
        raise EditStateError("the edit changes nothing (rank 0), so there is no adapter to write")
    ranks = {name.removesuffix(".weight"): update.rank for name, update in changing.items()}
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
        fan_in_fan_out=any(update.weight_layout == "in_out" for update in changing.values()),
        base_model_name_or_path=base_model or None,
        inference_mode=True,
    )
    tensors: dict[str, torch.Tensor] = {}
    for name, update in changing.items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{stem}.lora_A.weight"] = update.input_factor.cpu()
        tensors[f"{stem}.lora_B.weight"] = update.output_factor.cpu()
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    write_whole(folder / "adapter_model.safetensors", save(tensors, metadata={"format": "pt"}))


def _checked(path: Path, metadata: dict[str, Any]) -> dict[str, Any]:
    """The metadata of an edit, with the architecture as an object."""
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
