"""An editor of each method on the real model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from easyedit_fast import Editor
from easyedit_fast.mend.editor_files import EditorFile, write_editor
from easyedit_fast.mend.hparams import MENDHyperParams
from easyedit_fast.mend.network import EditorNetwork
from easyedit_fast.methods import METHODS
from tests.contract.states import assert_state, state_of

QUICK_ROME = {
    "layers": [5],
    "v_num_grad_steps": 4,
    "context_templates": ["{}", "I think. {}"],
}
"""Few steps and templates: what is tested here does not depend on how good the edit is."""
_INNER_PARAMS = [
    f"model.layers.{layer}.mlp.{part}_proj.weight" for layer in (28, 29) for part in ("up", "down")
]


@pytest.fixture(scope="session")
def quick_hparams(demo_model: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Hyperparameters by method."""
    archive = tmp_path_factory.mktemp("mend") / "editor.safetensors"
    _write_untrained_editor(archive, demo_model[0])
    return {"rome": QUICK_ROME, "mend": {"archive": str(archive)}}


@pytest.fixture(params=sorted(METHODS))
def editor(
    request: pytest.FixtureRequest, demo_model: Any, quick_hparams: dict[str, Any]
) -> Iterator[Editor]:
    """An editor on the demo model, which is checked to be as it was afterwards."""
    model, tokenizer = demo_model
    before = state_of(model)
    yield Editor(model, tokenizer, method=request.param, hparams=quick_hparams[request.param])
    assert_state(model, before)
    assert not hasattr(model.config, "easyedit_fast_edits")


def _write_untrained_editor(path: Path, model: Any) -> None:
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
