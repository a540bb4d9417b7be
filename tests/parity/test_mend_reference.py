"""MEND held to EasyEdit's code and MEND's own: factors, statistics, losses, outer gradients."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from easyedit_fast.mend.factors import TargetRows, model_logits, token_factors
from easyedit_fast.mend.hparams import MENDHyperParams
from easyedit_fast.mend.losses import TailRows, outer_losses
from easyedit_fast.mend.network import EditorNetwork
from easyedit_fast.models.architectures import architecture_of
from easyedit_fast.models.tail import Tail
from tests.parity.mend_case import (
    CASES,
    HPARAMS,
    INNER_PARAMS,
    LABELS,
    LOCALITY,
    ROWS,
    VARIANTS,
    case_model,
)

Reference = dict[str, Tensor]


@pytest.fixture(params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest) -> tuple[str, str]:
    file, variant = request.param
    return file, variant


@pytest.fixture
def tensors(case: tuple[str, str]) -> Reference:
    return load_file(Path(__file__).with_name(f"mend_{case[0]}.safetensors"))


@pytest.fixture
def reference(case: tuple[str, str], tensors: Reference) -> Reference:
    return below(tensors, f"{case[1]}.")


@pytest.fixture
def model(tensors: Reference) -> Any:
    made = case_model()
    made.load_state_dict(below(tensors, "model."))
    return made


@pytest.fixture
def network(case: tuple[str, str], reference: Reference, model: Any) -> EditorNetwork:
    keys = {**HPARAMS, **VARIANTS[case[1]]}
    known = {name: keys[name] for name in keys if name in MENDHyperParams.model_fields}
    sizes = {name: tuple(model.get_parameter(name).T.shape) for name in INNER_PARAMS}
    made = EditorNetwork(MENDHyperParams(**known), sizes)
    made.load_state_dict(below(reference, "before."))
    return made


def below(tensors: Mapping[str, Tensor], prefix: str) -> Reference:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask


@pytest.fixture
def rows(case: tuple[str, str]) -> TargetRows:
    ids, mask = padded(ROWS)
    labels = torch.full_like(ids, -100)
    for number, (row, target) in enumerate(zip(ROWS, LABELS[case[0]], strict=True)):
        labels[number, len(row) - len(target) : len(row)] = torch.tensor(target)
    return TargetRows.of(ids, mask, labels)


def modules(model: Any) -> dict[str, nn.Module]:
    return {name: model.get_submodule(name.removesuffix(".weight")) for name in INNER_PARAMS}


def kept(model: Any, rows: TargetRows) -> TailRows:
    start = torch.zeros(len(rows.labels), dtype=torch.long)
    places = architecture_of(model)
    tail = Tail.capture(model, places, 1, rows.input_ids, rows.attention_mask, start)
    return TailRows(rows, tail)


def assert_near(found: Tensor, expected: Tensor, what: str) -> None:
    scale = expected.norm().clamp_min(1e-6)
    assert (found - expected).norm() / scale < 1e-4, what


def assert_factors(
    made: Mapping[str, tuple[Tensor, Tensor]], network: Any, reference: Reference, mode: str
) -> None:
    """Tokens are in another order there: the sums of their products are compared."""
    for place, name in enumerate(INNER_PARAMS):
        x, delta = made[name]
        expected_x, expected_delta = (reference[f"{mode}.{side}.{name}"] for side in ("x", "delta"))
        expected = network.edit_lrs[place] * expected_delta.T @ expected_x
        assert_near(delta.T @ x, expected, name)
        assert x.shape == expected_x.shape


def test_an_edit(
    model: Any, network: EditorNetwork, reference: Reference, rows: TargetRows
) -> None:
    network.load_state_dict(below(reference, "after."))
    network.eval()
    run = functools.partial(model_logits, model, rows)
    found = token_factors(run, modules(model), rows, mean_over="batch")
    assert_factors(network(found.factors), network, reference, "eval")


def test_factors_and_statistics_in_training(
    model: Any, network: EditorNetwork, reference: Reference, rows: TargetRows
) -> None:
    network.train()
    run = functools.partial(model_logits, model, rows)
    found = token_factors(run, modules(model), rows, mean_over="batch")
    made = network(found.factors)
    assert_factors(made, network, reference, "train")
    for name, tensor in network.state_dict().items():
        expected = reference[f"after.{name}"]
        torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-6, equal_nan=True)


def test_the_outer_losses(
    model: Any, network: EditorNetwork, reference: Reference, rows: TargetRows
) -> None:
    network.train()
    edits = kept(model, rows)
    ids, mask = padded(LOCALITY)
    locality = kept(model, TargetRows(ids, mask, torch.full_like(ids, -100)))
    reads = mask.bool()
    final = locality.hidden_states(reads)
    found = outer_losses(
        network, modules(model), edits, edits, locality, reads, final, [0, 0], mean_over="batch"
    )
    assert_near(found.edit, reference["loss_edit"], "loss_edit")
    assert_near(found.locality, reference["loss_loc"], "loss_loc")
    total = HPARAMS["cedit"] * found.edit + HPARAMS["cloc"] * found.locality
    parameters = dict(network.named_parameters())
    gradients = torch.autograd.grad(total, list(parameters.values()))
    for name, gradient in zip(parameters, gradients, strict=True):
        assert_near(gradient, reference[f"gradient.{name}"], name)
