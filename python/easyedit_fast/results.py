"""What `Editor.edit` returns."""

from __future__ import annotations

import dataclasses
from typing import Any

from easyedit_fast.edits import Edit
from easyedit_fast.errors import EditStateError, RecordError
from easyedit_fast.timings import Timings


@dataclasses.dataclass(frozen=True)
class EditResult:
    """The outcome of one call of `Editor.edit`.

    Attributes:
        edits: The edit objects: one that holds all requests (together), one a batch (sequential),
            or one a request (isolated), in the order of the requests. Those that failed have none:
            `finished` has the places of the others.
        metrics: One dict a request in EasyEdit's nesting: ``["post"]["rewrite_acc"]``,
            ``["post"]["locality"]["neighborhood_acc"]`` and so on; the scores of greedy
            generation lie under ``["post"]["generated"]``. After sequential edits ``post`` is of
            the final model, ``post_batch`` of the model right after the request's own batch, and
            ``retention`` tells what is left. A request that failed has its ``error`` (the text) in
            the place of all scores. Empty where nothing was evaluated.
        summary: The same nesting; every leaf is ``{"mean": …, "count": …}``.
        timings: Seconds, phase by phase.
        details: What the method tells of each request, e.g. optimisation steps and losses; empty
            for one that failed.
        settings: What the result depends on beside the requests, e.g. the method, the origin of
            the hyperparameters and whether second-moment statistics were used.
        failures: The errors of the requests that were left out (``on_error="skip"``), by their
            places.
    """

    edits: list[Edit]
    metrics: list[dict[str, Any]]
    summary: dict[str, Any]
    timings: Timings
    details: list[dict[str, Any]]
    settings: dict[str, Any]
    failures: dict[int, RecordError] = dataclasses.field(default_factory=dict)

    @property
    def finished(self) -> list[int]:
        """The places of the requests that did not fail: of `edits`, if they are isolated."""
        return [place for place in range(len(self.details)) if place not in self.failures]

    @property
    def edit(self) -> Edit:
        """The one edit that holds everything.

        Raises:
            EditStateError: There are several: the requests were isolated, or in several batches.
                Or there is none: all requests failed.
        """
        if not self.edits:
            raise EditStateError("all requests failed; result.failures tells why")
        if len(self.edits) != 1:
            raise EditStateError(f"this result holds {len(self.edits)} edits; use result.edits[i]")
        return self.edits[0]

    def to_dict(self) -> dict[str, Any]:
        """All but the weights as plain JSON values."""
        return {
            "settings": self.settings,
            "metrics": self.metrics,
            "summary": self.summary,
            "timings": dict(self.timings),
            "details": self.details,
            "edits": [edit.describe() for edit in self.edits],
            "failures": {place: str(error) for place, error in self.failures.items()},
        }
