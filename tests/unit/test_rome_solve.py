"""ROME's closed form: every equality holds, and one request gives the paper's formula."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from easyedit_fast.errors import DataFileError, NonFiniteError
from easyedit_fast.moments import SecondMoment
from easyedit_fast.rome.adam import Adam
from easyedit_fast.rome.solve import BARE_DAMPING, solve_update

D_IN, D_OUT = 24, 10


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def second_moment(seed: int, tokens: int = 200) -> SecondMoment:
    keys = draw(seed, tokens, D_IN).double() * torch.linspace(0.1, 3.0, D_IN)
    return SecondMoment(keys.T @ keys / tokens, tokens, "test")


@given(
    requests=st.integers(1, D_IN // 2),
    seed=st.integers(0, 10_000),
    with_moment=st.booleans(),
    consistent=st.booleans(),
)
def test_every_equality_holds(
    requests: int, seed: int, with_moment: bool, consistent: bool
) -> None:
    bare_keys = draw(seed, requests, D_IN)
    mean_keys = bare_keys + 0.1 * draw(seed + 1, requests, D_IN)
    residuals = draw(seed + 2, requests, D_OUT)
    keys = mean_keys if consistent else bare_keys
    factor = second_moment(seed).factorise() if with_moment else None
    solved = solve_update(residuals, bare_keys, mean_keys, factor, "out_in", consistent=consistent)
    assert solved.update.rank == requests
    found = keys.double() @ solved.update.dense().double().T
    error = (found - residuals).norm() / residuals.norm()
    assert error < 1e-6 * max(solved.condition, 10.0)


@pytest.mark.parametrize("requests", [1, 4])
def test_of_all_updates_that_hold_it_is_the_optimum(requests: int) -> None:
    """The gradient of the least-squares terms is a combination of the mean keys (Lagrange)."""
    keys, residuals = draw(30, requests, D_IN).double(), draw(31, requests, D_OUT).double()
    mean_keys = keys + 0.5 * draw(32, requests, D_IN).double()
    moment = second_moment(33)
    solved = solve_update(residuals, keys, mean_keys, moment.factorise(), "out_in")
    delta = solved.update.dense().double()
    inverse = torch.linalg.inv(moment.matrix)
    weights = 1.0 / (BARE_DAMPING * torch.einsum("ni,ij,nj->n", keys, inverse, keys))
    missed = keys @ delta.T - residuals
    gradient = delta @ moment.matrix + (weights[:, None] * missed).T @ keys
    combination = torch.linalg.lstsq(mean_keys.T, gradient.T).solution
    assert (mean_keys.T @ combination - gradient.T).norm() < 1e-3 * gradient.norm()


def test_one_request_gives_the_papers_update() -> None:
    key, mean_key, residual = draw(0, 1, D_IN), draw(1, 1, D_IN), draw(2, 1, D_OUT)
    moment = second_moment(2)
    factor, inverse = moment.factorise(), torch.linalg.inv(moment.matrix)
    for solve_key, consistent in ((key, True), (mean_key, False)):
        direction = inverse @ solve_key[0].double()
        expected = torch.outer(residual[0].double() / (direction @ key[0].double()), direction)
        solved = solve_update(residual, key, solve_key, factor, "out_in", consistent=consistent)
        torch.testing.assert_close(solved.update.dense().double(), expected, rtol=1e-5, atol=1e-6)


def test_one_request_is_never_ill_conditioned() -> None:
    """However badly C is conditioned, and however alike the two keys are."""
    scales = torch.logspace(-6, 6, D_IN, dtype=torch.float64)
    factor = SecondMoment(torch.diag(scales), 100, "test").factorise()
    for place in (0, D_IN - 1):
        key = torch.zeros(1, D_IN)
        key[0, place] = 1.0
        key += 1e-4 * draw(40, 1, D_IN)
        assert solve_update(draw(41, 1, D_OUT), key, key, factor, "out_in").condition < 20.0


def test_mixed_keys_can_blow_up_and_consistent_ones_do_not() -> None:
    key, residual = draw(37, 1, D_IN), draw(38, 1, D_OUT)
    other = draw(39, 1, D_IN)
    mean_key = other - 0.999 * (other @ key.T) / (key @ key.T) * key  # nearly orthogonal
    mixed, consistent = (
        solve_update(residual, key, mean_key, None, "out_in", consistent=consistent).update.dense()
        for consistent in (False, True)
    )
    assert mixed.norm() > 100 * consistent.norm()


def test_the_second_moment_protects_frequent_directions() -> None:
    """Of all updates that meet the equality, C's changes the least on C's keys."""
    key, residual = draw(3, 1, D_IN), draw(4, 1, D_OUT)
    moment = second_moment(5)

    def damage(update: torch.Tensor) -> torch.Tensor:
        return torch.trace(update.double() @ moment.matrix @ update.double().T)

    with_moment = solve_update(residual, key, key, moment.factorise(), "out_in").update.dense()
    without = solve_update(residual, key, key, None, "out_in").update.dense()
    assert damage(with_moment) < damage(without)


def test_equal_keys_are_met_in_the_least_squares_sense(caplog: pytest.LogCaptureFixture) -> None:
    keys = draw(6, 3, D_IN)
    keys[2] = keys[1]
    residuals = draw(7, 3, D_OUT)
    bare_keys = keys + 0.3 * draw(8, 3, D_IN)
    bare_keys[2] = bare_keys[1]
    with caplog.at_level(logging.WARNING, "easyedit_fast"):
        solved = solve_update(residuals, bare_keys, keys, None, "out_in")
    assert "ill-conditioned" in caplog.text
    assert "isolated=True" in caplog.text
    found = keys @ solved.update.dense().T
    torch.testing.assert_close(found[0], residuals[0], rtol=1e-4, atol=1e-4)
    between = (residuals[1] + residuals[2]) / 2
    torch.testing.assert_close(found[1], between, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
@pytest.mark.parametrize("with_moment", [False, True])
def test_a_key_that_cannot_be_used_is_named(value: float, with_moment: bool) -> None:
    keys = draw(0, 3, D_IN)
    keys[1] = value
    factor = second_moment(5).factorise() if with_moment else None
    with pytest.raises(NonFiniteError, match=r"record 1: its key is zero or not finite; .*float32"):
        solve_update(draw(1, 3, D_OUT), keys, keys, factor, "out_in")


def test_a_singular_second_moment_is_damped_and_said(caplog: pytest.LogCaptureFixture) -> None:
    keys = draw(8, 5, D_IN).double()
    moment = SecondMoment(keys.T @ keys / 5, 5, "few tokens")
    with caplog.at_level(logging.WARNING, "easyedit_fast"):
        factor = moment.factorise()
    assert "few tokens (5 tokens for 24 dimensions) is singular" in caplog.text
    assert torch.isfinite(factor.solve(draw(9, D_IN, 2))).all()


def test_a_negative_second_moment_is_refused() -> None:
    with pytest.raises(DataFileError, match="not positive definite"):
        SecondMoment(-torch.eye(4, dtype=torch.float64), 9, "bad.npz").factorise()


def test_adam_is_torchs_adam() -> None:
    start = draw(10, 4, 6)
    parameter = start.clone().requires_grad_()
    reference = torch.optim.Adam([parameter], lr=0.5)
    ours, adam = start.clone(), Adam.start(start, 0.5)
    for step in range(6):
        gradient = draw(20 + step, 4, 6)
        parameter.grad = gradient
        reference.step()
        ours = ours + adam.step(gradient)
    torch.testing.assert_close(ours, parameter.detach(), rtol=1e-6, atol=1e-6)


def test_rows_leave_adam_with_their_state() -> None:
    start = draw(11, 4, 6)
    whole, part = Adam.start(start, 0.1), Adam.start(start, 0.1)
    rows = torch.tensor([0, 3])
    for adam in (whole, part):
        adam.step(draw(12, 4, 6))
    part = part.select(rows)
    gradient = draw(13, 4, 6)
    assert torch.equal(whole.step(gradient)[rows], part.step(gradient[rows]))
