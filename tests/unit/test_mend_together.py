"""Edits together: the sum of their updates, and MALMEN's least squares."""

from __future__ import annotations

import pytest
import torch

from easyedit_fast.mend.together import least_squares, summed
from easyedit_fast.updates import LowRankUpdate


def edits_and_inputs(
    tokens: list[int], d_in: int
) -> tuple[list[dict[str, LowRankUpdate]], list[dict[str, torch.Tensor]]]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    edits = [{"w": LowRankUpdate(random(5, n), random(n, d_in))} for n in tokens]
    return edits, [{"w": random(n, d_in)} for n in tokens]


def test_the_sum() -> None:
    edits, _ = edits_and_inputs([2, 3], 7)
    expected = sum(edit["w"].dense() for edit in edits)
    torch.testing.assert_close(summed(edits)["w"].dense(), expected)


@pytest.mark.parametrize(("tokens", "rank"), [([2, 1, 3], 6), ([4, 5, 6], 7)])
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
