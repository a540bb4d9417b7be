"""The state dict of a model that holds an adapter: that of the plain model."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

_INSIDE, _OWN = ".base_layer.", ".lora_"


def keep_plain_state(model: nn.Module, layers: Sequence[str]) -> list[RemovableHandle]:
    """Leaves the adapter out of ``state_dict`` and ``load_state_dict``, and so of what is saved.

    Args:
        model: The model.
        layers: Names of the layers that PEFT has wrapped.

    Returns:
        What ends it.
    """
    wrapped = frozenset(layers)
    return [
        model.register_state_dict_post_hook(functools.partial(_to_plain, wrapped)),
        model.register_load_state_dict_pre_hook(functools.partial(_from_plain, wrapped)),
    ]


def _to_plain(
    wrapped: frozenset[str], _: nn.Module, state: dict[str, Tensor], prefix: str, *__: Any
) -> None:
    """Renames the weights of wrapped layers, in their order, and drops the adapter's."""
    items = list(state.items())
    state.clear()
    for key, value in items:
        name = key.removeprefix(prefix)
        layer, inside, rest = name.partition(_INSIDE)
        if inside and layer in wrapped:
            state[f"{prefix}{layer}.{rest}"] = value
        elif name.partition(_OWN)[0] not in wrapped:
            state[key] = value


def _from_plain(
    wrapped: frozenset[str], model: nn.Module, state: dict[str, Tensor], prefix: str, *_: Any
) -> None:
    """The other way round; the adapter's weights stay as they are."""
    for key in list(state):
        layer, _dot, leaf = key.removeprefix(prefix).rpartition(".")
        if layer in wrapped:
            state[f"{prefix}{layer}{_INSIDE}{leaf}"] = state.pop(key)
    for layer in wrapped:
        for name, parameter in model.get_submodule(layer).named_parameters():
            if f".{name}".startswith(_OWN):
                state.setdefault(f"{prefix}{layer}.{name}", parameter.detach())
