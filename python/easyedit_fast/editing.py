"""What becomes of a method's results: they change weights, or they go into a memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from easyedit_fast.edits import Edit
from easyedit_fast.errors import EditStateError
from easyedit_fast.failures import Failures
from easyedit_fast.ledger import remove, save_edited_model
from easyedit_fast.methods import EditingMethod, MemoryMethod, Progress
from easyedit_fast.models.adapters import refuse_adapters
from easyedit_fast.models.fingerprint import model_fingerprint
from easyedit_fast.models.memory import BatchSize
from easyedit_fast.timings import Timings
from easyedit_fast.version import installed_versions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from easyedit_fast.requests import EditRequest


class Editing(Protocol):
    """A method with its model.

    Attributes:
        base: The model that prompts of an evaluation run through.
        model: The model that users see; it holds the edits.
    """

    base: PreTrainedModel
    model: PreTrainedModel

    def compute(
        self,
        requests: Sequence[EditRequest],
        *,
        isolated: bool,
        timings: Timings,
        batch_size: BatchSize,
        failures: Failures,
        progress: Progress | None,
    ) -> tuple[list[Edit], list[dict[str, Any]]]:
        """Edits that are not applied yet, and what the method tells of each request."""
        ...

    def evaluated(self, alone: Sequence[Edit] | None) -> dict[str, Any]:
        """What `Evaluator.score` is told: the model as it is, or one edit a request."""
        ...

    def take_out(self, edits: Sequence[Edit]) -> None:
        """Reverts edits that are applied, in one go."""
        ...

    def save(self, folder: str | Path) -> None:
        """Saves the edited model and its tokenizer."""
        ...


class WeightEditing:
    """A method that changes weights; see `Editing`."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, method: EditingMethod
    ) -> None:
        """Takes the model that the method was made for."""
        self.base = self.model = model
        self._tokenizer, self._method = tokenizer, method
        self._fingerprint = model_fingerprint(model, method.architecture)

    def compute(
        self,
        requests: Sequence[EditRequest],
        *,
        isolated: bool,
        timings: Timings,
        batch_size: BatchSize,
        failures: Failures,
        progress: Progress | None,
    ) -> tuple[list[Edit], list[dict[str, Any]]]:
        """As `Editing.compute`.

        Raises:
            ModelError: Another editor has put an adapter into the model meanwhile.
        """
        refuse_adapters(self.model)
        computed = self._method.compute(
            requests,
            isolated=isolated,
            timings=timings,
            batch_size=batch_size,
            failures=failures,
            progress=progress,
        )
        others = failures.others(requests)
        shares = [[request] for request in others] if isolated else [others] if others else []
        about = _about(self._method, self.model, self._fingerprint)
        edits = [
            Edit(updates, requests=share, **about)
            for updates, share in zip(computed.updates, shares, strict=True)
        ]
        return edits, computed.details

    def evaluated(self, alone: Sequence[Edit] | None) -> dict[str, Any]:
        """As `Editing.evaluated`."""
        return {"updates": None if alone is None else [edit.updates for edit in alone]}

    def take_out(self, edits: Sequence[Edit]) -> None:
        """As `Editing.take_out`."""
        remove(self.model, edits)

    def save(self, folder: str | Path) -> None:
        """As `Editing.save`."""
        save_edited_model(self.model, self._tokenizer, folder)


class MemoryEditing:
    """A method that adds to a memory; see `Editing`."""

    def __init__(self, method: MemoryMethod) -> None:
        """Takes the method, which knows its models."""
        self.base, self.model = method.base, method.model
        self._method = method

    def compute(
        self,
        requests: Sequence[EditRequest],
        *,
        isolated: bool,
        timings: Timings,
        batch_size: BatchSize,
        failures: Failures,
        progress: Progress | None,
    ) -> tuple[list[Edit], list[dict[str, Any]]]:
        """As `Editing.compute`; there is nothing to compute before a request is added."""
        about = _about(self._method, self.base, self._method.fingerprint)

        def make(places: Sequence[int]) -> Sequence[Edit]:
            own = [requests[place] for place in places]
            return self._method.edits(own, about, isolated=isolated)

        with timings.phase("requests"):
            _, edits = failures.made_of_others(range(len(requests)), make)
        if progress is not None:
            progress(len(requests), len(requests))
        return list(edits or []), [{} for _ in requests]

    def evaluated(self, alone: Sequence[Edit] | None) -> dict[str, Any]:
        """As `Editing.evaluated`."""
        own = None if alone is None else [edit.requests[0] for edit in alone]
        return {"routing": self._method.routing(own)}

    def take_out(self, edits: Sequence[Edit]) -> None:
        """As `Editing.take_out`."""
        for edit in edits:
            edit.revert()

    def save(self, folder: str | Path) -> None:
        """Not for edits of a memory.

        Raises:
            EditStateError: Always; the message says what to do.
        """
        raise EditStateError(
            f"{folder}: SERAC's edits are not in the weights; keep the memory's file "
            "(memory=, --memory) beside the model"
        )


def editing_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    method: EditingMethod | MemoryMethod,
) -> Editing:
    """What becomes of a method's results, by its kind."""
    if isinstance(method, MemoryMethod):
        return MemoryEditing(method)
    return WeightEditing(model, tokenizer, method)


def _about(
    method: EditingMethod | MemoryMethod, model: PreTrainedModel, fingerprint: str
) -> dict[str, Any]:
    """What an edit is told beside its requests."""
    return {
        "method": method.name,
        "model_name": str(getattr(model, "name_or_path", "")),
        "model_fingerprint": fingerprint,
        "architecture": method.architecture,
        "hparams": method.used_hparams(),
        "settings": method.settings(),
        "versions": installed_versions(),
    }
