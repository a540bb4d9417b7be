"""One row of a sweep: the scores of all records at one layer, in one second-moment mode."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import pydantic
import pydantic.dataclasses

from easyedit_fast.metrics import Estimate, mean_interval, paired_difference

Mode: TypeAlias = Literal["full", "simplified"]
MODES: tuple[Mode, ...] = ("full", "simplified")
"""``full``: C = E[k kᵀ] from statistics. ``simplified``: C = I."""

SECTIONS = ("rewrite", "rephrase", "locality", "portability")
GENERATED = "generated_"
SCORES = (*SECTIONS, *(f"{GENERATED}{section}" for section in SECTIONS))
"""Names of the scores: teacher-forced, then of greedy generations."""

Records: TypeAlias = dict[str, list[float | None]]
"""By score, each record's own; None where the record has no prompt for it."""


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(strict=True))
class SweepRow:
    """All records, each edited in isolation at one layer, in one mode.

    Attributes:
        layer: The edited layer, from 0.
        mode: ``full`` or ``simplified``.
        second_moment: File of the statistics; None for C = I.
        second_moment_digest: Its SHA-256; None for C = I.
        steps: Optimisation steps of a record, in the mean.
        update_norm: ‖Δ‖ (Frobenius) of a record's update, in the mean.
        seconds: Optimisation and closed form of a record, in the mean; both modes of a layer share
            the first, and all layers the forward pass before it, which is not counted.
        records: Every record's scores, by name; a name that no record has is left out.
    """

    layer: int
    mode: Mode
    second_moment: str | None
    second_moment_digest: str | None
    steps: float
    update_norm: float
    seconds: float
    records: Records

    @property
    def count(self) -> int:
        """The number of records."""
        return len(self.records["rewrite"])

    @property
    def scores(self) -> dict[str, Estimate]:
        """The mean of each score, and its 95 % interval."""
        return scores_of(self.records)

    def to_dict(self) -> dict[str, Any]:
        """All but the single records' scores, as plain JSON values."""
        return {
            "layer": self.layer,
            "mode": self.mode,
            "count": self.count,
            **as_dicts(self.scores),
            "steps": self.steps,
            "update_norm": self.update_norm,
            "seconds": self.seconds,
            "second_moment": self.second_moment,
        }


def records_of(scored: Sequence[Mapping[str, Any]]) -> Records:
    """Every record's scores by name, from what an evaluation told of each.

    A record's score is the mean over its prompts; where a section has several keys, the mean over
    the keys.
    """
    records = {
        f"{prefix}{section}": [
            _mean(_prompt_scores(entry.get("generated", {}) if prefix else entry, section))
            for entry in scored
        ]
        for prefix in ("", GENERATED)
        for section in SECTIONS
    }
    return {name: found for name, found in records.items() if any(v is not None for v in found)}


def scores_of(records: Mapping[str, Sequence[float | None]]) -> dict[str, Estimate]:
    """The mean of each score over the records that have it, and its 95 % interval."""
    return {
        name: mean_interval([value for value in values if value is not None])
        for name, values in records.items()
    }


def as_dicts(scores: Mapping[str, Estimate]) -> dict[str, dict[str, float]]:
    """The same as plain JSON values."""
    return {name: dataclasses.asdict(score) for name, score in scores.items()}


def difference(first: SweepRow, second: SweepRow) -> dict[str, Estimate]:
    """``first - second`` in each score, record by record, with 95 % intervals (Student's t).

    A score that fewer than two records have is left out.
    """
    return {
        name: paired_difference(values, second.records[name])
        for name, values in first.records.items()
        if sum(value is not None for value in values) > 1
    }


def csv_text(rows: Sequence[SweepRow]) -> str:
    """The rows as CSV: a line a row, each score with its interval and count."""
    present = [name for name in SCORES if any(name in row.records for row in rows)]
    head = ["layer", "mode", "count"]
    for name in present:
        head += [name, f"{name}_low", f"{name}_high", f"{name}_count"]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*head, "steps", "update_norm", "seconds", "second_moment"])
    for row in rows:
        scores = row.scores
        cells: list[object] = [row.layer, row.mode, row.count]
        for name in present:
            score = scores.get(name)
            cells += dataclasses.astuple(score) if score is not None else [""] * 4
        writer.writerow([*cells, row.steps, row.update_norm, row.seconds, row.second_moment or ""])
    return file.getvalue()


def _prompt_scores(section: Mapping[str, Any], name: str) -> list[float]:
    """The scores of a section's prompts, or the means of its keys."""
    keys = section.get(name)
    if keys is None:
        return list(section.get(f"{name}_acc", ()))
    means = [_mean(scores) for key, scores in keys.items() if key.endswith("_acc")]
    return [mean for mean in means if mean is not None]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
