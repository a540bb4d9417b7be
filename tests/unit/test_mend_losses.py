"""The outer losses on a kept trunk, held to plain forward passes through edited weights."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from easyedit_fast.mend.factors import TargetRows, model_logits, target_nll, token_factors
from easyedit_fast.mend.hparams import MENDHyperParams
from easyedit_fast.mend.losses import OuterLosses, TailRows, outer_losses
from easyedit_fast.mend.network import EditorNetwork
from easyedit_fast.models.architectures import architecture_of
from easyedit_fast.models.tail import Tail
from easyedit_fast.training.losses import nll_and_divergence
from tests.unit.tiny_models import tiny_model

LAYER = 2
PARTS = {
    "llama": ("gate_proj", "down_proj"),
    "gpt2": ("c_fc", "c_proj"),
}
LENGTHS = [9, 6, 7]
TARGETS = [2, 1, 3]


def inner_params(family: str) -> list[str]:
    blocks = "transformer.h" if family == "gpt2" else "model.layers"
    return [f"{blocks}.{layer}.mlp.{part}.weight" for layer in (LAYER, 3) for part in PARTS[family]]


def rows(seed: int) -> TargetRows:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 60, (3, max(LENGTHS)), generator=generator)
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    labels = torch.full_like(ids, -100)
    for row, (length, target) in enumerate(zip(LENGTHS, TARGETS, strict=True)):
        labels[row, length - target : length] = ids[row, length - target : length]
    return TargetRows.of(ids, mask, labels)


def kept(model: Any, made: TargetRows) -> TailRows:
    start = torch.zeros(3, dtype=torch.long)
    return TailRows(
        made,
        Tail.capture(
            model, architecture_of(model), LAYER, made.input_ids, made.attention_mask, start
        ),
    )


@pytest.fixture(params=list(PARTS))
def case(request: pytest.FixtureRequest) -> tuple[Any, dict[str, nn.Module], EditorNetwork]:
    """A model, the edited modules, and a network that changes what it gets."""
    model = tiny_model(request.param)
    names = inner_params(request.param)
    modules = {name: model.get_submodule(name.removesuffix(".weight")) for name in names}
    sizes = {}
    for name in names:
        rows_, columns = model.get_parameter(name).shape
        sizes[name] = (rows_, columns) if request.param == "gpt2" else (columns, rows_)
    network = EditorNetwork(MENDHyperParams(inner_params=names, rank=4, edit_lr=0.02), sizes)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(2)
        for parameter in network.mend.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model, modules, network


def plain(
    model: Any, modules: Any, network: EditorNetwork, groups: list[int]
) -> tuple[Tensor, Tensor]:
    """Each record alone in a model whose weights hold its whole group's update."""
    edits, targets, locality = rows(0), rows(1), rows(2)
    run = functools.partial(model_logits, model, edits)
    gradients = token_factors(run, modules, edits)
    factors = network(gradients.factors)
    nll, divergence, tokens = [], [], 0
    for place, group in enumerate(groups):
        weights = {}
        for name in modules:
            x, delta = (side.split(gradients.tokens[name]) for side in factors[name])
            update = sum(
                delta[member].T @ x[member] for member, other in enumerate(groups) if other == group
            )
            assert isinstance(update, Tensor)
            weight = model.get_parameter(name)
            weights[name] = weight + (update.T if "transformer" in name else update)

        def call(ids: Tensor, mask: Tensor, weights: Any = weights) -> Tensor:
            output = torch.func.functional_call(
                model, weights, kwargs={"input_ids": ids, "attention_mask": mask}
            )
            logits: Tensor = output.logits
            return logits

        own = [part[place : place + 1] for part in (targets.input_ids, targets.attention_mask)]
        labels = targets.labels[place : place + 1]
        nll.append(target_nll(call(*own)[labels != -100], labels)[0])
        other_ids = [
            part[place : place + 1] for part in (locality.input_ids, locality.attention_mask)
        ]
        real = other_ids[1].bool()
        base = model(input_ids=other_ids[0], attention_mask=other_ids[1]).logits[real].detach()
        p, q = base.softmax(-1), call(*other_ids)[real].softmax(-1)
        divergence.append((p * (p.log() - q.log())).sum())
        tokens += int(real.sum())
    return torch.cat(nll).mean(), torch.stack(divergence).sum() / tokens


@pytest.mark.parametrize("groups", [[0, 1, 2], [0, 0, 0], [0, 1, 1]])
@pytest.mark.parametrize("training", [False, True])
def test_losses_and_their_gradients(
    case: tuple[Any, dict[str, nn.Module], EditorNetwork], groups: list[int], training: bool
) -> None:
    model, modules, network = case
    model.requires_grad_(False)
    run = functools.partial(model_logits, model, rows(0))
    gradients = token_factors(run, modules, rows(0))
    network.train()(gradients.factors)  # a mean and a deviation
    network.train(training)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    edits, targets, locality = (kept(model, rows(seed)) for seed in (0, 1, 2))
    reads = locality.rows.attention_mask.bool()
    final = locality.hidden_states(reads)
    found: OuterLosses = outer_losses(
        network, modules, edits, targets, locality, reads, final, groups
    )
    parameters = list(network.parameters())
    ours = torch.autograd.grad(found.edit + found.locality, parameters)
    network.load_state_dict(state)
    expected_edit, expected_locality = plain(model, modules, network, groups)
    theirs = torch.autograd.grad(expected_edit + expected_locality, parameters)
    torch.testing.assert_close(found.edit, expected_edit, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.locality, expected_locality, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found.inner, gradients.losses, rtol=1e-4, atol=1e-6)
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).norm() <= 1e-3 * other.norm() + 1e-6
    assert found.locality.item() > 1e-6


@pytest.mark.parametrize("rows_", [1, 8, 21])
def test_both_losses_and_their_gradients(rows_: int) -> None:
    generator = torch.Generator().manual_seed(0)
    base = 3 * torch.randn(rows_, 40, generator=generator)
    labels = torch.tensor([3, 0, 39])
    ours = 3 * torch.randn(3 + rows_, 40, generator=generator)
    theirs = ours.clone().requires_grad_(True)
    ours.requires_grad_(True)
    expected = (
        nn.functional.cross_entropy(theirs[:3], labels, reduction="none"),
        nn.functional.kl_div(
            theirs[3:].log_softmax(-1), base.log_softmax(-1), reduction="none", log_target=True
        ).sum(-1),
    )
    found = nll_and_divergence(ours, labels, base)
    torch.testing.assert_close(found, expected)
    weights = [torch.randn(len(loss), generator=generator) for loss in expected]
    torch.autograd.backward(found, weights)
    torch.autograd.backward(expected, weights)
    torch.testing.assert_close(ours.grad, theirs.grad)
    half = nll_and_divergence(ours.detach().bfloat16(), labels, base.bfloat16())
    assert [loss.dtype for loss in half] == [torch.float32] * 2
    torch.testing.assert_close(half, found, rtol=0.05, atol=0.01)
    same = torch.cat([ours.detach()[:3], base])
    assert torch.equal(nll_and_divergence(same, labels, base)[1], torch.zeros(rows_))
    same[3] = torch.nan
    assert nll_and_divergence(same, labels, base)[1].isnan().tolist() == [True] + [False] * (
        rows_ - 1
    )
