"""Edits together: the sum of their updates, MALMEN's least squares, and the corrected sum."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from easyedit_fast import Editor, EditRequest
from easyedit_fast.mend.together import corrected_sum, least_squares, summed
from easyedit_fast.updates import LowRankUpdate


def edits_and_inputs(
    tokens: list[int], d_in: int, d_out: int = 5
) -> tuple[list[dict[str, LowRankUpdate]], list[dict[str, torch.Tensor]]]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    edits = [{"w": LowRankUpdate(random(d_out, n), random(n, d_in))} for n in tokens]
    return edits, [{"w": random(n, d_in)} for n in tokens]


def test_the_sum() -> None:
    edits, _ = edits_and_inputs([2, 3], 7)
    expected = sum(edit["w"].dense() for edit in edits)
    torch.testing.assert_close(summed(edits)["w"].dense(), expected)


@pytest.mark.parametrize(("tokens", "rank"), [([2, 1, 1], 4), ([4, 5, 6], 5)])
@pytest.mark.parametrize("ridge", [1e-3, 0.3])
def test_least_squares_is_the_minimum(tokens: list[int], rank: int, ridge: float) -> None:
    """Its gradient is zero there, with fewer tokens than inputs and with more."""
    edits, inputs = edits_and_inputs(tokens, 7)
    found = least_squares(edits, inputs, ridge)["w"]
    assert found.rank == rank
    update = found.dense().double().requires_grad_(True)
    penalty = ridge * torch.cat([own["w"] for own in inputs]).square().sum() / sum(tokens)
    loss = penalty * update.square().sum()
    for edit, own in zip(edits, inputs, strict=True):
        keys = own["w"].double().T
        loss = loss + (update @ keys - edit["w"].dense().double() @ keys).square().sum()
    (gradient,) = torch.autograd.grad(loss, update)
    assert gradient.norm() <= 1e-4 * loss.sqrt()


def test_each_edit_keeps_its_moves() -> None:
    """Where tokens are fewer than inputs and nothing is taken off, all moves are held at once."""
    edits, inputs = edits_and_inputs([2, 1], 9)
    update = least_squares(edits, inputs, 1e-9)["w"].dense()
    for edit, own in zip(edits, inputs, strict=True):
        torch.testing.assert_close(
            update @ own["w"].T, edit["w"].dense() @ own["w"].T, rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize(
    ("tokens", "d_in", "d_out", "rank"),
    [([1, 1], 7, 5, 4), ([4, 5, 6], 7, 5, 5), ([4, 5, 6], 5, 7, 5), ([1, 4], 9, 11, 9)],
)
@pytest.mark.parametrize("ridge", [1e-3, 0.3])
def test_the_corrected_sum_is_the_minimum(
    tokens: list[int], d_in: int, d_out: int, rank: int, ridge: float
) -> None:
    """Its gradient is zero there, with fewer tokens than inputs and with more."""
    edits, inputs = edits_and_inputs(tokens, d_in, d_out)
    found = corrected_sum(edits, inputs, ridge)["w"]
    assert found.rank == rank
    total = summed(edits)["w"].dense().double()
    keys = torch.cat([own["w"] for own in inputs]).double().T
    wanted = torch.cat(
        [edit["w"].dense() @ own["w"].T for edit, own in zip(edits, inputs, strict=True)], dim=1
    ).double()
    nearest = torch.linalg.lstsq((total @ keys).reshape(-1, 1), wanted.reshape(-1, 1)).solution
    share = nearest.clamp(0, 1).sqrt()
    penalty = ridge * keys.square().sum() / sum(tokens)
    update = found.dense().double().requires_grad_(True)
    loss = penalty * (update - share * total).square().sum()
    loss = loss + (update @ keys - wanted).square().sum()
    (gradient,) = torch.autograd.grad(loss, update)
    assert gradient.norm() <= 1e-4 * loss.sqrt()


def test_the_corrected_sum_of_one_edit_is_that_edit() -> None:
    edits, inputs = edits_and_inputs([3], 7)
    found = corrected_sum(edits, inputs, 0.01)["w"].dense()
    torch.testing.assert_close(found, edits[0]["w"].dense(), rtol=1e-4, atol=1e-5)


def test_edits_that_contradict_each_other_leave_no_sum() -> None:
    """Where the sum goes against what is wanted c is zero, and least squares is left."""
    edits, inputs = edits_and_inputs([2], 9)
    (edit,) = edits
    opposed = LowRankUpdate(-3 * edit["w"].output_factor, edit["w"].input_factor)
    twice = [edit, {"w": opposed}]
    shorter = [*inputs, {"w": 0.1 * inputs[0]["w"]}]
    corrected, fitted = (join(twice, shorter, 0.1)["w"] for join in (corrected_sum, least_squares))
    torch.testing.assert_close(corrected.dense(), fitted.dense(), rtol=1e-4, atol=1e-5)


def test_the_corrected_sum_of_nothing_is_nothing() -> None:
    """Step sizes of zero give updates of zero."""
    edits, inputs = edits_and_inputs([2, 3], 7)
    nothing = [
        {"w": LowRankUpdate(0 * edit["w"].output_factor, edit["w"].input_factor)} for edit in edits
    ]
    assert not corrected_sum(nothing, inputs, 0.01)["w"].dense().any()


REQUESTS = [
    EditRequest("The capital of Peru is", "Peru", "Oslo"),
    EditRequest("Miles Davis plays the", "Miles Davis", "violin"),
]


@pytest.mark.parametrize("together", ["corrected", "least_squares", "sum"])
def test_an_editor_joins_edits_as_it_is_told(demo_model: Any, together: str) -> None:
    """Held to the functions, with the edits alone and what enters the weights at their tokens."""
    model, tokenizer = demo_model
    editor = Editor(model, tokenizer, method="mend", hparams={"together": together, "ridge": 0.02})
    alone = [edit.updates for edit in editor.edit(REQUESTS, isolated=True, evaluate=False).edits]
    entered: list[dict[str, torch.Tensor]] = []
    for request in REQUESTS:
        own: dict[str, torch.Tensor] = {}
        handles = [
            model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(
                lambda _module, inputs, own=own, name=name: own.update({name: inputs[0][0]})
            )
            for name in alone[0]
        ]
        ids = tokenizer(f"{request.prompt} {request.target_new}", return_tensors="pt").input_ids
        with torch.no_grad():
            model(ids[:, :-1])
        for handle in handles:
            handle.remove()
        entered.append(own)
    expected = {
        "corrected": lambda: corrected_sum(alone, entered, 0.02),
        "least_squares": lambda: least_squares(alone, entered, 0.02),
        "sum": lambda: summed(alone),
    }[together]()
    with editor.editing(REQUESTS, evaluate=False) as result:
        for name, update in result.edit.updates.items():
            wanted = expected[name].dense()
            assert (update.dense() - wanted).norm() <= 1e-3 * wanted.norm(), name
