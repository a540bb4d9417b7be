"""Scores against values worked out by hand."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from easyedit_fast.metrics import (
    Estimate,
    begins_with,
    mean_interval,
    n_gram_entropy,
    paired_difference,
    record_scores,
    same_text,
    summarise,
    token_agreement,
    wilson_interval,
)


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


@pytest.mark.parametrize("count", range(1, 200))
def test_wilson_interval_holds_the_mean(count: int) -> None:
    for mean in (0.0, 1.0):
        low, high = wilson_interval(mean, count)
        assert 0.0 <= low <= mean <= high <= 1.0


@pytest.mark.parametrize(("mean", "count"), [(1.1, 3), (-0.1, 3), (0.5, 0), (float("nan"), 3)])
def test_wilson_interval_refuses_what_is_no_mean_of_scores(mean: float, count: int) -> None:
    with pytest.raises(ValueError, match="no Wilson interval"):
        wilson_interval(mean, count)


@pytest.mark.parametrize("count", [2, 3, 4, 5, 24, 101, 500])
def test_intervals_of_unbounded_scores_and_of_differences_are_students(count: int) -> None:
    generator = np.random.default_rng(count)
    first, second = generator.normal(6.0, 1.0, (2, count)).tolist()
    estimate = mean_interval(first)
    low, high = stats.ttest_1samp(first, 0.0).confidence_interval()
    assert dataclasses.astuple(estimate) == pytest.approx(
        (np.mean(first), low, high, count), rel=1e-9
    )
    low, high = stats.ttest_rel(first, second).confidence_interval()
    mean = np.mean(first) - np.mean(second)
    difference = dataclasses.astuple(paired_difference(first, second))
    assert difference == pytest.approx((mean, low, high, count), rel=1e-9)


def test_an_interval_of_scores_between_0_and_1_is_wilsons() -> None:
    for scores in ([1.0] * 24, [0.0, 1.0, 1.0], [0.5, 1.0, 0.1] * 7, [0.1 + 0.2 + 0.7] * 3):
        estimate = mean_interval(scores)
        assert estimate.mean == pytest.approx(sum(scores) / len(scores))
        assert (estimate.low, estimate.high) == wilson_interval(estimate.mean, len(scores))
        assert estimate.count == len(scores)


def test_students_interval_covers_the_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    samples = generator.exponential(1.0, (1000, 60)) - generator.exponential(1.0, (1000, 60))
    held = [(e := mean_interval(sample.tolist())).low <= 0.0 <= e.high for sample in samples]
    # Of 1,000 with probability 0.95 each: within three standard deviations.
    assert abs(sum(held) - 950) <= 3 * math.sqrt(1000 * 0.95 * 0.05)


def test_a_paired_difference_leaves_out_records_without_a_pair() -> None:
    whole = paired_difference([1.0, 0.0, 1.0], [0.0, 0.5, 1.0])
    assert paired_difference([1.0, None, 0.0, 1.0, 1.0], [0.0, 0.3, 0.5, 1.0, None]) == whole
    assert whole.mean == pytest.approx(1 / 6)
    assert paired_difference([1.0, 0.0], [1.0, 0.0]) == Estimate(0.0, 0.0, 0.0, 2)


@pytest.mark.parametrize("scores", [[], [2.0], [2.0, math.nan], [math.nan], [math.inf, 1.0]])
def test_scores_without_an_interval_are_refused(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="interval"):
        mean_interval(scores)


def test_scores_without_a_difference_are_refused() -> None:
    with pytest.raises(ValueError, match="1 and 2 scores"):
        paired_difference([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="1 scores have no interval"):
        paired_difference([1.0, None], [0.5, 0.5])


def test_record_scores_are_the_ones_that_the_summary_averages() -> None:
    metrics: list[dict[str, Any]] = [
        {"post": {"generated": {"rephrase_acc": [1.0, 0.0]}, "fluency": {"ngram_entropy": 5.5}}},
        {"post": {"generated": {"rephrase_acc": []}}},
        {"post": {"generated": {"rephrase_acc": [1.0], "rephrase_text": ["x"]}}},
        {"pre": {}},
    ]
    path = ("post", "generated", "rephrase_acc")
    assert record_scores(metrics, path) == [0.5, None, 1.0, None]
    assert summarise(metrics)["post"]["generated"]["rephrase_acc"] == {"mean": 0.75, "count": 2}
    assert record_scores(metrics, ("post", "fluency", "ngram_entropy")) == [5.5, None, None, None]
    assert record_scores(metrics, (*path[:2], "rephrase_text")) == [None] * 4
    assert record_scores(metrics, (*path, "deeper")) == [None] * 4


def test_n_gram_entropy_weights_pairs_and_triples() -> None:
    # a b c a b c: pairs ab ab bc bc ca, triples abc abc bca cab
    pairs = stats.entropy([2, 2, 1], base=2)
    triples = stats.entropy([2, 1, 1], base=2)
    assert n_gram_entropy("a b c a b c") == pytest.approx((2 / 3 * pairs + 4 / 3 * triples) / 2)
    assert n_gram_entropy("again " * 50) == 0.0
    assert n_gram_entropy("") == n_gram_entropy("one") == 0.0
    # Every pair and every triple once: log2 of their numbers.
    assert n_gram_entropy("a b c d e") == pytest.approx((2 / 3 * 2 + 4 / 3 * math.log2(3)) / 2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's 3.5 km, well-known...", ["It's", "3.5", "km", ",", "well-known", "..."]),
        ("Wait -- (no)!", ["Wait", "--", "(", "no", ")", "!"]),
        ("日本 は\nnice", ["日本", "は", "nice"]),
    ],
)
def test_n_gram_entropy_splits_words_and_signs(text: str, words: list[str]) -> None:
    # In a text of different words the entropy tells only their number.
    number = len(words)
    expected = (2 / 3 * math.log2(number - 1) + 4 / 3 * math.log2(number - 2)) / 2
    assert n_gram_entropy(text) == pytest.approx(expected)
