"""Hooks and switches take effect, and leave nothing behind."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from easyedit_fast.models.architectures import architecture_of, edited_module, edited_weight
from easyedit_fast.models.tracing import (
    edit_output,
    frozen,
    replaced,
    row_updates,
    stop_after,
    watch_block,
    watch_call,
)
from tests.unit.tiny_models import VOCABULARY, tiny_model


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model()


def projection_of(model: PreTrainedModel) -> nn.Module:
    return edited_module(model, architecture_of(model), 1)


def tokens(rows: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (rows, 6), generator=generator)


def fail_if(installed: bool) -> None:
    """The exception that the context managers shall survive, where they did their work."""
    if installed:
        raise KeyError


def hooks_of(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def installed(name: str, module: nn.Module) -> AbstractContextManager[None]:
    factors = (torch.zeros(2, 32, 1), torch.zeros(2, 1, 48))
    return {
        "watch_call": lambda: watch_call(module, lambda _, __: None),
        "watch_block": lambda: watch_block(module, lambda _: None, lambda _: None),
        "edit_output": lambda: edit_output(module, lambda _, output: output),
        "row_updates": lambda: row_updates(module, *factors),
        "stop_after": lambda: stop_after(module),
    }[name]()


@pytest.mark.parametrize(
    "name", ["watch_call", "watch_block", "edit_output", "row_updates", "stop_after"]
)
def test_removes_only_its_own_hooks_also_after_an_exception(name: str) -> None:
    model = tiny_model()
    projection = projection_of(model)
    calls: list[int] = []
    projection.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(KeyError), installed(name, projection):
        fail_if(hooks_of(model) > 1)
    assert hooks_of(model) == 1
    model(tokens(2))
    assert calls == [1]


def test_watch_call_sees_input_and_output(model: PreTrainedModel) -> None:
    projection = projection_of(model)
    seen: list[tuple[Tensor, Tensor]] = []
    with watch_call(projection, lambda inputs, output: seen.append((inputs, output))):
        model(tokens(2))
    ((inputs, output),) = seen
    assert inputs.shape == (2, 6, 48)
    torch.testing.assert_close(projection(inputs), output)


def test_edit_output_changes_what_follows(model: PreTrainedModel) -> None:
    before = model(tokens(2)).logits
    with edit_output(projection_of(model), lambda _, output: output + 1):
        edited = model(tokens(2)).logits
    assert not torch.allclose(edited, before)
    torch.testing.assert_close(model(tokens(2)).logits, before)


def test_stop_after_spares_the_rest(model: PreTrainedModel) -> None:
    reached: list[str] = []
    with (
        watch_call(model.lm_head, lambda _, __: reached.append("head")),
        watch_call(projection_of(model), lambda _, __: reached.append("projection")),
        stop_after(projection_of(model)),
    ):
        model(tokens(2))
        reached.append("after the stop")
    assert reached == ["projection"]


def test_stop_after_lets_other_exceptions_through(model: PreTrainedModel) -> None:
    with pytest.raises(IndexError), stop_after(projection_of(model)):
        model(tokens(2) + VOCABULARY)


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon", "bloom", "opt"])
def test_row_updates_equal_edited_weights(family: str) -> None:
    """Three models edited differently, run one by one and in one forward pass."""
    model = tiny_model(family)
    architecture = architecture_of(model)
    weight = edited_weight(model, architecture, 1)
    outer = architecture.weight_layout == "out_in"
    d_out, d_in = weight.shape if outer else weight.shape[::-1]
    generator = torch.Generator().manual_seed(5)
    output_factor = torch.randn(3, d_out, 2, generator=generator)
    input_factor = torch.randn(3, 2, d_in, generator=generator) / d_in**0.5
    input_ids = tokens(3)
    with row_updates(projection_of(model), output_factor, input_factor), torch.no_grad():
        together = model(input_ids).logits
    unedited = weight.detach().clone()
    for row in range(3):
        update = output_factor[row] @ input_factor[row]
        with torch.no_grad():
            weight.copy_(unedited + (update if outer else update.T))
            alone = model(input_ids[row : row + 1]).logits
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(together[row - 1 : row or None], alone, atol=1e-2)


@pytest.mark.parametrize("counts", [[2, 2], [1, 3], [3, 1], [4]])
def test_rows_that_share_an_update(counts: list[int]) -> None:
    model = tiny_model()
    generator = torch.Generator().manual_seed(5)
    output_factor, input_factor = (
        torch.randn(len(counts), *size, generator=generator).requires_grad_()
        for size in ((32, 2), (2, 48))
    )
    input_ids = tokens(4)
    which = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))

    def run(*factors: Any) -> list[Tensor]:
        with row_updates(projection_of(model), *factors):
            logits = model(input_ids).logits
        return [logits, *torch.autograd.grad(logits.square().sum(), [output_factor, input_factor])]

    shared = run(output_factor, input_factor, counts)
    apart = run(output_factor[which], input_factor[which])
    for one, other in zip(shared, apart, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()


def test_row_updates_keep_the_models_dtype() -> None:
    model = tiny_model().to(torch.bfloat16)
    with row_updates(projection_of(model), torch.ones(2, 32, 1), torch.ones(2, 1, 48)):
        assert model(tokens(2)).logits.dtype == torch.bfloat16


def test_frozen_restores_every_flag() -> None:
    model = tiny_model()
    model.train()
    model.model.layers[2].eval()
    next(model.parameters()).requires_grad_(False)

    def flags() -> list[bool]:
        modes = [part.training for part in model.modules()]
        return modes + [parameter.requires_grad for parameter in model.parameters()]

    before = flags()
    with frozen(model):
        assert not any(flags())
        with frozen(model):
            pass
        assert not any(flags())
    assert flags() == before
    with pytest.raises(KeyError), frozen(model):
        fail_if(not any(flags()))
    assert flags() == before
    assert 0 < sum(before) < len(before)


def test_replaced_puts_the_original_back_in_its_place() -> None:
    model = tiny_model()
    names = [name for name, _ in model.named_modules()]
    norm = model.model.norm
    with pytest.raises(KeyError), replaced(model.model, "norm", nn.Identity()):
        fail_if(isinstance(model.model.norm, nn.Identity))
    assert model.model.norm is norm
    assert [name for name, _ in model.named_modules()] == names
