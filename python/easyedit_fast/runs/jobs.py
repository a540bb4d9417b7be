"""What can be done with the records of a run: edit each of them, or score the model on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from easyedit_fast.evaluation import Evaluator, merge
from easyedit_fast.files import digest
from easyedit_fast.ledger import applied_edit_ids
from easyedit_fast.models.architectures import architecture_of
from easyedit_fast.models.fingerprint import model_fingerprint
from easyedit_fast.timings import Timings
from easyedit_fast.version import installed_versions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from easyedit_fast.editor import Editor
    from easyedit_fast.edits import Edit
    from easyedit_fast.failures import OnError
    from easyedit_fast.methods import Progress
    from easyedit_fast.models.architectures import Architecture
    from easyedit_fast.requests import EditRequest
    from easyedit_fast.sequence import Batch


@dataclasses.dataclass(frozen=True)
class EditJob:
    """Each record is edited in its own copy of the model.

    Attributes:
        editor: The editor; its model stays as it is.
        batch_size: Records that are edited together, and written together.
        evaluate: Score each record before and after.
        generate: Score greedy generations too.
        save: Folder for the edits, ``edit-00012.safetensors`` for record 12; made if need be.
        on_error: As in `Editor.edit`.
    """

    editor: Editor
    batch_size: int | Literal["auto"] = "auto"
    evaluate: bool = True
    generate: bool = True
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
        settings = self.settings()
        statistics = settings.get("second_moment") or {}
        return {
            "model": _identity(self.editor.model, self.editor.method.architecture),
            "settings": settings,
            "statistics": {layer: digest(Path(path)) for layer, path in statistics.items()},
            "hparams": self.editor.method.used_hparams(),
            "options": {
                "batch_size": self.batch_size,
                "evaluate": self.evaluate,
                "generate": self.generate,
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
            progress=progress,
        )
        lines: list[dict[str, Any]] = [{} for _ in numbers]
        for place, error in result.failures.items():
            lines[place]["error"] = str(error.at(numbers[place]))
        for place, edit in zip(result.finished, result.edits, strict=True):
            told = result.details[place]["layers"]
            if self.evaluate:
                lines[place]["metrics"] = {**result.metrics[place], "case_id": numbers[place]}
            lines[place]["steps"] = {layer: of_layer["steps"] for layer, of_layer in told.items()}
            if self.save is not None:
                self.save.mkdir(parents=True, exist_ok=True)
                lines[place]["edit"] = f"edit-{numbers[place]:05d}.safetensors"
                edit.save(self.save / lines[place]["edit"])
        return lines, result.timings


@dataclasses.dataclass(frozen=True)
class ScoreJob:
    """Each record is scored on the model as it is, and with one edit applied.

    Attributes:
        evaluator: Has the model and its tokenizer.
        edit: The edit, or None: the model is scored as it is, and ``post`` is missing.
        generate: Score greedy generations too.
        batch_size: Records that are scored together, and written together.
    """

    evaluator: Evaluator
    edit: Edit | None = None
    generate: bool = True
    batch_size: int = 32

    def about(self) -> dict[str, Any]:
        """The model's name."""
        return {"model": str(getattr(self.evaluator.model, "name_or_path", ""))}

    def settings(self) -> dict[str, Any]:
        """The edit's id."""
        return {"edit": None if self.edit is None else self.edit.id}

    def description(self) -> dict[str, Any]:
        """Model, edit, options and versions."""
        model = self.evaluator.model
        return {
            "model": _identity(model, architecture_of(model)),
            "settings": self.settings(),
            "options": {"generate": self.generate, "batch_size": self.batch_size},
            "versions": installed_versions(),
        }

    def settled_batch_size(self, requests: Sequence[EditRequest]) -> int:
        """As given."""
        return self.batch_size

    def work(
        self, batch: Batch, numbers: Sequence[int], progress: Progress
    ) -> tuple[list[dict[str, Any]], Timings]:
        """``metrics`` of each record."""
        timings = Timings()
        requests = batch.requests
        with timings.phase("evaluate before"):
            pre = self.evaluator.score(requests, generate=self.generate)
        if self.edit is None:
            metrics = [{"pre": scores} for scores in pre]
        else:
            with self.edit.applied(self.evaluator.model), timings.phase("evaluate after"):
                post = self.evaluator.score(requests, generate=self.generate)
            metrics = merge(requests, pre, post)
        progress(len(requests), len(requests))
        return [
            {"metrics": {**entry, "case_id": number}}
            for number, entry in zip(numbers, metrics, strict=True)
        ], timings


def _identity(model: PreTrainedModel, architecture: Architecture) -> dict[str, Any]:
    """What tells the weights from others: the fingerprint covers neither MLPs nor the dtype."""
    return {
        "fingerprint": model_fingerprint(model, architecture),
        "dtype": str(model.dtype),
        "edits": applied_edit_ids(model),
    }
