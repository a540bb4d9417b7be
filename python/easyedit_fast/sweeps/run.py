"""Edits the same records at several layers and in both second-moment modes.

What is costly is done once. One forward pass a batch gives the keys, values and hidden states of
all layers. v* does not depend on the second moment, so that it is optimised once a layer, and the
closed form alone is solved in each mode. The unedited model is scored once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from easyedit_fast.errors import HparamsError, RequestError
from easyedit_fast.evaluation import Evaluator, compare
from easyedit_fast.failures import numbered
from easyedit_fast.ledger import applied_edit_ids
from easyedit_fast.metrics import Estimate
from easyedit_fast.models.architectures import edited_weight
from easyedit_fast.models.fingerprint import model_fingerprint
from easyedit_fast.rome import Rome
from easyedit_fast.rome.values import LayerValues
from easyedit_fast.sweeps.folder import SweepFolder
from easyedit_fast.sweeps.plot import plot_rows
from easyedit_fast.sweeps.rows import (
    MODES,
    Mode,
    SweepRow,
    as_dicts,
    csv_text,
    difference,
    records_of,
    scores_of,
)
from easyedit_fast.sweeps.second_moments import SecondMoments, settle_modes
from easyedit_fast.timings import Timings
from easyedit_fast.version import installed_versions

if TYPE_CHECKING:
    from easyedit_fast.data import Corpus
    from easyedit_fast.editor import Editor
    from easyedit_fast.requests import EditRequest
    from easyedit_fast.updates import LowRankUpdate

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with a phase's name, and how much of it is done, and of what number."""

_PART = 32
"""Records whose values are optimised between two files; a killed sweep loses one part at most."""


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """What `sweep` found.

    Attributes:
        rows: A row for each layer and mode, in that order.
        unedited: Scores of the same records in the unedited model; locality has none.
        settings: What the rows depend on.
        timings: Seconds of this call, phase by phase.
    """

    rows: list[SweepRow]
    unedited: dict[str, Estimate]
    settings: dict[str, Any]
    timings: Timings

    @property
    def differences(self) -> dict[int, dict[str, Estimate]]:
        """``full - simplified`` in each score, paired by record, at each layer that has both."""
        by_mode: dict[Mode, dict[int, SweepRow]] = {mode: {} for mode in MODES}
        for row in self.rows:
            by_mode[row.mode][row.layer] = row
        full, simplified = by_mode["full"], by_mode["simplified"]
        return {
            layer: difference(row, simplified[layer])
            for layer, row in full.items()
            if layer in simplified
        }

    def to_dict(self) -> dict[str, Any]:
        """All but the single records' scores, as plain JSON values."""
        return {
            "settings": self.settings,
            "unedited": as_dicts(self.unedited),
            "rows": [row.to_dict() for row in self.rows],
            "full_minus_simplified": [
                {"layer": layer, **as_dicts(scores)} for layer, scores in self.differences.items()
            ],
            "timings": dict(self.timings),
        }

    def to_csv(self, path: str | Path) -> None:
        """Writes the rows as CSV, each score with its 95 % interval and count."""
        Path(path).write_text(csv_text(self.rows), encoding="utf-8")

    def plot(self, path: str | Path) -> None:
        """Draws the scores against the layer, with 95 % intervals; the suffix says the format.

        Raises:
            MissingPackageError: matplotlib is not installed.
        """
        model, count = self.settings["model"], self.rows[0].count
        plot_rows(self.rows, self.unedited, Path(path), f"ROME on {model}, {count} records")


