"""An edit that lies in a memory: what a user applies, reverts, saves and lists."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from easyedit_fast.edits import Edit
from easyedit_fast.errors import EditStateError
from easyedit_fast.serac.memory import EditMemory
from easyedit_fast.serac.store import write_requests

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class MemoryEdit(Edit):
    """Requests in an edit memory; no weight is changed.

    Attributes:
        ids: Their numbers in the memory; empty while they are not in it.
        superseded: The edits that held for the same prompts until these were added.
    """

    def __init__(self, memory: EditMemory, **about: Any) -> None:
        """Takes the memory that `apply` adds to, and what `Edit` is told."""
        super().__init__({}, **about)
        self._memory = memory
        self.ids: list[int] = []
        self.superseded: list[int] = []

    def __repr__(self) -> str:
        return f"MemoryEdit(method={self.method!r}, requests={len(self.requests)}, ids={self.ids})"

    @property
    def id(self) -> str:
        """Hexadecimal SHA-256 over the requests: the same edit, the same id."""
        told = [request.to_dict() for request in self.requests]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()

    @property
    def is_applied(self) -> bool:
        """Whether any of its requests is in the memory now."""
        return bool(self._held())

    def _held(self) -> list[int]:
        self._memory.refresh()
        return [id_ for id_ in self.ids if id_ in self._memory]

    def apply(self, model: PreTrainedModel | None = None, *, check_model: bool = True) -> None:
        """Adds the requests to the memory: all of them, or none.

        Args:
            model: Without meaning: the memory knows its model.
            check_model: Without meaning.

        Raises:
            EditStateError: They are in it already.
            DataFileError: The memory's file cannot be written.
        """
        if self.is_applied:
            raise EditStateError("this edit is in the memory already; revert() it first")
        self.ids = self._memory.add(self.requests)
        self.superseded = self._memory.superseded(self.ids)

    def revert(self, model: PreTrainedModel | None = None) -> None:
        """Takes out of the memory what is left there of the requests; later edits stay.

        Args:
            model: Without meaning.

        Raises:
            EditStateError: They are not in it (any more).
        """
        held = self._held()
        if not held:
            raise EditStateError("this edit is not in the memory, so there is nothing to revert")
        self._memory.remove(held)
        self.ids, self.superseded = [], []

    def save(self, path: str | Path) -> None:
        """Writes the requests as JSON lines, which `read_requests` reads.

        Raises:
            EditStateError: The name is that of a file of tensors.
            MissingFileError: The folder of `path` is not there.
        """
        if Path(path).suffix == ".safetensors":
            raise EditStateError(
                f"{path}: edits of a memory hold no tensors; they are saved as requests, in JSON "
                "lines: name a .jsonl file"
            )
        write_requests(path, self.requests)

    @classmethod
    def load(cls, path: str | Path) -> NoReturn:
        """Not for edits of a memory.

        Raises:
            EditStateError: Always; the message says what to do.
        """
        raise EditStateError(
            f"{path}: edits of a memory are requests; read_requests() reads them, and "
            "Editor.edit() adds them"
        )

    def to_peft(self, folder: str | Path, *, base_model: str | None = None) -> None:
        """Not for edits of a memory.

        Raises:
            EditStateError: Always; the message says what to do.
        """
        raise EditStateError(
            "SERAC changes no weight, so there is no adapter to export; ship the memory's file, "
            "or edit with ROME or MEND"
        )

    def describe(self) -> dict[str, Any]:
        """What the edit is, as plain JSON values."""
        own = {"id": self.id, "ids": self.ids, "superseded": self.superseded, "updates": {}}
        return {**self._metadata(), **own}
