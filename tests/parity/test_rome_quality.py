"""How good ROME's edits are on real records, and records that contradict each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from easyedit_fast import Editor, read_requests
from easyedit_fast.errors import RequestError


@pytest.mark.slow
def test_24_isolated_edits_succeed_and_stay_local(demo_model: Any, shared_data: Path) -> None:
    reference = shared_data / "reference"
    editor = Editor(
        *demo_model,
        hparams={
            "layers": [5],
            "context_templates": str(reference / "rome_smollm2.json"),
            "second_moment": str(reference / "second_moment_smollm2_layer5.npz"),
        },
    )
    requests = read_requests(shared_data / "data/counterfact/counterfact-edit.json", limit=24)
    result = editor.edit(requests, isolated=True)
    assert result.settings["mom2_adjustment"] is True
    post = result.summary["post"]
    assert post["rewrite_acc"] == {"mean": 1.0, "count": 24}
    assert post["locality"]["neighborhood_acc"] == {"mean": 1.0, "count": 24}
    assert post["rephrase_acc"]["mean"] >= 0.25


def test_real_records_that_contradict_each_other(demo_model: Any, shared_data: Path) -> None:
    requests = read_requests(shared_data / "data/counterfact/counterfact-edit.json")
    pair = [requests[452], requests[1091]]
    assert pair[0].prompt == pair[1].prompt
    hparams = {"v_num_grad_steps": 2, "context_templates": ["{}"]}
    editor = Editor(*demo_model, hparams=hparams)
    with pytest.raises(RequestError, match="requests 0 and 1 have the same prompt"):
        editor.edit(pair, evaluate=False)
    assert len(editor.edit(pair, isolated=True, evaluate=False).edits) == 2
