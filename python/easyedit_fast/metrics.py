"""Scores of edits: tokens and texts in, numbers out.

Names ending in ``_acc`` are EasyEdit's, and so are their definitions: teacher-forced token
accuracy for rewrite, rephrase and portability, and agreement of the predicted tokens before and
after the edit for locality. Teacher forcing flatters an edit (arXiv 2502.11177: 96.8 % against
38.5 % in free generation), so scores of generations stand beside them, under names of their own.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

IGNORED_LABEL = -100
_PHASES = ("pre", "post")
_Z95 = 1.959963984540054  # 97.5 % quantile of the standard normal distribution


def token_accuracy(predicted: Tensor, labels: Tensor) -> list[float]:
    """Share of the target's tokens that were predicted, for each row.

    Args:
        predicted: Predicted ids [n, t] int64; entry t of a row predicts entry t of its labels.
        labels: Ids of the target's tokens [n, t] int64, -100 where there is none (prompt, pads).

    Returns:
        n numbers from 0 to 1.

    Raises:
        ValueError: The shapes differ, or a row has no target.
    """
    if predicted.shape != labels.shape:
        shapes = f"{list(predicted.shape)} and {list(labels.shape)}"
        raise ValueError(f"predicted [n, t] and labels [n, t] are {shapes}")
    counted = labels != IGNORED_LABEL
    numbers = counted.sum(dim=1)
    if not bool((numbers > 0).all()):
        raise ValueError(f"row {int((numbers == 0).nonzero()[0])} has no target token")
    hits = ((predicted == labels) & counted).sum(dim=1)
    return [hit / number for hit, number in zip(hits.tolist(), numbers.tolist(), strict=True)]


def token_agreement(before: Sequence[int], after: Sequence[int]) -> float:
    """Share of positions at which the same token was predicted before and after an edit.

    Raises:
        ValueError: The lengths differ, or there is nothing to compare.
    """
    if len(before) != len(after) or not before:
        raise ValueError(f"{len(before)} and {len(after)} tokens cannot be compared")
    return sum(one == other for one, other in zip(before, after, strict=True)) / len(before)


def begins_with(continuation: str, target: str) -> bool:
    """Whether a generated continuation begins with the target, runs of white space being one.

    A word must not go on after the target: "Romeo" does not begin with "Rome". Letters without
    case (Chinese, Thai and others) end no word, for many of those scripts put no spaces.
    """
    text, wanted = _plain(continuation), _plain(target)
    if not text.startswith(wanted):
        return False
    following = text[len(wanted) : len(wanted) + 1]
    goes_on = following.isalnum() and unicodedata.category(following) != "Lo"
    return not (goes_on and wanted[-1:].isalnum())


def same_text(before: str, after: str) -> bool:
    """Whether two generations are equal, runs of white space being one."""
    return _plain(before) == _plain(after)


def summarise(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Averages the metrics of many requests.

    As in EasyEdit, the scores of one request are averaged first (it may have several prompts),
    then those means over the requests, so that every request counts the same.

    Args:
        metrics: One mapping a request, with ``pre`` and ``post``.

    Returns:
        The same nesting; every leaf is ``{"mean": …, "count": …}``, where count is the number of
        requests that have the score. Texts and token lists are left out.
    """
    summary = {
        phase: _summary([entry[phase] for entry in metrics if phase in entry]) for phase in _PHASES
    }
    return {phase: leaves for phase, leaves in summary.items() if leaves}


def wilson_interval(mean: float, count: int) -> tuple[float, float]:
    """95 % interval of the mean of scores between 0 and 1 (Wilson, 1927).

    It is exact in kind for scores that are 0 or 1. For scores in between it is too wide rather
    than too narrow, since their variance is at most ``mean (1 - mean)``.

    Args:
        mean: Their mean.
        count: How many there are.

    Raises:
        ValueError: The mean is not from 0 to 1, or there are no scores.
    """
    if not 0.0 <= mean <= 1.0 or count < 1:
        raise ValueError(f"a mean of {mean} over {count} scores has no Wilson interval")
    shrink = 1.0 + _Z95**2 / count
    centre = (mean + _Z95**2 / (2 * count)) / shrink
    spread = mean * (1.0 - mean) / count + _Z95**2 / (4 * count**2)
    half = _Z95 * math.sqrt(spread) / shrink
    return max(0.0, centre - half), min(1.0, centre + half)


def _plain(text: str) -> str:
    return " ".join(text.split())


def _summary(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Averages mappings of one nesting, key by key, in the order in which keys first occur."""
    summary: dict[str, Any] = {}
    for key in dict.fromkeys(key for entry in entries for key in entry):
        values = [entry[key] for entry in entries if key in entry]
        nested = [value for value in values if isinstance(value, Mapping)]
        leaf = _summary(nested) if nested else _mean_and_count(values)
        if leaf:
            summary[key] = leaf
    return summary


def _mean_and_count(values: Iterable[Any]) -> dict[str, float | int]:
    means = [sum(scores) / len(scores) for scores in map(_scores, values) if scores]
    return {"mean": sum(means) / len(means), "count": len(means)} if means else {}


def _scores(value: Any) -> list[float]:
    """The numbers of a leaf; none where it holds texts or token lists."""
    scores = value if isinstance(value, list) else [value]
    return scores if all(isinstance(score, (int, float)) for score in scores) else []
