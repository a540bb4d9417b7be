"""The tail is held to the model's full forward pass, on every family."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import transformers
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.llama.modeling_llama import LlamaModel

from easyedit_fast.errors import ModelError
from easyedit_fast.models.architectures import Architecture, architecture_of, edited_module
from easyedit_fast.models.prefix import Cut
from easyedit_fast.models.ragged import RaggedTail
from easyedit_fast.models.tail import Tail
from easyedit_fast.models.tracing import edit_output
from easyedit_fast.models.trunk import capture_tails
from tests.unit.tiny_models import FAMILIES, VOCABULARY, tiny_gemma3_with_vision, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

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


def make_rows(padding: str) -> Rows:
    """Rows of random tokens, and all their tail columns as places to read."""
    generator = torch.Generator().manual_seed(1)
    lengths, starts = LENGTHS, STARTS
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
            input_ids=rows.input_ids,
            attention_mask=rows.attention_mask,
            use_cache=False,
            **arguments,
        )
    return output.logits[rows.rows, rows.columns]


def make_delta(model: PreTrainedModel, rows: Rows) -> Tensor:
    size = model.config.get_text_config().hidden_size
    noise = torch.randn(rows.start.shape[0], size, generator=torch.Generator().manual_seed(2))
    return noise.requires_grad_()


@functools.cache
def shared_model(family: str, **changes: str) -> PreTrainedModel:
    """A model for tests that leave it as it is."""
    return tiny_model(family, **changes)


def capture(model: PreTrainedModel, layer: int, rows: Rows) -> Tail:
    return Tail.capture(
        model, architecture_of(model), layer, rows.input_ids, rows.attention_mask, rows.start
    )


@torch.no_grad()
def relative_error(result: Tensor, expected: Tensor) -> float:
    return ((result - expected).norm() / expected.norm()).item()


def check_tail(model: PreTrainedModel, layer: int, rows: Rows) -> None:
    architecture = architecture_of(model)
    delta = make_delta(model, rows)
    weights = torch.randn(len(rows.rows), VOCABULARY, generator=torch.Generator().manual_seed(3))
    expected = full_logits(model, architecture, layer, rows, delta)
    (expected_gradient,) = torch.autograd.grad((expected.log_softmax(-1) * weights).sum(), delta)
    tail = capture(model, layer, rows)
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
    check_tail(shared_model(family), layer, make_rows(padding))


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_full_forward_with_eager_attention(family: str) -> None:
    check_tail(shared_model(family, attn_implementation="eager"), 1, make_rows("left"))


def test_language_model_of_a_multimodal_model() -> None:
    check_tail(tiny_gemma3_with_vision(), 1, make_rows("right"))


@pytest.mark.parametrize("family", ["mistral", "qwen2", "gemma2", "gemma3", "phi3"])
def test_rows_are_longer_than_the_sliding_window(family: str) -> None:
    """Else the families with windows would be compared without them."""
    rows = make_rows("right")
    wide, narrow = (
        tiny_model(family, sliding_window=size)(rows.input_ids, rows.attention_mask).logits
        for size in (64, FAMILIES[family][1]["sliding_window"])
    )
    assert relative_error(narrow[0, -1], wide[0, -1]) > 1e-2


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_no_row_has_a_prefix(family: str, padding: str) -> None:
    """Without pads the model then leaves the mask out."""
    rows = make_rows(padding)
    first = rows.attention_mask.argmax(dim=1)
    check_tail(shared_model(family), 2, dataclasses.replace(rows, start=first))


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_tail_is_one_token(family: str, padding: str) -> None:
    rows = make_rows(padding)
    columns = torch.arange(rows.attention_mask.shape[1])
    last = (rows.attention_mask * columns).argmax(dim=1)
    ends = dataclasses.replace(rows, start=last, rows=torch.arange(len(last)), columns=last)
    check_tail(shared_model(family), 1, ends)


@pytest.mark.parametrize("family", FAMILIES)
def test_selected_rows_give_the_same_logits(family: str) -> None:
    model, rows = shared_model(family), make_rows("left")
    tail = capture(model, 1, rows)
    delta = make_delta(model, rows)
    whole = tail.logits(delta, rows.rows, rows.columns)
    kept = torch.tensor([4, 2])
    part = tail.select(kept)
    for number, row in enumerate(kept):
        places = rows.rows == row
        columns = rows.columns[places]
        logits = part.logits(delta[kept], torch.full_like(columns, number), columns)
        assert relative_error(logits, whole[places]) < 1e-5
    torch.testing.assert_close(part.key, tail.key[kept])
    torch.testing.assert_close(part.value, tail.value[kept])


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_side_and_company_change_nothing(family: str) -> None:
    model = shared_model(family)
    results = []
    for padding in ("left", "right"):
        rows = make_rows(padding)
        results.append(
            capture(model, 1, rows).logits(make_delta(model, rows), rows.rows, rows.columns)
        )
    assert relative_error(results[0], results[1]) < 1e-5
    rows = make_rows("left")
    alone = Rows(
        rows.input_ids[2:3, 3:],
        rows.attention_mask[2:3, 3:],
        rows.start[2:3] - 3,
        torch.zeros(1, dtype=torch.long),
        rows.columns[rows.rows == 2] - 3,
    )
    logits = capture(model, 1, alone).logits(
        make_delta(model, rows)[2:3], alone.rows, alone.columns
    )
    assert relative_error(logits, results[0][rows.rows == 2]) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_captured_keys_and_values(family: str) -> None:
    """Key and value are the projection's input and output: the weight and bias connect them."""
    model, rows = shared_model(family), make_rows("right")
    architecture = architecture_of(model)
    tail = capture(model, 2, rows)
    projection = edited_module(model, architecture, 2)
    torch.testing.assert_close(projection(tail.key), tail.value)
    assert tail.key.shape == (len(LENGTHS), projection.weight.numel() // tail.value.shape[1])


@pytest.mark.parametrize("captured", [Tail.capture_layers, capture_tails])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_several_layers_from_one_run(family: str, padding: str, captured: Any) -> None:
    """Each layer's tail is, bit for bit, the one of a run of its own; the prefix is held once."""
    model, rows = shared_model(family), make_rows(padding)
    delta = make_delta(model, rows)
    tokens = (rows.input_ids, rows.attention_mask, rows.start)
    tails = captured(model, architecture_of(model), [3, 0, 1], *tokens)
    assert list(tails) == [3, 0, 1]
    for layer, tail in tails.items():
        alone = captured(model, architecture_of(model), [layer], *tokens)[layer]
        for name in ("key", "value", "entering"):
            assert torch.equal(getattr(tail, name), getattr(alone, name)), name
        assert sorted(tail.prefix) == sorted(alone.prefix) == list(range(layer, 4))
        result = tail.logits(delta, rows.rows, rows.columns)
        assert torch.equal(result, alone.logits(delta, rows.rows, rows.columns))
        for above, states in tail.prefix.items():
            assert all(
                one is other for one, other in zip(states, tails[0].prefix[above], strict=True)
            )


@pytest.mark.parametrize("family", FAMILIES)
def test_runs_in_bfloat16(family: str) -> None:
    model, rows = tiny_model(family).to(torch.bfloat16), make_rows("left")
    delta = make_delta(model, rows)
    logits = capture(model, 1, rows).logits(delta, rows.rows, rows.columns)
    # GPT-J computed its logits in float32 before transformers 5.
    assert logits.dtype in (torch.bfloat16, torch.float32)
    (gradient,) = torch.autograd.grad(logits.float().square().sum(), delta)
    assert gradient.dtype == torch.float32
    exact = capture(shared_model(family), 1, rows).logits(delta, rows.rows, rows.columns)
    assert relative_error(logits.float(), exact) < 0.1


class HostReads(TorchDispatchMode):
    """Notes every operation that makes the host wait for a tensor's value."""

    WAITS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(func.__name__.startswith(name + ".") for name in self.WAITS):
            self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_reads_nothing_on_the_host(family: str) -> None:
    model, rows = shared_model(family), make_rows("left")
    ragged = RaggedTail(capture(model, 1, rows), rows.rows, rows.columns, cost=0)
    delta = make_delta(model, rows)
    ragged.logits(delta)
    with HostReads() as reads:
        loss = ragged.logits(delta).sum()
        torch.autograd.grad(loss, delta)
    if not (family.startswith("opt") and transformers.__version__ < "5"):
        # The older OPT made a mask for the head and looked whether it is all ones.
        assert reads.found == []
    with HostReads() as reads:
        loss.item()
    assert reads.found != []


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_leaves_the_model_as_it_was_after_an_exception(family: str) -> None:
    model, rows = tiny_model(family), make_rows("right")
    model.train()
    frozen_by_user = next(model.parameters()).requires_grad_(False)
    before = snapshot(model)
    tail = capture(model, 1, rows)
    tail.logits(make_delta(model, rows), rows.rows, rows.columns)
    assert snapshot(model) == before
    with pytest.raises(IndexError):
        tail.logits(make_delta(model, rows), rows.rows, rows.columns + 1000)
    with pytest.raises(RuntimeError):
        tail.logits(make_delta(model, rows)[:, :-1], rows.rows, rows.columns)
    assert snapshot(model) == before
    assert not frozen_by_user.requires_grad


def test_models_with_offloaded_layers(tmp_path: Path) -> None:
    """As device_map="auto" leaves them where a model is larger than the memory."""
    model, rows = tiny_model(), make_rows("left")
    places = {f"model.layers.{layer}": "disk" for layer in (0, 1, 3)}
    places |= dict.fromkeys(("model.embed_tokens", "model.layers.2", "model.norm"), "cpu")
    places |= {"model.rotary_emb": "cpu", "lm_head": "cpu"}
    model = accelerate.dispatch_model(model, places, main_device="cpu", offload_dir=tmp_path)
    before = snapshot(model)
    delta = make_delta(model, rows)
    logits = capture(model, 2, rows).logits(delta, rows.rows, rows.columns)
    expected = capture(shared_model("llama"), 2, rows).logits(delta, rows.rows, rows.columns)
    assert relative_error(logits, expected) < 1e-6
    assert snapshot(model) == before
    with pytest.raises(ModelError, match="is offloaded"):
        capture(model, 1, rows)


def snapshot(model: PreTrainedModel) -> list[object]:
    """Modules by identity, their hooks and modes, and the flags of the parameters."""
    return [
        [
            (name, id(part), part.training, len(part._forward_hooks), len(part._forward_pre_hooks))
            for name, part in model.named_modules()
        ],
        [(name, p.requires_grad, p.grad is None) for name, p in model.named_parameters()],
    ]


def test_refuses_rows_with_pads_inside() -> None:
    rows = make_rows("none")
    mask = rows.attention_mask.clone()
    mask[1, 4] = 0
    with pytest.raises(ModelError, match="pads between tokens"):
        capture(shared_model("llama"), 1, dataclasses.replace(rows, attention_mask=mask))


def test_refuses_a_start_on_a_pad() -> None:
    rows = make_rows("left")
    with pytest.raises(ModelError, match="start must be the column of a token"):
        capture(shared_model("llama"), 1, dataclasses.replace(rows, start=torch.zeros(5).long()))


class RescalingLlama(LlamaModel):
    """A decoder with something of its own between its blocks."""

    def forward(self, inputs_embeds=None, input_ids=None, position_ids=None, cache=None, **_):
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        embeddings = self.rotary_emb(hidden, position_ids)
        for layer in self.layers:
            output = layer(hidden / 2, position_embeddings=embeddings)
            hidden = output[0] if isinstance(output, tuple) else output
        return BaseModelOutput(last_hidden_state=self.norm(hidden))


def test_refuses_a_decoder_that_works_between_its_blocks() -> None:
    model, rows = tiny_model("llama"), make_rows("none")
    model.model.__class__ = RescalingLlama
    tail = capture(model, 1, rows)
    with pytest.raises(ModelError, match="more between its blocks"):
        tail.logits(None, rows.rows, rows.columns)


@pytest.mark.parametrize("family", FAMILIES)
def test_states_without_a_gradient_run_along_through_the_head(family: str) -> None:
    model = shared_model(family)
    tail = capture(model, 2, make_rows("right"))
    size = tail.entering.shape[-1]
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(3, size, generator=generator, requires_grad=True)
    others = torch.randn(4, size, generator=generator)
    weight = torch.randn(3, VOCABULARY, generator=generator)

    together = tail.head(hidden, others)
    (gradient,) = torch.autograd.grad((together[:3] * weight).sum(), hidden)
    alone = tail.head(hidden)
    (expected,) = torch.autograd.grad((alone * weight).sum(), hidden)
    torch.testing.assert_close(together, torch.cat([alone, tail.head(others)]))
    torch.testing.assert_close(gradient, expected)
    assert "forward" not in vars(model.get_output_embeddings())
