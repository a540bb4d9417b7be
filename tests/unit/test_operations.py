"""The count from shapes is held to what torch's counter sees while the tail runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from easyedit_fast.models.architectures import architecture_of
from easyedit_fast.models.operations import TailOperations
from easyedit_fast.models.ragged import RaggedTail
from easyedit_fast.models.tail import Tail
from easyedit_fast.models.tracing import frozen
from tests.unit.tiny_models import tiny_model

LENGTHS = torch.tensor([30, 12, 11, 29])
STARTS = torch.tensor([20, 6, 7, 4])


def counted_and_computed(model: PreTrainedModel, layer: int) -> tuple[list[int], list[int]]:
    """Operations of a forward and a backward pass: torch's count, and ours."""
    architecture = architecture_of(model)
    ids = torch.randint(3, 100, (4, 30), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(30) < LENGTHS[:, None]).long()
    tail = Tail.capture(model, architecture, layer, ids, mask, STARTS)
    rows, columns = torch.tensor([0, 0, 1, 3]), torch.tensor([25, 29, 11, 28])
    ragged = RaggedTail(tail, rows, columns, cost=20)
    delta = torch.zeros_like(tail.value).requires_grad_()
    ragged.logits(delta)  # the first call also notes how the blocks are called
    with frozen(model):
        with FlopCounterMode(display=False) as forward:
            logits = ragged.logits(delta)
        with FlopCounterMode(display=False) as backward:
            logits.logsumexp(dim=1).sum().backward()
    operations = TailOperations.of(model, architecture, layer)
    shapes = [group.shape() for group in ragged.groups]
    assert len(shapes) > 1
    assert sum(shape["tokens"] for shape in shapes) == int((LENGTHS - STARTS).sum())
    sizes = [(s["rows"] * s["width"], s["prefix"] + s["width"]) for s in shapes]
    head = operations.head_pass(len(rows))
    ours = [
        head + sum(one_way(tokens, columns) for tokens, columns in sizes)
        for one_way in (operations.forward, operations.backward)
    ]
    return [forward.get_total_flops(), backward.get_total_flops()], ours


@pytest.mark.parametrize("layer", [5, 29])
def test_the_demo_model(demo_model: Any, layer: int) -> None:
    counted, ours = counted_and_computed(demo_model[0], layer)
    assert ours == pytest.approx(counted, rel=0.02)


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "gptj", "bloom", "falcon"])
def test_other_families(family: str) -> None:
    """Attention is a large part of models this small, and torch's way back repeats a part."""
    (forward, backward), ours = counted_and_computed(tiny_model(family), 1)
    assert ours[0] == pytest.approx(forward, rel=0.01)
    assert ours[1] == pytest.approx(backward, rel=0.1)
