"""What can be done with the records of a run: edit each of them, or score the model on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from easyedit_fast.evaluation import Evaluator, join
from easyedit_fast.failures import Failures
from easyedit_fast.files import digest
from easyedit_fast.ledger import applied_edit_ids
from easyedit_fast.methods import MemoryMethod
from easyedit_fast.models.architectures import architecture_of
from easyedit_fast.models.fingerprint import model_fingerprint
from easyedit_fast.timings import Timings
from easyedit_fast.version import installed_versions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from easyedit_fast.editor import Editor
    from easyedit_fast.evaluation import Perplexity
    from easyedit_fast.evaluation.isolation import Updates
    from easyedit_fast.failures import OnError
    from easyedit_fast.methods import Progress
    from easyedit_fast.models.architectures import Architecture
    from easyedit_fast.requests import EditRequest
    from easyedit_fast.runs.perplexity_text import PerplexityText
    from easyedit_fast.runs.saved_edits import SavedEdits
    from easyedit_fast.sequence import Batch


@dataclasses.dataclass(frozen=True)
class EditJob:
    """Each record is edited in its own copy of the model.

    Attributes:
        editor: The editor; its model stays as it is.
        batch_size: Records that are edited together, and written together.
        evaluate: Score each record before and after.
        generate: Score greedy generations too.
        fluency: Measure the n-gram entropy of a generated text too.
        text: Measure the perplexity of the first edited models on this text.
        save: Folder for the edits, ``edit-00012.safetensors`` for record 12; made if need be.
        on_error: As in `Editor.edit`.
    """

    editor: Editor
    batch_size: int | Literal["auto"] = "auto"
    evaluate: bool = True
    generate: bool = True
    fluency: bool = False
    text: PerplexityText | None = None
    save: Path | None = None
    on_error: OnError = "raise"

    def about(self) -> dict[str, Any]:
        """The model's name."""
        return {"model": str(getattr(self.editor.model, "name_or_path", ""))}

    def settings(self) -> dict[str, Any]:
        """Those of `Editor.edit`."""
        method = self.editor.method
        return {"isolated": True, "method": method.name, **method.settings()}

    def description(self) -> dict[str, Any]:
        """Model, method, hyperparameters, statistics, options and versions."""
        settings, method = self.settings(), self.editor.method
        model, fingerprint = self.editor.model, None
        if isinstance(method, MemoryMethod):  # whose adapter is in the base model now
            model, fingerprint = method.base, method.fingerprint
        statistics = settings.get("second_moment") or {}
        return {
            "model": _identity(model, method.architecture, fingerprint),
            "settings": settings,
            "statistics": {layer: digest(Path(path)) for layer, path in statistics.items()},
            "hparams": method.used_hparams(),
            "options": {
                "evaluate": self.evaluate,
                "generate": self.generate,
                "fluency": self.fluency,
                "text": None if self.text is None else self.text.description(),
                "save": None if self.save is None else str(self.save),
            },
            "versions": installed_versions(),
        }

    def settled_batch_size(self, requests: Sequence[EditRequest]) -> int:
        """As given, or as many as the method takes at once."""
        if self.batch_size == "auto":
            return self.editor.method.requests_at_once(requests)
        return self.batch_size

    def work(
        self, batch: Batch, numbers: Sequence[int], progress: Progress
    ) -> tuple[list[dict[str, Any]], Timings]:
        """``metrics``, ``steps`` by layer and ``edit`` (the file's name) of each record.

        One that failed has its ``error`` in the place of all of them.
        """
        result = self.editor.edit(
            batch.requests,
            isolated=True,
            batch_size=len(batch.requests),  # as settled, whatever memory is free by now
            on_error=self.on_error,
            evaluate=self.evaluate,
            generate=self.generate,
            fluency=self.fluency,
            progress=progress,
        )
        scored = result.metrics
        if self.text is not None:
            own = {
                place: edit.updates
                for place, edit in zip(result.finished, result.edits, strict=True)
            }
            with result.timings.phase("perplexity"):
                scored = self.text.of_each(
                    self.editor, scored, own, first=batch.first, on_error=self.on_error
                )
        lines: list[dict[str, Any]] = [{} for _ in numbers]
        for place, error in result.failures.items():
            lines[place]["error"] = str(error.at(numbers[place]))
        for place, edit in zip(result.finished, result.edits, strict=True):
            told = result.details[place].get("layers", {})  # of methods that take steps
            if self.evaluate:
                lines[place]["metrics"] = {**scored[place], "case_id": numbers[place]}
            lines[place]["steps"] = {layer: of_layer["steps"] for layer, of_layer in told.items()}
            if self.save is not None:
                self.save.mkdir(parents=True, exist_ok=True)
                lines[place]["edit"] = f"edit-{numbers[place]:05d}.safetensors"
                edit.save(self.save / lines[place]["edit"])
        return lines, result.timings


