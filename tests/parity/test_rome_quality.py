"""How good ROME's edits are on real records, and records that contradict each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from easyedit_fast import Editor, read_requests
from easyedit_fast.errors import RequestError


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "consistent", "locality"),
    [("exact", True, 1.0), ("exact", False, 0.9), ("default", True, 0.9), ("fast", True, 0.9)],
)
def test_24_isolated_edits_succeed_and_stay_local(
    preset: str, consistent: bool, locality: float, demo_model: Any, shared_data: Path
) -> None:
    reference = shared_data / "reference"
    hparams = {
        "layers": [5],
        "consistent_keys": consistent,
        "second_moment": str(reference / "second_moment_smollm2_layer5.npz"),
    }
    if preset == "exact":
        hparams["context_templates"] = str(reference / "rome_smollm2.json")
    editor = Editor(*demo_model, preset=preset, hparams=hparams)
    requests = read_requests(shared_data / "data/counterfact/counterfact-edit.json", limit=24)
    result = editor.edit(requests, isolated=True)
    assert result.settings["mom2_adjustment"] is True
    post = result.summary["post"]
    assert post["rewrite_acc"] == {"mean": 1.0, "count": 24}
    assert post["locality"]["neighborhood_acc"]["mean"] >= locality
    assert post["rephrase_acc"]["mean"] >= 0.25


def test_real_records_that_contradict_each_other(demo_model: Any, shared_data: Path) -> None:
    requests = read_requests(shared_data / "data/counterfact/counterfact-edit.json")
    pair = [requests[452], requests[1091]]
    assert pair[0].prompt == pair[1].prompt
    hparams = {"v_num_grad_steps": 2, "context_templates": ["{}"]}
    editor = Editor(*demo_model, hparams=hparams)
    with pytest.raises(RequestError, match="an earlier request has the same prompt"):
        editor.edit(pair, evaluate=False)
    assert len(editor.edit(pair, isolated=True, evaluate=False).edits) == 2
