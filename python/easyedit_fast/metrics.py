"""Scores of edits: tokens and texts in, numbers out.

Names ending in ``_acc`` are EasyEdit's, and so are their definitions: teacher-forced token
accuracy for rewrite, rephrase and portability, and agreement of the predicted tokens before and
after the edit for locality. Teacher forcing flatters an edit (arXiv 2502.11177: 96.8 % against
38.5 % in free generation), so scores of generations stand beside them, under names of their own.
"""

from __future__ import annotations

import dataclasses
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

_PHASES = ("pre", "post_batch", "post", "retention")
_Z95 = 1.959963984540054  # 97.5 % quantile of the standard normal distribution
_WORD = re.compile(r"\w+(?:[-.,'’]\w+)*|\.{3}|-{2}|[^\w\s]")
_ENTROPY_WEIGHTS = {2: 2 / 3, 3: 4 / 3}


@dataclasses.dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over records and its 95 % interval.

    Attributes:
        mean: The mean.
        low: Lower end of the interval.
        high: Upper end of the interval.
        count: Number of records.
    """

    mean: float
    low: float
    high: float
    count: int


def token_agreement(before: Sequence[int], after: Sequence[int]) -> float:
    """Share of positions at which two lists of tokens agree.

    With the predicted and the true tokens of an answer it is the teacher-forced accuracy; with
    those predicted before and after an edit it tells how far the edit left them alone.

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


def n_gram_entropy(text: str) -> float:
    """Fluency of a generated text: the weighted mean of its 2- and 3-gram entropies, in bits.

    ``(2/3 H₂ + 4/3 H₃) / 2`` with the entropies of the empirical distributions of the text's
    2- and 3-grams (arXiv 1809.05972, with the weights of ROME's code); repetition lowers it.
    A text of too few words for an n-gram has an entropy of 0 there.

    Words are runs of letters and digits, with single hyphens, points, commas and apostrophes
    inside them; ``...`` and ``--`` are one word each, and so is every other sign. ROME and EasyEdit
    split by ``nltk.word_tokenize``, which needs downloaded data: it also parts contractions
    (``do n't``) and sentences' last points from abbreviations.
    """
    words = _WORD.findall(text)
    weighted = [
        weight * _entropy(Counter(zip(*(words[start:] for start in range(n)), strict=False)))
        for n, weight in _ENTROPY_WEIGHTS.items()
    ]
    return sum(weighted) / len(weighted)


def summarise(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Averages the metrics of many requests.

    As in EasyEdit, the scores of one request are averaged first (it may have several prompts),
    then those means over the requests, so that every request counts the same.

    Args:
        metrics: One mapping a request, with ``pre`` and ``post``, and after sequential edits
            ``post_batch`` and ``retention``.

    Returns:
        The same nesting; every leaf is ``{"mean": …, "count": …}``, where count is the number of
        requests that have the score. Texts and token lists are left out.
    """
    summary = {
        phase: _summary([entry[phase] for entry in metrics if phase in entry]) for phase in _PHASES
    }
    return {phase: leaves for phase, leaves in summary.items() if leaves}


def record_scores(metrics: Sequence[Mapping[str, Any]], path: Sequence[str]) -> list[float | None]:
    """One score a record: the mean over its prompts, as `summarise` takes it.

    Args:
        metrics: One mapping a record.
        path: The keys down to the score, such as ``("post", "generated", "rewrite_acc")``.

    Returns:
        The scores in the order of the records; None where a record has no such score.
    """
    return [_record_score(entry, path) for entry in metrics]


def mean_interval(scores: Sequence[float]) -> Estimate:
    """The mean of one score a record, with its 95 % interval.

    Wilson's interval (`wilson_interval`) where all scores are between 0 and 1; Student's t
    (1908) for others, such as entropies and times, whose means are taken as normal.

    Raises:
        ValueError: No score, one that is not finite, or a single one beyond 0 and 1.
    """
    if _unbounded(scores):
        return student_interval(scores)
    # Rounding can lift a mean of ones above 1.
    mean = min(1.0, math.fsum(scores) / max(1, len(scores)))
    return Estimate(mean, *wilson_interval(mean, len(scores)), len(scores))


def student_interval(values: Sequence[float]) -> Estimate:
    """The mean of values that are taken as normal, with its 95 % interval (Student's t, 1908).

    Raises:
        ValueError: Fewer than two values, or one that is not finite.
    """
    found = np.asarray(values, dtype=np.float64)
    if len(found) < 2 or not np.isfinite(found).all():
        raise ValueError(f"{len(found)} scores have no interval; it takes two, all of them finite")
    mean, count = float(found.mean()), len(found)
    half = _t975(count - 1) * float(found.std(ddof=1)) / math.sqrt(count)
    return Estimate(mean, mean - half, mean + half, count)


def paired_difference(first: Sequence[float | None], second: Sequence[float | None]) -> Estimate:
    """The mean of ``first - second`` over the same records, with its 95 % interval.

    Student's t over the differences: what varies between records alone drops out, so that the
    interval is narrower than two separate ones. Where all differences are equal its width is 0:
    then it says no more than that no other was seen.

    Args:
        first: One score a record, as `record_scores` gives them.
        second: The same records' scores in another run; records where either is None are left
            out.

    Raises:
        ValueError: Different numbers of records, fewer than two pairs, or scores that are not
            finite.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} and {len(second)} scores are not of the same records")
    pairs = zip(first, second, strict=True)
    return student_interval(
        [one - other for one, other in pairs if one is not None and other is not None]
    )


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
    # Rounding can push the mean itself out, where it is 0 or 1.
    return min(mean, max(0.0, centre - half)), max(mean, min(1.0, centre + half))


def _unbounded(scores: Sequence[float]) -> bool:
    return any(not 0.0 <= score <= 1.0 for score in scores)


def _t975(degrees: int) -> float:
    """97.5 % quantile of Student's t distribution, by bisection of its angle."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        if _t_within(middle, degrees) < 0.95:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan(low)


def _t_within(angle: float, degrees: int) -> float:
    """P(|T| < √degrees · tan(angle)); Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = 0.0
    for number in range(2 + odd, degrees + 1, 2):
        total += term
        term *= cosine**2 * (number - 1) / number
    return 2 / math.pi * (angle + sine * total) if odd else sine * total


def _entropy(counts: Counter[tuple[str, ...]]) -> float:
    total = counts.total()
    return -sum(count / total * math.log2(count / total) for count in counts.values())


def _record_score(entry: Any, path: Sequence[str]) -> float | None:
    for key in path:
        if not isinstance(entry, Mapping) or key not in entry:
            return None
        entry = entry[key]
    scores = _scores(entry)
    return sum(scores) / len(scores) if scores else None


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