@dataclasses.dataclass(frozen=True)
class ScoreJob:
    """Each record is scored on the model as it is, and on an edited one.

    Attributes:
        evaluator: Has the model and its tokenizer; the model stays as it is.
        edits: Saved edits; None: ``post`` is missing.
        generate: Score greedy generations too.
        fluency: Measure the n-gram entropy of a generated text too.
        text: Measure the perplexity on this text: of the first edited models where each record has
            its own, else see `perplexity`.
        batch_size: Records that are scored together, and written together.
        on_error: As in `Editor.edit`; a record fails also where it has no saved edit of its own.
    """

    evaluator: Evaluator
    edits: SavedEdits | None = None
    generate: bool = True
    fluency: bool = False
    text: PerplexityText | None = None
    batch_size: int = 32
    on_error: OnError = "raise"

    def __post_init__(self) -> None:
        """Refuses edits of another model."""
        if self.edits is not None:
            self.edits.require_model(self.evaluator.model)

    def about(self) -> dict[str, Any]:
        """The model's name."""
        return {"model": str(getattr(self.evaluator.model, "name_or_path", ""))}

    def settings(self) -> dict[str, Any]:
        """Where the edits are from, and how many there are."""
        return {"edit": None} if self.edits is None else self.edits.settings()

    def description(self) -> dict[str, Any]:
        """Model, edits, options and versions."""
        model = self.evaluator.model
        return {
            "model": _identity(model, architecture_of(model)),
            "settings": self.settings(),
            "edits": None if self.edits is None else self.edits.digest(),
            "options": {
                "generate": self.generate,
                "fluency": self.fluency,
                "text": None if self.text is None else self.text.description(),
            },
            "versions": installed_versions(),
        }

    def settled_batch_size(self, requests: Sequence[EditRequest]) -> int:
        """As given."""
        return self.batch_size

    def work(
        self, batch: Batch, numbers: Sequence[int], progress: Progress
    ) -> tuple[list[dict[str, Any]], Timings]:
        """``metrics`` of each record, or the ``error`` of one that failed."""
        timings, failures = Timings(), Failures(self.on_error)
        own = None if self.edits is None else self.edits.of_each(batch.requests, failures)
        with timings.phase("evaluate before"):
            pre = self._score_before(batch.requests, failures)
        metrics: list[dict[str, Any]] = [{"pre": pre.get(place)} for place in range(len(numbers))]
        if self.edits is not None:
            updates = None if own is None else [own[place] for place in pre]
            with self.edits.applied(self.evaluator.model), timings.phase("evaluate after"):
                post = self._score(failures.others(batch.requests), updates)
            metrics = join(batch.requests, pre, post, failures)
        if self.text is not None and own is not None:
            with timings.phase("perplexity"):
                measured = {place: own[place] for place in pre}
                metrics = self.text.of_each(
                    self.evaluator, metrics, measured, first=batch.first, on_error=self.on_error
                )
        progress(len(numbers), len(numbers))
        return [
            {"error": str(failures[place].at(number))}
            if place in failures
            else {"metrics": {**entry, "case_id": number}}
            for place, (number, entry) in enumerate(zip(numbers, metrics, strict=True))
        ], timings

    def perplexity(self) -> dict[str, Perplexity]:
        """The perplexity of the one model of all records, ``before`` and ``after`` the edits."""
        if self.text is None or (self.edits is not None and self.edits.isolated):
            return {}
        measured = {"before": self.text.measure(self.evaluator)}
        if self.edits is not None:
            with self.edits.applied(self.evaluator.model):
                measured["after"] = self.text.measure(self.evaluator)
        return measured

    def _score_before(
        self, requests: Sequence[EditRequest], failures: Failures
    ) -> dict[int, dict[str, Any]]:
        """Scores by place; a request with a prompt that does not fit the model fails."""
        while True:
            places = failures.among(range(len(requests)))
            with failures.catching(places):
                return dict(zip(places, self._score(failures.others(requests)), strict=True))

    def _score(
        self, requests: Sequence[EditRequest], updates: Sequence[Updates] | None = None
    ) -> list[dict[str, Any]]:
        return self.evaluator.score(
            requests, updates=updates, generate=self.generate, fluency=self.fluency
        )


def _identity(
    model: PreTrainedModel, architecture: Architecture, fingerprint: str | None = None
) -> dict[str, Any]:
    """What tells the weights from others: the fingerprint covers neither MLPs nor the dtype."""
    return {
        "fingerprint": fingerprint or model_fingerprint(model, architecture),
        "dtype": str(model.dtype),
        "edits": applied_edit_ids(model),
    }
