"""MEND editors for tests of what does not depend on their quality."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from easyedit_fast.mend.editor_files import write_editor
from easyedit_fast.mend.hparams import MENDHyperParams
from easyedit_fast.mend.network import EditorNetwork
from easyedit_fast.training.editors import EditorFile

_INNER_PARAMS = [
    f"model.layers.{layer}.mlp.{part}_proj.weight" for layer in (28, 29) for part in ("up", "down")
]


def write_untrained_editor(path: Path, model: Any) -> None:
    """One that takes a step against the gradient, in which each token counts about the same."""
    hparams = MENDHyperParams(inner_params=_INNER_PARAMS, rank=8, edit_lr=-0.02)
    sizes = {name: model.get_parameter(name).T.shape for name in _INNER_PARAMS}
    network = EditorNetwork(hparams, {name: (size[0], size[1]) for name, size in sizes.items()})
    for transform in network.mend.values():
        for name, deviation in (("u", 1.0), ("v", 0.01)):
            getattr(transform, f"{name}_mean").zero_()
            getattr(transform, f"{name}_std").fill_(deviation)
            getattr(transform, f"{name}_s").fill_(deviation**2)
        transform.k = torch.tensor([2.0])
    write_editor(path, EditorFile(network.state_dict(), hparams.to_dict(), {}))
