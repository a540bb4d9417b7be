"""Factors of gradients, held to plain autograd on every family."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from easyedit_fast.errors import ModelError
from easyedit_fast.mend.factors import TargetRows, model_logits, token_factors
from easyedit_fast.models.architectures import architecture_of, linear_module
from tests.unit.tiny_models import FAMILIES, tiny_model

LAYER = 2


def rows() -> TargetRows:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 60, (2, 7), generator=generator)
    mask = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    labels = torch.full_like(ids, -100)
    labels[0, 5:7] = ids[0, 5:7]
    labels[1, 4] = ids[1, 4]
    return TargetRows.of(ids, mask, labels)


def factors(model: Any, names: list[str], made: TargetRows) -> Any:
    modules = {name: model.get_submodule(name.removesuffix(".weight")) for name in names}
    run = functools.partial(model_logits, model, made)
    return token_factors(run, modules, made, mean_over="batch")


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("both", [False, True])
def test_products_are_the_gradients(family: str, both: bool) -> None:
    model = tiny_model(family)
    places = architecture_of(model)
    parts = [places.mlp_output_projection, *(places.mlp_input_projections if both else ())]
    names = [f"{places.block_name(LAYER)}.{part}.weight" for part in parts]
    made = rows()
    flags = [parameter.requires_grad for parameter in model.parameters()]
    found = factors(model, names, made)
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert not any(part._forward_hooks for part in model.modules())
    logits = model(input_ids=made.input_ids, attention_mask=made.attention_mask).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), made.labels.flatten())
    expected = torch.autograd.grad(loss, [model.get_parameter(name) for name in names])
    for name, gradient in zip(names, expected, strict=True):
        x, delta = found.factors[name]
        layout = linear_module(model, name.removesuffix(".weight"))[1]
        product = delta.T @ x if layout == "out_in" else x.T @ delta
        assert (product - gradient).norm() <= 1e-4 * gradient.norm()
        assert sum(found.tokens[name]) == len(x)


def test_a_module_must_run_once_over_all_tokens() -> None:
    model = tiny_model()
    with pytest.raises(ModelError, match=r"'lm_head\.weight' does not run over all tokens"):
        factors(model, ["lm_head.weight"], rows())
    model.model.layers[3].mlp = model.model.layers[2].mlp
    name = "model.layers.2.mlp.up_proj.weight"
    with pytest.raises(ModelError, match="runs more than once in a pass"):
        factors(model, [name], rows())
