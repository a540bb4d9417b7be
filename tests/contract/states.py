"""What an edit must leave as it was."""

from __future__ import annotations

from typing import Any

import torch


def state_of(model: torch.nn.Module) -> dict[str, Any]:
    return {
        "weights": {name: p.detach().clone() for name, p in model.named_parameters()},
        "flags": {name: p.requires_grad for name, p in model.named_parameters()},
        "training": [part.training for part in model.modules()],
        "hooks": [
            len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules()
        ],
        "modules": list(model._modules),
    }


def assert_state(model: torch.nn.Module, before: dict[str, Any]) -> None:
    after = state_of(model)
    for name, weight in before.pop("weights").items():
        assert torch.equal(after["weights"][name], weight), name
    for key, value in before.items():
        assert after[key] == value, key
