"""ROME against what EasyEdit's own code computed on the real model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from easyedit_fast import EditRequest
from easyedit_fast.rome import Rome
from easyedit_fast.timings import Timings


@pytest.mark.parametrize("mom2_adjustment", [False, True])
def test_the_updates_equal_easyedits(
    mom2_adjustment: bool, demo_model: Any, shared_data: Path
) -> None:
    folder = shared_data / "reference"
    reference = json.loads((folder / "rome_smollm2.json").read_text())
    vectors = load_file(folder / "rome_smollm2.safetensors")
    cases = [
        case for case in reference["cases"] if case["hparams"]["mom2_adjustment"] is mom2_adjustment
    ]
    assert len(cases) == 4
    hparams = {
        **cases[0]["hparams"],
        "context_templates": reference["context_templates"],
        "second_moment": str(folder / "second_moment_smollm2_layer5.npz"),
    }
    rome = Rome(*demo_model, hparams=hparams, preset="exact")
    assert rome.settings()["mom2_adjustment"] is mom2_adjustment
    requests = [EditRequest(**case["record"]) for case in cases]
    computed = rome.compute(requests, isolated=True, timings=Timings())
    for case, updates, detail in zip(cases, computed.updates, computed.details, strict=True):
        left, right = (vectors[f"{case['name']}.{side}"] for side in ("left", "right"))
        expected = torch.outer(right, left)
        update = updates[case["parameter"]]
        error = (update.output_factor @ update.input_factor - expected).norm() / expected.norm()
        assert error <= 1e-3, case["name"]
        losses = detail["layers"][5]["losses"]
        assert len(losses) == len(case["losses_total_nll_kl_wd"])
        torch.testing.assert_close(
            torch.tensor(losses), torch.tensor(case["losses_total_nll_kl_wd"]), rtol=0, atol=2e-3
        )