def sweep(
    editor: Editor,
    requests: Sequence[EditRequest],
    layers: Sequence[int],
    modes: Sequence[str] | None = None,
    *,
    second_moment: str | Path | None = None,
    text: Corpus | None = None,
    folder: str | Path | None = None,
    overwrite: bool = False,
    generate: bool = True,
    progress: Progress | None = None,
) -> SweepResult:
    """Edits the same records at several layers and in both second-moment modes.

    Every record is edited in its own copy of the model at one layer, as ``editor.edit(…,
    isolated=True)`` with that layer and ``mom2_adjustment`` does, with the same result. The model
    is left as it was.

    Args:
        editor: An editor with method ``rome``; its hyperparameters are used, but for the layers
            and the second moment.
        requests: The records.
        layers: The layers, from 0.
        modes: ``full`` (C = E[k kᵀ]), ``simplified`` (C = I) or both; None: both where every layer
            has statistics, else ``simplified``, with a warning.
        second_moment: Statistics (.npz), ``{}`` standing for the layer; None: the editor's
            hyperparameters', or those that were collected before.
        text: Texts from which the second moments of layers that have none are collected.
        folder: Where ``sweep.json`` and ``sweep.csv`` are written, row by row. A sweep that was
            ended goes on there when it is called again; further layers and modes may be added.
        overwrite: Begin anew where the folder holds a sweep.
        generate: Score greedy generations too.
        progress: Called with phase, part done and whole: ``statistics`` (tokens), ``optimise``
            (records; all layers of a record count as one), ``score`` (rows).

    Raises:
        HparamsError: The editor's method is not ROME, no layer is given, a mode is unknown, or
            ``full`` is asked for and a layer has no statistics.
        ModelError: A layer is not in the model.
        RequestError: There is no record, or one cannot be used.
        DataFileError: The folder holds another sweep, or a statistics file does not fit.
        NonFiniteError: Names a record whose edit is not finite.
    """
    if not requests:
        raise RequestError("there is no request; give at least one")
    tell = progress or (lambda *_: None)
    timings = Timings()
    rome, moments = _prepare(editor, layers, second_moment, text)
    if text is not None and moments.missing and (modes is None or "full" in modes):
        with timings.phase("statistics"):
            moments.collect(editor.tokenizer, text, lambda *part: tell("statistics", *part))
    settled = settle_modes(modes, moments.missing)
    if "full" in settled:
        moments.check()
    with timings.phase("templates"):
        settings = _settings(editor, rome, requests, generate)
    with tempfile.TemporaryDirectory() as scratch:
        kept = SweepFolder(Path(folder or scratch), settings, overwrite=overwrite)
        job = _Job(editor, rome, moments, requests, kept, generate, timings, tell)
        job.run(sorted(set(layers)), settled)
        return SweepResult(kept.rows, scores_of(kept.unedited), settings, timings)


