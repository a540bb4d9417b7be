"""Scores against values worked out by hand."""

from __future__ import annotations

import pytest
import torch

from easyedit_fast.metrics import (
    begins_with,
    same_text,
    summarise,
    token_accuracy,
    token_agreement,
    wilson_interval,
)


def test_token_accuracy_counts_the_target_and_never_the_pads() -> None:
    labels = torch.tensor([[-100, 7, 8, 9], [-100, -100, 3, 4], [5, -100, -100, -100]])
    predicted = torch.tensor([[7, 7, 0, 9], [-100, -100, 3, 3], [6, -100, -100, -100]])
    assert token_accuracy(predicted, labels) == [2 / 3, 1 / 2, 0.0]


def test_token_accuracy_of_no_rows() -> None:
    empty = torch.empty(0, 4, dtype=torch.int64)
    assert token_accuracy(empty, empty) == []


def test_token_accuracy_refuses_rows_without_target_and_other_shapes() -> None:
    labels = torch.tensor([[1], [-100]])
    with pytest.raises(ValueError, match="row 1 has no target token"):
        token_accuracy(labels, labels)
    with pytest.raises(ValueError, match=r"\[2, 1\] and \[1, 2\]"):
        token_accuracy(labels, labels.T)


def test_token_agreement() -> None:
    assert token_agreement([1, 2, 3, 4], [1, 0, 3, 0]) == 0.5
    assert token_agreement([1], [1]) == 1.0
    for before, after in (([1], [1, 2]), ([], [])):
        with pytest.raises(ValueError, match="cannot be compared"):
            token_agreement(before, after)


@pytest.mark.parametrize(
    ("continuation", "target", "holds"),
    [
        (" English, and", "English", True),
        ("  New \n York City", "New York", True),
        (" the English", "English", False),
        (" english", "English", False),
        (" Eng", "English", False),
        (" Romeo", "Rome", False),
        (" Rome2", "Rome", False),
        (" Rome's", "Rome", True),
        (" Rome", "Rome", True),
        (" C++17", "C++", True),
        ("東京は", "東京", True),
        ("", "English", False),
    ],
)
def test_begins_with(continuation: str, target: str, holds: bool) -> None:
    assert begins_with(continuation, target) is holds


def test_same_text() -> None:
    assert same_text(" a\n b", "a b ")
    assert not same_text("a b", "ab")


def test_summary_averages_requests_not_prompts() -> None:
    metrics = [
        {
            "case_id": 0,
            "requested_rewrite": {"prompt": "p"},
            "pre": {"rewrite_acc": [0.0], "locality": {"near_output": [[1, 2]]}, "portability": {}},
            "post": {
                "rewrite_acc": [1.0],
                "rephrase_acc": [1.0, 0.0],
                "locality": {"near_output": [[1, 2]], "near_acc": [1.0, 0.5, 0.0]},
                "generated": {"rewrite_acc": [1.0], "rewrite_text": ["x"]},
            },
        },
        {
            "case_id": 1,
            "pre": {"rewrite_acc": [0.5], "locality": {}},
            "post": {
                "rewrite_acc": [0.0],
                "locality": {"near_acc": [1.0], "far_acc": []},
                "generated": {"rewrite_acc": [0.0], "rewrite_text": ["y"]},
            },
        },
    ]
    assert summarise(metrics) == {
        "pre": {"rewrite_acc": {"mean": 0.25, "count": 2}},
        "post": {
            "rewrite_acc": {"mean": 0.5, "count": 2},
            "rephrase_acc": {"mean": 0.5, "count": 1},
            "locality": {"near_acc": {"mean": 0.75, "count": 2}},
            "generated": {"rewrite_acc": {"mean": 0.5, "count": 2}},
        },
    }


def test_summary_of_nothing() -> None:
    assert summarise([]) == {}


@pytest.mark.parametrize(
    ("mean", "count", "low", "high"),
    [  # worked out from Wilson's formula with z = 1.96 to four places
        (0.5, 10, 0.2366, 0.7634),
        (1.0, 24, 0.8620, 1.0),
        (0.0, 24, 0.0, 0.1380),
        (0.44, 24, 0.2637, 0.6328),
    ],
)
def test_wilson_interval(mean: float, count: int, low: float, high: float) -> None:
    assert wilson_interval(mean, count) == pytest.approx((low, high), abs=5e-4)


@pytest.mark.parametrize(("mean", "count"), [(1.1, 3), (-0.1, 3), (0.5, 0), (float("nan"), 3)])
def test_wilson_interval_refuses_what_is_no_mean_of_scores(mean: float, count: int) -> None:
    with pytest.raises(ValueError, match="no Wilson interval"):
        wilson_interval(mean, count)
