"""Which validation is the best, and when patience ends."""

from __future__ import annotations

import pytest

from easyedit_fast.training.early_stopping import EarlyStopping


@pytest.mark.parametrize(
    ("key", "values", "best"),
    [
        ("edit/acc_val", [0.2, 0.5, 0.5, 0.4, 0.6], [True, True, False, False, True]),
        ("edit/log_prob_val", [-3.0, -2.0, -2.5], [True, True, False]),
        ("loss/total_edit_val", [2.0, 1.0, 1.0, 1.5, 0.5], [True, True, False, False, True]),
        ("nll/post_val", [2.0, float("nan"), float("-inf"), 1.0], [True, False, False, True]),
        ("perplexity/post_val", [float("nan"), 3.0], [False, True]),
        ("acc/post_val", [0.9, 0.1, 0.95], [True, False, True]),
    ],
)
def test_which_is_the_best(key: str, values: list[float], best: list[bool]) -> None:
    stopping = EarlyStopping(key, patience=10)
    found = [stopping.update(step, {key: value, "x": 0.0}) for step, value in enumerate(values)]
    assert found == best


def test_patience_counts_from_the_best() -> None:
    stopping = EarlyStopping("loss/total_val", patience=30)
    stopping.update(10, {"loss/total_val": 1.0})
    stopping.update(20, {"loss/total_val": 2.0})
    assert [stopping.is_over(step) for step in (20, 39, 40)] == [False, False, True]
    stopping.update(35, {"loss/total_val": 0.5})
    assert not stopping.is_over(40)
    assert (stopping.best, stopping.best_step) == (0.5, 35)
