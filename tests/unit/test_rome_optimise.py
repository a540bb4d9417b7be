"""The batched optimisation is held to a plain one: full forward passes, one request at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from easyedit_fast.models import ragged
from easyedit_fast.models.architectures import Architecture, architecture_of, edited_module
from easyedit_fast.models.tail import Tail
from easyedit_fast.models.tracing import edit_output
from easyedit_fast.rome.hparams import ROMEHyperParams, resolve_rome_hparams
from easyedit_fast.rome.optimise import OptimisedValues, optimise_values
from easyedit_fast.rome.rows import Rows
from tests.unit.tiny_models import VOCABULARY, tiny_model

LAYER = 1
TEMPLATES = 2
# Per request: length of the prompt's rows, place of the fact, number of target tokens.
SHAPES = ((9, 4, 2), (6, 0, 1), (8, 4, 3))


def make_rows(requests: tuple[int, ...] = (0, 1, 2)) -> Rows:
    """Rows of random tokens: two templates and one essence row a request."""
    texts: list[Tensor] = []
    fact, request, essence, targets = [], [], [], []
    for place, index in enumerate(requests):
        length, position, answers = SHAPES[index]
        generator = torch.Generator().manual_seed(index)
        for template in range(TEMPLATES + 1):
            is_essence = template == TEMPLATES
            tokens = torch.randint(3, VOCABULARY, (length + template,), generator=generator)
            start = position + template
            if is_essence:
                tokens = tokens[: start + 1]
            else:
                tokens[-answers:] = torch.arange(10 + index, 10 + index + answers)
                row = len(texts)
                targets += [
                    (row, len(tokens) - answers - 1 + n, int(tokens[len(tokens) - answers + n]))
                    for n in range(answers)
                ]
                tokens = tokens[:-1]
            texts.append(tokens)
            fact.append(start)
            request.append(place)
            essence.append(is_essence)
    width = max(map(len, texts))
    input_ids = torch.stack([torch.nn.functional.pad(t, (0, width - len(t))) for t in texts])
    mask = torch.stack([(torch.arange(width) < len(t)).long() for t in texts])
    row, position, identity = torch.tensor(targets).unbind(1)
    return Rows(
        input_ids,
        mask,
        torch.tensor(fact),
        torch.tensor(request),
        torch.tensor(essence),
        row,
        position,
        identity,
        torch.arange(len(requests)) * (TEMPLATES + 1),
    )


def optimise(
    model: PreTrainedModel, hparams: ROMEHyperParams, requests: tuple[int, ...] = (0, 1, 2)
) -> OptimisedValues:
    rows = make_rows(requests)
    tail = Tail.capture(
        model,
        architecture_of(model),
        LAYER,
        rows.input_ids,
        rows.attention_mask,
        rows.fact_position,
    )
    return optimise_values(tail, rows, tail.value[rows.bare_row].float(), hparams)


def plain(
    model: PreTrainedModel, architecture: Architecture, hparams: ROMEHyperParams, request: int
) -> tuple[Tensor, list[float]]:
    """ROME's loop as its paper and code have it, with nothing shared and nothing left out."""
    rows = make_rows((request,))
    projection = edited_module(model, architecture, LAYER)
    count = len(rows.request)
    initial: list[Tensor] = []
    delta: Tensor

    def add(_: Tensor, output: Tensor) -> Tensor:
        shaped = output.reshape(count, -1, output.shape[-1])
        if not initial:
            initial.append(shaped[0, rows.fact_position[0]].detach().clone())
            delta_ = torch.zeros_like(initial[0])
        else:
            delta_ = delta
        at = torch.zeros_like(shaped)
        at[torch.arange(count), rows.fact_position] = 1.0
        return (shaped + at * delta_).reshape(output.shape)

    def log_probs() -> Tensor:
        with edit_output(projection, add):
            logits = model(input_ids=rows.input_ids, attention_mask=rows.attention_mask).logits
        result: Tensor = torch.log_softmax(logits, dim=-1)
        return result

    essence = int(rows.is_essence.nonzero())
    place = int(rows.fact_position[essence])
    with torch.no_grad():
        before = log_probs()[essence, place]
    delta = torch.zeros_like(initial[0]).requires_grad_()
    adam = torch.optim.Adam([delta], lr=hparams.v_lr)
    mean_direction = torch.zeros_like(delta)
    losses: list[float] = []
    for step in range(hparams.v_num_grad_steps):
        now = log_probs()
        chosen = now[rows.target_row, rows.target_position, rows.target_id]
        nll = torch.stack([-chosen[rows.target_row == row].mean() for row in range(TEMPLATES)])
        after = now[essence, place]
        kl = torch.nn.functional.kl_div(before, after, log_target=True, reduction="sum")
        decay = torch.norm(delta) / torch.norm(initial[0]) ** 2
        loss = nll.mean() + hparams.kl_factor * kl + hparams.v_weight_decay * decay
        losses.append(loss.item())
        sure = hparams.v_stop_probability is not None and bool(
            (chosen.exp() >= hparams.v_stop_probability).all()
        )
        if sure or loss < hparams.v_loss_threshold or step == hparams.v_num_grad_steps - 1:
            break
        adam.zero_grad()
        loss.backward()
        if hparams.v_optimizer == "adam":
            adam.step()
        else:
            assert delta.grad is not None
            mean_direction = (mean_direction + delta.grad / delta.grad.norm()) / 2
            with torch.no_grad():
                length = 3 * hparams.v_lr * 0.9**step * initial[0].norm()
                delta -= length * mean_direction
        bound = hparams.clamp_norm_factor * initial[0].norm()
        if delta.norm() > bound:
            with torch.no_grad():
                delta.mul_(bound / delta.norm())
    return delta.detach(), losses


