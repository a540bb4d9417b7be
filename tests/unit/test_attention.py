"""Shared keys are read where they are, by the blocks that can, while they are asked to."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor

from easyedit_fast.models import attention
from easyedit_fast.models.architectures import architecture_of, block_list
from easyedit_fast.models.tail import Tail
from tests.unit.tiny_models import FAMILIES, VOCABULARY, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


def sharing(model: Any) -> contextlib.AbstractContextManager[None]:
    blocks = block_list(model, architecture_of(model))
    return attention.shared_keys(attention.sharing_configs(blocks))


def run_tail(model: Any) -> Tensor:
    tokens = torch.arange(3, 27).view(2, 12) % VOCABULARY
    mask = torch.ones_like(tokens)
    mask[1, :4] = 0
    start = torch.tensor([6, 7])
    tail = Tail.capture(model, architecture_of(model), 1, tokens, mask, start)
    return tail.logits(None, torch.tensor([0, 1]), torch.tensor([11, 11]))


def test_keys_are_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    torchs = attention.scaled_dot_product_attention

    def record(query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.append((query.shape[1], key.shape[1]))
        return torchs(query, key, *args, **kwargs)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", record)
    model = tiny_model("llama")
    run_tail(model)
    heads = model.config.num_attention_heads, model.config.num_key_value_heads
    assert heads[0] > heads[1]
    assert seen == [heads] * 3


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_keeps_its_attention(family: str) -> None:
    model = tiny_model(family)
    before = model.config.to_dict(), model.config._attn_implementation
    run_tail(model)
    with pytest.raises(KeyboardInterrupt), sharing(model):
        raise KeyboardInterrupt
    assert (model.config.to_dict(), model.config._attn_implementation) == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mask", ["bool", "added", "longer"])
def test_equals_what_transformers_computes(mask: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype).requires_grad_()

    module = tiny_model("llama").model.layers[0].self_attn
    query, key, value = draw(3, 4, 5, 8), draw(3, 2, 9, 8), draw(3, 2, 9, 8)
    seen = torch.rand(3, 1, 5, 12 if mask == "longer" else 9, generator=generator) > 0.3
    seen[..., 0] = True
    added = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
    given = seen if mask == "bool" else added
    ours, _ = attention._attend(module, query, key, value, given, scaling=0.3)
    theirs, _ = attention.sdpa_attention_forward(
        module, query, key, value, given[..., :9], scaling=0.3
    )
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn(ours.shape, generator=generator).to(dtype)
    # Gradients of shared keys are sums over their heads, which bfloat16 rounds in another order.
    close = {} if dtype == torch.float32 else {"atol": 1e-2, "rtol": 0.02}
    for one, other in zip(
        torch.autograd.grad(ours, (query, key, value), weights),
        torch.autograd.grad(theirs, (query, key, value), weights),
        strict=True,
    ):
        torch.testing.assert_close(one, other, **close)


def test_a_model_of_the_same_configuration_computes_the_same() -> None:
    first = tiny_model("llama")
    other = type(first)(first.config).eval()
    tokens = torch.arange(3, 15).view(2, 6)
    mask = torch.tensor([[1] * 6, [0, 0, 0, 1, 1, 1]])
    with torch.no_grad():
        alone = other(tokens, attention_mask=mask).logits
        with sharing(first):
            meanwhile = other(tokens, attention_mask=mask).logits
    torch.testing.assert_close(meanwhile[mask.bool()], alone[mask.bool()])


@pytest.mark.parametrize("choice", ["eager", "sdpa"])
def test_only_sdpa_is_replaced(choice: str) -> None:
    model = tiny_model("llama", attn_implementation=choice)
    with sharing(model):
        assert (model.config._attn_implementation == choice) == (choice == "eager")
