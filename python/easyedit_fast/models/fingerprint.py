"""Short names: for a model's weights, which edits of its MLPs leave as it is; for a tokenizer."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import torch

from easyedit_fast.errors import ModelError
from easyedit_fast.models.adapters import refuse_adapters
from easyedit_fast.models.architectures import Architecture, number_of_layers

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SAMPLES_PER_TENSOR = 4096
_PROBE = (
    "The mother tongue of Zo\u00eb Perret-O'Neil, n\u00e9e \u0141ukasz, ISN'T known:  3.14 "
    "\u20ac\tor\n\ufb01ve \u00bd? \u5317\u4eac, \u041c\u043e\u0441\u043a\u0432\u0430, "
    "\u0627\u0644 \U0001f642 antidisestablishmentarianism #_@x"
)


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
        ModelError: A weight is offloaded, so that its values are not at hand, or the model is no
            plain one (see `refuse_adapters`).
    """
    refuse_adapters(model)
    tensors = _untouched(model, architecture)
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    header = json.dumps([str(model.config.model_type), shapes], sort_keys=True)
    digest = hashlib.sha256(header.encode())
    alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for name in sorted(tensors):
        tensor = tensors[name]
        if tensor.is_meta:
            raise ModelError(
                f"the weight {name!r} is offloaded; load the model where it fits the memory"
            )
        alike.setdefault((tensor.device, tensor.dtype), []).append(_samples(tensor))
    # One call and one transfer for all of a kind, then back into the order of the names.
    signs = {
        kind: iter(torch.signbit(torch.cat(parts)).cpu().split([len(part) for part in parts]))
        for kind, parts in alike.items()
    }
    for name in sorted(tensors):
        digest.update(next(signs[tensors[name].device, tensors[name].dtype]).numpy())
    return digest.hexdigest()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Identifies a tokenizer across processes and versions of its library.

    It covers the vocabulary, and the tokens of a text that holds what normalisers change.

    Returns:
        64 hexadecimal digits.
    """
    told = [sorted(tokenizer.get_vocab().items()), tokenizer(_PROBE)["input_ids"]]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


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


def _samples(tensor: Tensor) -> Tensor:
    """Evenly spread values, ``[n]``."""
    values = tensor.reshape(-1)
    return values[:: max(1, len(values) // _SAMPLES_PER_TENSOR)]
