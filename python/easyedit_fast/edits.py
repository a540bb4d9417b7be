"""Edits as objects: what a method computes, and what a user applies, reverts, saves and ships.

An edit is exactly low-rank, so that a file of a few kilobytes holds all of it. It knows the
model that it was computed for, and goes onto no other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easyedit_fast import ledger
from easyedit_fast.edit_files import (
    read_edit_file,
    write_edit_file,
    write_peft_adapter,
)
from easyedit_fast.errors import DataFileError, EditStateError, RequestError
from easyedit_fast.models.architectures import Architecture
from easyedit_fast.models.demo import DEMO_MODEL
from easyedit_fast.requests import EditRequest
from easyedit_fast.updates import LowRankUpdate

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Edit:
    """Low-rank updates of some weights of one model, with all that tells where they came from.

    Attributes:
        updates: By parameter name (e.g. ``model.layers.5.mlp.down_proj.weight``).
        requests: The edit requests that these updates carry out.
        method: Name of the editing method, e.g. ``rome``.
        hparams: The hyperparameters used, as plain JSON values.
        settings: What else the updates depend on, e.g. whether statistics were used.
        model_name: Name or path of the model, for people.
        model_fingerprint: Fingerprint of the model (`models.fingerprint`), for the check.
        architecture: Where the parts of such a model are.
        versions: Versions of the packages that computed the edit.
    """

    def __init__(
        self,
        updates: Mapping[str, LowRankUpdate],
        *,
        requests: Sequence[EditRequest],
        method: str,
        model_fingerprint: str,
        architecture: Architecture,
        model_name: str = "",
        hparams: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        versions: Mapping[str, str] | None = None,
    ) -> None:
        self.updates = dict(updates)
        self.requests = list(requests)
        self.method = method
        self.model_name = model_name
        self.model_fingerprint = model_fingerprint
        self.architecture = architecture
        self.hparams = dict(hparams or {})
        self.settings = dict(settings or {})
        self.versions = dict(versions or {})
        self._model: PreTrainedModel | None = None

    def __repr__(self) -> str:
        return (
            f"Edit(method={self.method!r}, requests={len(self.requests)}, "
            f"updates={{{', '.join(f'{n}: rank {u.rank}' for n, u in self.updates.items())}}})"
        )

    @property
    def id(self) -> str:
        """Hexadecimal SHA-256 over parameter names and factors: the same edit, the same id."""
        digest = hashlib.sha256()
        for name, update in sorted(self.updates.items()):
            digest.update(f"{name}\0{update.weight_layout}\0{tuple(update.shape)}\0".encode())
            for factor in (update.output_factor, update.input_factor):
                digest.update(factor.cpu().numpy().tobytes())
        return digest.hexdigest()

    @property
    def is_applied(self) -> bool:
        """Whether this object is applied to a model now; reads the edited weights to tell.

        It is not where its weights were loaded anew, or where it was taken out by way of another
        object.
        """
        return self._model is not None and ledger.edit_state(self._model, self) != "absent"

    def apply(self, model: PreTrainedModel, *, check_model: bool = True) -> None:
        """Adds the updates to the model's weights: all of them, or none.

        The model's config then lists the edit's id under ``easyedit_fast_edits``, and whatever
        saves the model saves that too.

        Args:
            model: The model that the edit was computed for, in any floating-point dtype.
            check_model: Refuse a model with another fingerprint. Turn it off only for a model
                that you know to be the same, e.g. one whose embeddings were resized.

        Raises:
            EditStateError: The edit is in this model already, or belongs to another model; or a
                weight was changed by other means after it was edited.
            ModelError: The model is wrapped (adapters, `torch.compile`), or of a dtype that
                cannot be edited.
            NonFiniteError: A weight would not be finite. The weights are as they were.
        """
        held = self._model
        if held is not None and held is not model and ledger.edit_state(held, self) == "present":
            raise EditStateError("this edit is applied to another model; revert() it there first")
        ledger.add(model, self, check_model=check_model)
        self._model = model

    def revert(self, model: PreTrainedModel | None = None) -> None:
        """Takes the edit out again; later edits of the same weights stay.

        The weights are then, bit for bit, what they would be had this edit never been applied.

        Args:
            model: The model to take it out of; None: the one that this object was applied to.
                Name it where the edit was loaded again from its file.

        Raises:
            EditStateError: The edit is not in the model (any more), or a weight was changed by
                other means.
            ModelError: The model is wrapped.
        """
        edited = model if model is not None else self._model
        if edited is None:
            raise EditStateError(
                "this edit object was not applied to a model, so there is nothing to revert; "
                "if a model holds the edit, name it: revert(model)"
            )
        ledger.remove(edited, [self])
        if edited is self._model:
            self._model = None

    @contextlib.contextmanager
    def applied(self, model: PreTrainedModel, *, check_model: bool = True) -> Iterator[None]:
        """Applies the edit for the time of a ``with`` block; the block may revert it itself."""
        self.apply(model, check_model=check_model)
        try:
            yield
        finally:
            if self.is_applied:
                self.revert()

    def save(self, path: str | Path) -> None:
        """Writes the edit as a safetensors file, whole or not at all."""
        write_edit_file(Path(path), self.updates, self._metadata())

    @classmethod
    def load(cls, path: str | Path) -> Edit:
        """Reads a file that `save` wrote. Nothing in it is run.

        Raises:
            MissingFileError: There is no such file.
            DataFileError: The file is damaged or is no edit.
        """
        path = Path(path)
        updates, metadata = read_edit_file(path)
        try:
            requests = [EditRequest.from_dict(record) for record in metadata["requests"]]
        except RequestError as error:
            raise DataFileError(f"{path}: a request in it is damaged ({error})") from None
        return cls(
            updates,
            requests=requests,
            method=metadata["method"],
            model_name=metadata["model_name"],
            model_fingerprint=metadata["model_fingerprint"],
            architecture=metadata["architecture"],
            hparams=metadata["hparams"],
            settings=metadata["settings"],
            versions=metadata["versions"],
        )

    def to_peft(self, folder: str | Path, *, base_model: str | None = None) -> None:
        """Writes the edit as a LoRA adapter that the PEFT library loads; it is exact.

        Args:
            folder: Where to; made if need be.
            base_model: Name or path of the model, by which PEFT can load it together with the
                adapter; None: the edit's own model, and none for the packaged demo model, which
                only this package knows.

        Raises:
            MissingPackageError: The ``peft`` package is not installed.
        """
        own = None if self.model_name == DEMO_MODEL else self.model_name
        write_peft_adapter(Path(folder), self.updates, base_model or own)

    def describe(self) -> dict[str, Any]:
        """What the edit is, as plain JSON values: requests, weights, ranks, norms, origin."""
        return {
            **self._metadata(),
            "id": self.id,
            "updates": {
                name: {
                    "shape": list(update.shape),
                    "rank": update.rank,
                    "norm": update.norm(),
                    "weight_layout": update.weight_layout,
                }
                for name, update in self.updates.items()
            },
        }

    def _metadata(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "model_name": self.model_name,
            "model_fingerprint": self.model_fingerprint,
            "architecture": dataclasses.asdict(self.architecture),
            "requests": [request.to_dict() for request in self.requests],
            "hparams": self.hparams,
            "settings": self.settings,
            "versions": self.versions,
        }
