"""Shared keys are read where they are, by the blocks that can, while they are asked to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from easyedit_fast.models import attention
from easyedit_fast.models.architectures import architecture_of, block_list
from easyedit_fast.models.tail import Tail
from tests.unit.tiny_models import FAMILIES, VOCABULARY, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


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
    blocks = block_list(model, architecture_of(model))
    with pytest.raises(KeyboardInterrupt), attention.shared_keys(blocks):
        raise KeyboardInterrupt
    assert (model.config.to_dict(), model.config._attn_implementation) == before


@pytest.mark.parametrize("choice", ["eager", "sdpa"])
def test_only_sdpa_is_replaced(choice: str) -> None:
    model = tiny_model("llama", attn_implementation=choice)
    with attention.shared_keys(block_list(model, architecture_of(model))):
        assert (model.config._attn_implementation == choice) == (choice == "eager")