@dataclasses.dataclass(frozen=True)
class _Job:
    """What the parts of a sweep share."""

    editor: Editor
    rome: Rome
    moments: SecondMoments
    requests: Sequence[EditRequest]
    folder: SweepFolder
    generate: bool
    timings: Timings
    tell: Progress

    def run(self, layers: Sequence[int], modes: Sequence[Mode]) -> None:
        """Adds the rows that are missing in the folder."""
        wanted = [
            (layer, mode, self.moments.digests[layer] if mode == "full" else None)
            for layer in layers
            for mode in modes
        ]
        missing = [row for row in wanted if not self.folder.has(*row)]
        if missing:
            evaluator = Evaluator(self.editor.model, self.editor.tokenizer)
            with self.timings.phase("evaluate before"):
                before = evaluator.score(self.requests, generate=self.generate)
            self.folder.unedited = records_of(before)
            values = self._optimise(sorted({layer for layer, _, _ in missing}))
            for done, (layer, mode, _) in enumerate(missing):
                self.tell("score", done, len(missing))
                self.folder.add(self._row(layer, mode, values[layer], evaluator, before))
            self.tell("score", len(missing), len(missing))
        self.folder.forget_values()

    def _optimise(self, layers: Sequence[int]) -> dict[int, LayerValues]:
        """The values of all records at some layers; what the folder has is not done again."""
        parts: dict[int, list[LayerValues]] = {layer: [] for layer in layers}
        for first in range(0, len(self.requests), _PART):

            def tell(done: int, before: int = first) -> None:
                self.tell("optimise", before + done, len(self.requests))

            part = self.requests[first : first + _PART]
            found = self.folder.values(first // _PART)
            missing = [layer for layer in layers if layer not in found]
            if missing:
                with numbered(range(first, first + len(part))):
                    made = self.rome.values(part, missing, timings=self.timings, progress=tell)
                # On the CPU, where the values of all records and layers have room.
                found |= {layer: one.to(torch.device("cpu")) for layer, one in made.items()}
                self.folder.keep_values(first // _PART, found)
            for layer in layers:
                parts[layer].append(found[layer])
            tell(len(part))
        return {layer: LayerValues.joined(found) for layer, found in parts.items()}

    def _row(
        self,
        layer: int,
        mode: Mode,
        values: LayerValues,
        evaluator: Evaluator,
        before: Sequence[dict[str, Any]],
    ) -> SweepRow:
        """Solves and scores one row."""
        start = time.perf_counter()
        with self.timings.phase("solve"):
            updates = self._solve(layer, mode, values)
        seconds = values.seconds + time.perf_counter() - start
        name = self.rome.architecture.weight_name(layer)
        with self.timings.phase("evaluate after"):
            own = [{name: update} for update in updates]
            after = evaluator.score(self.requests, updates=own, generate=self.generate)
        return SweepRow(
            layer=layer,
            mode=mode,
            second_moment=self.moments.files[layer] if mode == "full" else None,
            second_moment_digest=self.moments.digests[layer] if mode == "full" else None,
            steps=_mean([len(losses) for losses in values.losses]),
            update_norm=_mean([update.norm() for update in updates]),
            seconds=seconds / len(self.requests),
            records=records_of([compare(*pair) for pair in zip(before, after, strict=True)]),
        )

    def _solve(self, layer: int, mode: Mode, values: LayerValues) -> list[LowRankUpdate]:
        """Each record's update."""
        architecture = self.rome.architecture
        device = edited_weight(self.editor.model, architecture, layer).device
        factor = self.moments.factor(layer, device) if mode == "full" else None
        there = values.to(device)
        return [
            there.solve(
                [place],
                factor,
                architecture.weight_layout,
                consistent=self.rome.hparams.consistent_keys,
            ).update
            for place in range(len(self.requests))
        ]


def _prepare(
    editor: Editor, layers: Sequence[int], second_moment: str | Path | None, text: Corpus | None
) -> tuple[Rome, SecondMoments]:
    """ROME for the layers' values, and the statistics at hand."""
    method = editor.method
    if not isinstance(method, Rome):
        raise HparamsError(
            f"a sweep compares ROME's layers and second moments, not {method.name!r}; make the "
            "editor with method='rome'"
        )
    if not layers:
        raise HparamsError("layers must not be empty; give the layers to sweep")
    given = second_moment or method.hparams.second_moment
    if second_moment is not None and text is not None:
        raise HparamsError("give either second_moment, or a text to collect it from")
    chosen = {"layers": sorted(set(layers)), "second_moment": None if given is None else str(given)}
    hparams = method.hparams.model_copy(update=chosen)
    moments = SecondMoments(editor.model, method.architecture, hparams, hparams.layers)
    without = {"mom2_adjustment": False, "second_moment": None}
    rome = Rome(
        editor.model,
        editor.tokenizer,
        hparams=hparams.model_copy(update=without),
        architecture=method.architecture,
    )
    return rome, moments


def _settings(
    editor: Editor, rome: Rome, requests: Sequence[EditRequest], generate: bool
) -> dict[str, Any]:
    """What every row depends on beside its layer and mode."""
    records = json.dumps([request.to_dict() for request in requests], sort_keys=True)
    varied = ("layers", "mom2_adjustment", "second_moment")
    hparams = {key: value for key, value in rome.used_hparams().items() if key not in varied}
    return {
        "model": Path(str(getattr(editor.model, "name_or_path", ""))).name or "model",
        "model_fingerprint": model_fingerprint(editor.model, rome.architecture),
        "dtype": str(editor.model.dtype).removeprefix("torch."),
        "records": len(requests),
        "records_digest": hashlib.sha256(records.encode()).hexdigest(),
        "generated": generate,
        "edits": applied_edit_ids(editor.model),
        "hyperparameters": hparams,
        "versions": installed_versions(),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
