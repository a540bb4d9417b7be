"""The scores of a data file with their intervals: teacher-forced and generated side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from easyedit_fast.errors import DataFileError
from easyedit_fast.metrics import mean_interval, record_scores, student_interval, summarise
from easyedit_fast.result_files import read_results
from easyedit_fast.runs.run import errors_of, sum_of_seconds

if TYPE_CHECKING:
    from easyedit_fast.evaluation import Perplexity

Score: TypeAlias = dict[str, Any]
"""What is ``counted`` (``records``, or ``tokens`` for the perplexity of one model), and as far as
there are such ``teacher_forced`` and ``generated``: each with ``before``, ``after`` and, in
sequence, ``after_batch``, of which each is ``mean``, ``low``, ``high`` and ``count``."""

_WHEN = {"pre": "before", "post_batch": "after_batch", "post": "after", "retention": "after"}
_PARTS = ("counted", "teacher_forced", "generated")
_ORDER = ("rewrite", "rephrase", "locality", "portability", "fluency", "perplexity", "retention")


@dataclasses.dataclass(frozen=True)
class Scores:
    """The scores of the records of a data file.

    Attributes:
        about: The model and the data, by name.
        settings: What the scores depend on beside them.
        metrics: One dict a record that did not fail, as `EditResult.metrics`.
        timings: Seconds by phase.
        failures: The errors of the others.
        perplexity: Where all records have one model: its perplexity on a text, ``before`` and
            ``after`` the edit.
    """

    about: Mapping[str, Any]
    settings: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    timings: Mapping[str, float]
    failures: Sequence[str] = ()
    perplexity: Mapping[str, Perplexity] = dataclasses.field(default_factory=dict)

    @property
    def scores(self) -> dict[str, Score]:
        """Each score with its interval and count, by name.

        The names are ``rewrite``, ``rephrase``, ``locality.<key>``, ``portability.<key>``,
        ``fluency``, ``perplexity``, ``retention.rewrite`` and ``retention.rephrase``.
        """
        found = scores_of(self.metrics)
        if self.perplexity:
            leaves = {when: _leaf_of(one) for when, one in self.perplexity.items()}
            found["perplexity"] = {"counted": "tokens", "teacher_forced": leaves}
        return _in_order(found)

    def to_dict(self) -> dict[str, Any]:
        """All but the single records' metrics, as plain JSON values."""
        return {
            **self.about,
            "settings": dict(self.settings),
            "records": len(self.metrics),
            "failures": list(self.failures),
            "scores": self.scores,
            "timings": dict(self.timings),
        }


def saved_scores(path: Path) -> Scores:
    """The scores of a results file, finished or not; no model is loaded.

    Raises:
        MissingFileError: There is no such file, or it has no header.
        DataFileError: It is damaged or no results file, or its records were not scored.
    """
    header, lines = read_results(path)
    metrics = [line["metrics"] for line in lines if "metrics" in line]
    if not metrics:
        raise DataFileError(f"{path} has no scores; give the results of a run that evaluates")
    try:
        scores_of(metrics)
        settings = header["description"]["settings"]
        return Scores(header["about"], settings, metrics, sum_of_seconds(lines), errors_of(lines))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataFileError(f"{path}: its scores are damaged ({error!r}); make them anew") from None


def scores_of(metrics: Sequence[Mapping[str, Any]]) -> dict[str, Score]:
    """Each score of many records, with its interval and count; see `Scores.scores` for the names.

    A record counts once, with the mean over its prompts.
    """
    found: dict[str, Score] = {}
    for path in _paths(summarise(metrics)):
        name, side = _place(path)
        score = found.setdefault(name, {"counted": "records"})
        score.setdefault(side, {})[_WHEN[path[0]]] = _leaf(metrics, path)
    return _in_order(found)


def _paths(summary: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if "mean" in summary:
        yield path
        return
    for key, inner in summary.items():
        yield from _paths(inner, (*path, key))


def _place(path: tuple[str, ...]) -> tuple[str, str]:
    """A score's name, and whether it is ``teacher_forced`` or ``generated``."""
    keys = [key for key in path[1:] if key != "generated"]
    if keys[0] == "fluency":  # of a generated text, wherever it stands
        return "fluency", "generated"
    if path[0] == "retention":
        keys.insert(0, "retention")
    name = ".".join([*keys[:-1], keys[-1].removesuffix("_acc")])
    return name, "generated" if path[1] == "generated" else "teacher_forced"


def _leaf(metrics: Sequence[Mapping[str, Any]], path: tuple[str, ...]) -> dict[str, Any]:
    scores = [score for score in record_scores(metrics, path) if score is not None]
    if "fluency" not in path and "perplexity" not in path:
        return dataclasses.asdict(mean_interval(scores))
    if len(scores) == 1:  # no interval, where the values have no bounds
        return {"mean": scores[0], "low": None, "high": None, "count": 1}
    return dataclasses.asdict(student_interval(scores))


def _leaf_of(measured: Perplexity) -> dict[str, Any]:
    return {
        "mean": measured.perplexity,
        "low": measured.low,
        "high": measured.high,
        "count": measured.tokens,
    }


def _in_order(scores: Mapping[str, Score]) -> dict[str, Score]:
    """By section; within one, as the records have them."""
    names = sorted(scores, key=lambda name: _ORDER.index(name.split(".")[0]))
    return {
        name: {part: scores[name][part] for part in _PARTS if part in scores[name]}
        for name in names
    }
