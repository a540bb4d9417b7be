"""A short name for a model's weights that edits of its MLPs leave as it is."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import torch

from easyedit_fast.errors import ModelError
from easyedit_fast.models.architectures import Architecture, number_of_layers

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

_SAMPLES_PER_TENSOR = 4096


def model_fingerprint(model: PreTrainedModel, architecture: Architecture) -> str:
    """Identifies a model across processes, devices and dtypes.

    It covers the model type and, of every parameter of the blocks outside the MLPs and of the
    embeddings, the name, the shape and the signs of some thousand values. A sign is the one part
    of a value that no rounding to another dtype changes. Another training run, or further
    training, flips some of the signs near zero.

    Args:
        model: The model.
        architecture: Where its parts are.

    Returns:
        64 hexadecimal digits.

    Raises:
        ModelError: A weight is offloaded, so that its values are not at hand.
    """
    tensors = _untouched(model, architecture)
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    header = json.dumps([str(model.config.model_type), shapes], sort_keys=True)
    digest = hashlib.sha256(header.encode())
    by_device: dict[torch.device, list[Tensor]] = {}
    for name in sorted(tensors):
        if tensors[name].is_meta:
            raise ModelError(
                f"the weight {name!r} is offloaded; load the model where it fits the memory"
            )
        by_device.setdefault(tensors[name].device, []).append(_signs(tensors[name]))
    # One transfer a device, then back into the order of the names.
    signs = {device: torch.cat(parts).cpu() for device, parts in by_device.items()}
    taken = dict.fromkeys(signs, 0)
    for name in sorted(tensors):
        device = tensors[name].device
        end = taken[device] + _signs_of(tensors[name].numel())
        digest.update(signs[device][taken[device] : end].numpy().tobytes())
        taken[device] = end
    return digest.hexdigest()


def _untouched(model: PreTrainedModel, architecture: Architecture) -> dict[str, Tensor]:
    """The parameters that no editor changes: embeddings, and the blocks without their MLPs."""
    inside = (
        architecture.mlp,
        architecture.mlp_output_projection,
        *architecture.mlp_input_projections,
    )
    edited = tuple(
        f"{architecture.block_name(layer)}.{part}."
        for layer in range(number_of_layers(model, architecture))
        for part in inside
    )
    kept = (f"{architecture.embeddings}.", f"{architecture.blocks}.")
    return {
        name: parameter.detach()
        for name, parameter in model.named_parameters()
        if name.startswith(kept) and not name.startswith(edited)
    }


def _stride(count: int) -> int:
    return max(1, count // _SAMPLES_PER_TENSOR)


def _signs_of(count: int) -> int:
    return -(-count // _stride(count))


def _signs(tensor: Tensor) -> Tensor:
    """Signs of evenly spread values, ``[n]``, bool."""
    return torch.signbit(tensor.reshape(-1)[:: _stride(tensor.numel())])
