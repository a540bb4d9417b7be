"""An editor of each method on the real model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from easyedit_fast import Editor
from easyedit_fast.methods import METHODS
from tests.contract.states import assert_state, state_of

QUICK_ROME = {
    "layers": [5],
    "v_num_grad_steps": 4,
    "context_templates": ["{}", "I think. {}"],
}
"""Few steps and templates: what is tested here does not depend on how good the edit is."""


@pytest.fixture(scope="session")
def quick_hparams(mend_archive: Path) -> dict[str, Any]:
    """Hyperparameters by method."""
    return {"rome": QUICK_ROME, "mend": {"archive": str(mend_archive)}}


@pytest.fixture(params=sorted(METHODS.keys() - {"serac"}))  # which changes no weight
def editor(
    request: pytest.FixtureRequest, demo_model: Any, quick_hparams: dict[str, Any]
) -> Iterator[Editor]:
    """An editor on the demo model, which is checked to be as it was afterwards."""
    model, tokenizer = demo_model
    before = state_of(model)
    yield Editor(model, tokenizer, method=request.param, hparams=quick_hparams[request.param])
    assert_state(model, before)
    assert not hasattr(model.config, "easyedit_fast_edits")