def hold_to_plain_loop(model: PreTrainedModel, hparams: ROMEHyperParams) -> set[int]:
    """Compares every step of every request; gives the numbers of steps."""
    found = optimise(model, hparams)
    ends = set()
    for request in range(len(SHAPES)):
        delta, losses = plain(model, architecture_of(model), hparams, request)
        assert int(found.steps[request]) == len(losses)
        ends.add(len(losses))
        ours = found.losses[: len(losses), request, 0]
        torch.testing.assert_close(ours, torch.tensor(losses), rtol=1e-4, atol=1e-4)
        assert (found.delta[request] - delta).norm() <= 1e-4 * max(delta.norm(), 1e-3)
        assert not found.losses[len(losses) :, request].any()
    return ends


@pytest.mark.parametrize("probability", [None, 0.0045])
def test_normalised_descent_equals_the_plain_loop(probability: float | None) -> None:
    model = tiny_model()
    hparams = resolve_rome_hparams(
        {
            "layers": [LAYER],
            "v_num_grad_steps": 10,
            "v_lr": 0.4,
            "v_optimizer": "normalised",
            "v_stop_probability": probability,
            "clamp_norm_factor": 3.0,
        },
        model,
    )
    ends = hold_to_plain_loop(model, hparams)
    assert (len(ends) > 1) is (probability is not None)


@pytest.mark.parametrize("group_cost", [0, 1000], ids=["groups", "one group"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "gptj", "falcon-alibi", "bloom"])
def test_it_equals_the_plain_loop(
    family: str, group_cost: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ragged._GROUP_COST, "cpu", group_cost)
    model = tiny_model(family)
    hparams = resolve_rome_hparams(
        {
            "layers": [LAYER],
            "v_num_grad_steps": 8,
            "v_lr": 0.3,
            "v_loss_threshold": 4.3,
            "clamp_norm_factor": 1.5,
        },
        model,
        preset="exact",
    )
    ends = hold_to_plain_loop(model, hparams)
    if family == "llama":
        assert len(ends) > 1, "the requests should end at different steps"


def test_batch_company_changes_nothing() -> None:
    model = tiny_model()
    given = {"layers": [LAYER], "v_num_grad_steps": 6}
    hparams = resolve_rome_hparams(given, model, preset="exact")
    together = optimise(model, hparams)
    for place in range(len(SHAPES)):
        alone = optimise(model, hparams, (place,)).delta[0]
        assert (together.delta[place] - alone).norm() / alone.norm() < 1e-4


def test_the_delta_stays_in_its_ball_and_the_model_as_it_was() -> None:
    model = tiny_model()
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    hparams = resolve_rome_hparams(
        {"layers": [LAYER], "v_num_grad_steps": 6, "v_lr": 5.0, "clamp_norm_factor": 0.5},
        model,
        preset="exact",
    )
    rows = make_rows()
    found = optimise(model, hparams)
    tail = Tail.capture(
        model,
        architecture_of(model),
        LAYER,
        rows.input_ids,
        rows.attention_mask,
        rows.fact_position,
    )
    bound = 0.5 * tail.value[rows.bare_row].norm(dim=1)
    torch.testing.assert_close(found.delta.norm(dim=1), bound, rtol=1e-5, atol=1e-5)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert all(p.grad is None for p in model.parameters())
