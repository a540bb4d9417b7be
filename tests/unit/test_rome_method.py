"""`Rome` itself: what it settles when it is made, statistics, and details."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from easyedit_fast import Editor, EditRequest
from easyedit_fast.errors import HparamsError, RequestError
from easyedit_fast.rome import Rome, resolve_rome_hparams
from easyedit_fast.rome.batches import _for_rows
from easyedit_fast.timings import Timings

GIVEN: dict[str, Any] = {"layers": [5], "v_num_grad_steps": 3, "context_templates": ["{}"]}
REQUEST = EditRequest("The capital of {} is", "Peru", "Oslo")


def make(demo_model: Any, **given: Any) -> Rome:
    return Rome(*demo_model, hparams={**GIVEN, **given})


def statistics(path: Path, size: int) -> Path:
    np.savez(path, **{"mom2.mom2": np.eye(size, dtype=np.float32), "mom2.count": np.array(1)})
    return path


@pytest.mark.parametrize(
    ("name", "given", "table"),
    [
        ("rewrite_module_tmp", "model.layers.{}.mlp.up_proj", "model.layers.{}.mlp.down_proj"),
        ("layer_module_tmp", "transformer.h.{}", "model.layers.{}"),
        ("mlp_module_tmp", "model.layers.{}.self_attn", "model.layers.{}.mlp"),
    ],
)
def test_other_module_names_of_a_known_family_are_refused(
    demo_model: Any, name: str, given: str, table: str
) -> None:
    with pytest.raises(HparamsError) as caught:
        make(demo_model, **{name: given})
    assert str(caught.value).startswith(f"{name} {given!r} is not the Llama row's {table!r}; ")


def test_hyperparameters_are_copied(demo_model: Any) -> None:
    ready = resolve_rome_hparams(GIVEN, demo_model[0])
    rome = Rome(*demo_model, hparams=ready)
    ready.layers = [7]
    assert (rome.hparams.layers, rome.settings()["layers"]) == ([5], [5])
    assert rome.hparams.source == ready.source


def test_one_second_moment_for_several_layers_is_refused(demo_model: Any, tmp_path: Path) -> None:
    size = demo_model[0].config.intermediate_size
    path = statistics(tmp_path / "layer5.npz", size)
    with pytest.raises(HparamsError, match=r"one file for 2 layers, .*'"):
        make(demo_model, layers=[5, 6], second_moment=path)
    statistics(tmp_path / "layer6.npz", size)
    rome = make(demo_model, layers=[5, 6], second_moment=tmp_path / "layer{}.npz")
    assert list(rome.settings()["second_moment"]) == [5, 6]


def test_what_is_not_used_is_said(
    demo_model: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = statistics(tmp_path / "layer5.npz", demo_model[0].config.intermediate_size)
    with caplog.at_level(logging.WARNING, "easyedit_fast"):
        rome = make(demo_model, mom2_adjustment=False, second_moment=path)
    assert "is not used, for mom2_adjustment is false" in caplog.text
    assert rome.settings()["mom2_adjustment"] is False
    caplog.clear()
    name = Path(demo_model[0].name_or_path).name
    folder = tmp_path / "stats" / name / "wikipedia_stats"
    folder.mkdir(parents=True)
    path.rename(folder / "model.layers.5.mlp.down_proj_float32_mom2_100000.npz")
    with caplog.at_level(logging.WARNING, "easyedit_fast"):
        rome = make(demo_model, layers=[5, 6], stats_dir=tmp_path / "stats")
    assert "C = I is used for all layers, since layer 6 has no statistics" in caplog.text
    assert rome.settings()["mom2_adjustment"] is False


def test_an_infinite_condition_is_null(demo_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda matrix: torch.linspace(0, 1, len(matrix)))
    rome = make(demo_model, v_num_grad_steps=1)
    other = EditRequest("Lima lies in the land of {} and", "Peru", "Rome")
    computed = rome.compute([REQUEST, other], isolated=False, timings=Timings())
    assert [detail["layers"][5]["condition"] for detail in computed.details] == [None, None]
    json.dumps(computed.details, allow_nan=False)


def test_errors_count_in_the_whole_list(demo_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_model[0].config, "max_position_embeddings", 30)
    long = EditRequest("{} lies " + "so very " * 20 + "far from", "Peru", "Rome")
    rome = make(demo_model, v_num_grad_steps=1)
    with pytest.raises(RequestError, match=r"record 2, field 'prompt'.*the model reads 30 at most"):
        rome.compute([REQUEST, REQUEST, long], isolated=True, timings=Timings(), batch_size=1)


@pytest.mark.parametrize("isolated", [False, True])
def test_a_later_layer_sees_the_earlier_ones(demo_model: Any, isolated: bool) -> None:
    """The second layer of two is edited as in a model that holds the first one's update."""
    model, _ = demo_model
    both = make(demo_model, layers=[4, 5]).compute([REQUEST], isolated=isolated, timings=Timings())
    names = [f"model.layers.{layer}.mlp.down_proj.weight" for layer in (4, 5)]
    weight = model.get_parameter(names[0])
    original = weight.detach().clone()
    try:
        weight.data += both.updates[0][names[0]].dense()
        alone = make(demo_model).compute([REQUEST], isolated=isolated, timings=Timings())
    finally:
        weight.data.copy_(original)
    torch.testing.assert_close(
        both.updates[0][names[1]].dense(), alone.updates[0][names[1]].dense(), rtol=1e-3, atol=1e-6
    )


def test_a_factor_that_all_rows_share_is_not_copied() -> None:
    projection = torch.nn.Linear(3, 4)
    factor = torch.randn(4, 2)
    rows: Any = type("Requests", (), {"request": torch.tensor([0, 0, 1])})
    one = _for_rows([factor], rows, projection)
    assert one.shape == (3, 4, 2)
    assert one.data_ptr() == factor.data_ptr()
    each = _for_rows([factor, 2 * factor], rows, projection)
    assert torch.equal(each[2], 2 * factor)


@pytest.mark.parametrize("probability", [0.5, 0.9])
def test_normalised_descent_edits_the_real_model_in_few_steps(
    demo_model: Any, probability: float
) -> None:
    fact = {
        "prompt": "The Eiffel Tower is located in the city of",
        "subject": "Eiffel Tower",
        "target_new": "Rome",
    }
    hparams = {
        "layers": [5],
        "context_templates": ["{}"],
        "v_optimizer": "normalised",
        "v_stop_probability": probability,
    }
    editor = Editor(*demo_model, hparams=hparams)
    result = editor.edit(fact, isolated=True)
    assert result.summary["post"]["rewrite_acc"]["mean"] == 1.0
    assert result.summary["post"]["generated"]["rewrite_acc"]["mean"] == 1.0
    (layer,) = result.details[0]["layers"].values()
    assert layer["steps"] <= 10
    nll = [loss[1] for loss in layer["losses"]]
    assert nll[-1] <= -math.log(probability) < nll[-2]
