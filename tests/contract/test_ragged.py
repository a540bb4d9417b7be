"""A tail in groups gives what the whole tail gives, and the groups are the best ones."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from easyedit_fast.models.ragged import RaggedTail, partition
from tests.contract.test_tail import capture, make_delta, make_rows, relative_error, shared_model
from tests.unit.tiny_models import FAMILIES


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_groups_give_the_logits_and_gradients_of_the_whole(family: str, padding: str) -> None:
    rows = make_rows(padding)
    tail = capture(shared_model(family), 1, rows)
    delta = make_delta(shared_model(family), rows)
    mixed = torch.randperm(len(rows.rows), generator=torch.Generator().manual_seed(5))
    read_rows, read_columns = rows.rows[mixed], rows.columns[mixed]
    ragged = RaggedTail(tail, read_rows, read_columns, cost=0)
    assert len(ragged.groups) == len(set(tail.cut.lengths.tolist())) > 1
    for group in ragged.groups:
        lengths = group.tail.cut.lengths.tolist()
        assert set(lengths) == {group.tail.entering.shape[1]}  # no pads
    expected = tail.logits(delta, read_rows, read_columns)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(3))
    result = ragged.logits(delta)
    assert relative_error(result, expected) < 1e-5
    gradients = [
        torch.autograd.grad((logits.log_softmax(-1) * weights).sum(), delta)[0]
        for logits in (result, expected)
    ]
    assert relative_error(*gradients) < 1e-5


def cost_of(groups: list[list[int]], lengths: list[int], group_cost: int) -> int:
    return sum(group_cost + len(rows) * max(lengths[row] for row in rows) for rows in groups)


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=7), group_cost=st.integers(0, 20))
def test_no_grouping_costs_less(lengths: list[int], group_cost: int) -> None:
    groups = partition(lengths, group_cost)
    assert sorted(row for rows in groups for row in rows) == list(range(len(lengths)))
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    others = (
        [order[first:last] for first, last in itertools.pairwise([0, *cuts, len(order)])]
        for number in range(len(order))
        for cuts in itertools.combinations(range(1, len(order)), number)
    )
    least = min(cost_of(other, lengths, group_cost) for other in others)
    assert cost_of(groups, lengths, group_cost) == least
