"""The tail is held to the model's full forward pass, on every family."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from easyedit_fast.errors import ModelError
from easyedit_fast.models.architectures import Architecture, architecture_of, edited_module
from easyedit_fast.models.prefix import Cut
from easyedit_fast.models.tail import Tail, capture_keys
from easyedit_fast.models.tracing import edit_output
from tests.unit.tiny_models import FAMILIES, VOCABULARY, tiny_gemma3_with_vision, tiny_model

LENGTHS = (12, 5, 9, 1, 7)
STARTS = (6, 0, 8, 0, 3)  # an empty prefix, a tail of one token, a row of one token
PADDINGS = ("right", "left", "none")


@dataclasses.dataclass(frozen=True)
class Rows:
    input_ids: Tensor
    attention_mask: Tensor
    start: Tensor
    rows: Tensor
    columns: Tensor


def make_rows(padding: str, lengths: tuple[int, ...] = LENGTHS) -> Rows:
    """Rows of random tokens, and all their tail columns as places to read."""
    generator = torch.Generator().manual_seed(1)
    starts = STARTS
    if padding == "none":
        lengths, starts = (9,) * len(lengths), (4, 0, 8, 1, 6)
    width = max(lengths)
    input_ids = torch.zeros(len(lengths), width, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    start, places = [], []
    for row, (length, first) in enumerate(zip(lengths, starts, strict=True)):
        offset = width - length if padding == "left" else 0
        tokens = torch.randint(3, VOCABULARY, (length,), generator=generator)
        input_ids[row, offset : offset + length] = tokens
        attention_mask[row, offset : offset + length] = 1
        start.append(offset + first)
        places += [(row, column) for column in range(offset + first, offset + length)]
    rows, columns = torch.tensor(places).unbind(1)
    return Rows(input_ids, attention_mask, torch.tensor(start), rows, columns)


def full_logits(
    model: PreTrainedModel, architecture: Architecture, layer: int, rows: Rows, delta: Tensor
) -> Tensor:
    """The reference: the whole model on all tokens, `delta` added at the start columns."""
    count = rows.input_ids.shape[0]

    def add(_: Tensor, output: Tensor) -> Tensor:
        shifted = output.reshape(count, -1, output.shape[-1]).clone()
        shifted[torch.arange(count), rows.start] += delta
        return shifted.reshape(output.shape)

    positions = Cut.at(rows.attention_mask, rows.start).positions
    names = inspect.signature(type(model).forward).parameters
    arguments = {"position_ids": positions} if "position_ids" in names else {}
    with edit_output(edited_module(model, architecture, layer), add):
        output = model(
            input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False, **arguments
        )
    return output.logits[rows.rows, rows.columns]


def make_delta(model: PreTrainedModel, rows: Rows) -> Tensor:
    size = model.get_input_embeddings() and model.config.get_text_config().hidden_size
    noise = torch.randn(rows.start.shape[0], size, generator=torch.Generator().manual_seed(2))
    return noise.requires_grad_()


@torch.no_grad()
def relative_error(result: Tensor, expected: Tensor) -> float:
    return ((result - expected).norm() / expected.norm()).item()


def check_tail(model: PreTrainedModel, layer: int, rows: Rows) -> None:
    architecture = architecture_of(model)
    delta = make_delta(model, rows)
    weights = torch.randn(len(rows.rows), VOCABULARY, generator=torch.Generator().manual_seed(3))
    expected = full_logits(model, architecture, layer, rows, delta)
    (expected_gradient,) = torch.autograd.grad((expected.log_softmax(-1) * weights).sum(), delta)
    tail = Tail.capture(
        model, architecture, layer, rows.input_ids, rows.attention_mask, rows.start
    )
    result = tail.logits(delta, rows.rows, rows.columns)
    (gradient,) = torch.autograd.grad((result.log_softmax(-1) * weights).sum(), delta)
    assert relative_error(result, expected) < 1e-5
    assert relative_error(gradient, expected_gradient) < 1e-5
    # Without these the comparison would pass where delta does nothing.
    unedited = tail.logits(None, rows.rows, rows.columns)
    assert relative_error(unedited, expected) > 1e-2
    assert float(expected_gradient.abs().min(dim=1).values.max()) > 0


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("layer", [0, 1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_full_forward(family: str, layer: int, padding: str) -> None:
    check_tail(tiny_model(family), layer, make_rows(padding))
