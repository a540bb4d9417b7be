"""Edits from files, to be scored."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from easyedit_fast.edits import Edit
from easyedit_fast.errors import DataFileError, RequestError
from easyedit_fast.ledger import remove, require_own_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from easyedit_fast.evaluation.isolation import Updates
    from easyedit_fast.failures import Failures
    from easyedit_fast.requests import EditRequest

_Fact: TypeAlias = tuple[str, tuple[int, int], str]


@dataclasses.dataclass(frozen=True)
class SavedEdits:
    """A saved edit, or the edits of a folder.

    Attributes:
        path: The file or the folder.
        edits: The edits; of a folder in the order of the files' names.
        isolated: Each record has the edit that was made of it, in a model of its own. Otherwise
            all edits are in one model, and every record is scored there.
    """

    path: Path
    edits: list[Edit]
    isolated: bool

    @classmethod
    def load(cls, path: Path, *, isolated: bool | None = None) -> SavedEdits:
        """Reads them.

        Args:
            path: A file that `Edit.save` wrote, or a folder of such files.
            isolated: As the attribute; None: for a folder, not for a file.

        Raises:
            MissingFileError: There is no such file or folder.
            DataFileError: A file is damaged or no edit, or the folder holds none.
        """
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        if not files:
            raise DataFileError(f"{str(path)!r} holds no edit (.safetensors); give another folder")
        edits = [Edit.load(file) for file in files]
        return cls(path, edits, path.is_dir() if isolated is None else isolated)

    def settings(self) -> dict[str, Any]:
        """For people: the path, how many there are, and whether they are isolated."""
        return {"isolated": self.isolated, "edit": str(self.path), "edits": len(self.edits)}

    def digest(self) -> str:
        """What tells them from others, in 64 hexadecimal digits."""
        return hashlib.sha256("".join(edit.id for edit in self.edits).encode()).hexdigest()

    def require_model(self, model: PreTrainedModel) -> None:
        """Refuses a model that they were not computed for.

        Raises:
            EditStateError: One of them is of another model.
        """
        kinds = {(edit.model_fingerprint, repr(edit.architecture)): edit for edit in self.edits}
        for edit in kinds.values():
            require_own_model(model, edit)

    def of_each(
        self, requests: Sequence[EditRequest], failures: Failures
    ) -> dict[int, Updates] | None:
        """The updates of each request's own edit, by place; None where they are not isolated.

        A request fails of which alone no edit, or several, were made.
        """
        if not self.isolated:
            return None
        by_fact: dict[_Fact, dict[str, Updates]] = {}
        for edit in self.edits:
            if len(edit.requests) == 1:
                # A record that is there twice has one edit twice.
                by_fact.setdefault(_fact(edit.requests[0]), {})[edit.id] = edit.updates
        found: dict[int, Updates] = {}
        for place, request in enumerate(requests):
            own = by_fact.get(_fact(request), {})
            if len(own) == 1:
                (found[place],) = own.values()
                continue
            reason = (
                f"{str(self.path)!r} holds {len(own) or 'no'} edits of {request.prompt!r} to "
                f"{request.target_new!r} alone; give the records that were edited, or score all "
                "edits in one model (--together)"
            )
            failures.refuse(place, RequestError(reason))
        return found

    @contextlib.contextmanager
    def applied(self, model: PreTrainedModel) -> Iterator[None]:
        """All of them in the model for the time of a ``with`` block, unless they are isolated."""
        applied: list[Edit] = []
        try:
            for edit in () if self.isolated else self.edits:
                edit.apply(model)
                applied.append(edit)
            yield
        finally:
            if applied:
                remove(model, applied)


def _fact(request: EditRequest) -> _Fact:
    return request.prompt, request.subject_span, request.target_new
