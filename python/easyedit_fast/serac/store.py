"""The edits of a memory on disk: one SQLite file, a row an edit, never written over."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import json
import os
import reprlib
import sqlite3
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from easyedit_fast.errors import DataFileError, EditStateError, MissingFileError
from easyedit_fast.files import write_whole
from easyedit_fast.requests import EditRequest

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import Self

_APPLICATION_ID = 0x65656631  # "eef1"
_VERSION = 1
_PATIENCE = 30.0
"""Seconds that a writer waits for others."""

ENCODER_REMEDY = (
    "export the requests (easyedit-fast memory export) and import them into a new file, as where "
    "the package brings a new scope, or name the trained editor of that encoder (--archive, in "
    "Python the hyperparameter 'archive')"
)
"""What to do with edits of another encoder."""

_LAST_WAIT = 1.0
"""Seconds that the end of a process waits for a thread that still uses a file."""

_BLOCK = 4096
"""Rows that are read at once."""

_REMEDIES = {
    "locked": "; another process keeps it; try again",
    "malformed": "; the file is damaged; take a copy of it that is whole",
}
"""What to do where SQLite's error has some words."""

_SHORTENED = reprlib.Repr()
_SHORTENED.maxstring = 80

_SCHEMA = (
    """CREATE TABLE edits (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        added TEXT NOT NULL,
        encoder TEXT NOT NULL,
        request TEXT NOT NULL,
        embedding BLOB NOT NULL
    )""",
    """CREATE TABLE removals (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        edit INTEGER NOT NULL UNIQUE REFERENCES edits (id),
        removed TEXT NOT NULL
    )""",
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {_VERSION}",
)


@dataclasses.dataclass(frozen=True, eq=False)
class StoredEdit:
    """An edit as it is kept.

    Attributes:
        id: Its number, which no other edit of its store ever has.
        request: The edit request.
        embedding: ``[d]`` float32, of its prompt; None in a listing, and in what an `EditMemory`
            gives, which keeps it in its matrix alone.
        encoder: Fingerprint of the encoder that made the embedding.
        added: When it was added: UTC, ISO 8601.
    """

    id: int
    request: EditRequest
    embedding: Tensor | None
    encoder: str
    added: str

    def __repr__(self) -> str:
        prompt, target = map(_SHORTENED.repr, (self.request.prompt, self.request.target_new))
        return f"StoredEdit(id={self.id}, prompt={prompt}, target_new={target})"


class EditStore(Protocol):
    """Where edits are kept; what a server's database would have to offer.

    Other processes may write to it: a reader asks for what came after what it knows.
    """

    def add(self, requests: Sequence[EditRequest], embeddings: Tensor, encoder: str) -> list[int]:
        """Keeps edits, all or none; on return they outlive the process. Gives their ids, rising."""
        ...

    def remove(self, ids: Sequence[int]) -> None:
        """Takes edits out, all or none."""
        ...

    def added_after(self, last_id: int) -> Iterator[StoredEdit]:
        """The edits with a higher id that were not removed, by rising ids, with embeddings."""
        ...

    def removed_after(self, last_number: int) -> list[tuple[int, int]]:
        """The removals with a higher number, by rising numbers: number and id of the edit."""
        ...

    def close(self) -> None:
        """Ends the use of it."""
        ...


class SqliteStore:
    """Edits in an SQLite file, in WAL mode: one writer at a time, and readers beside it.

    Rows are only ever added: a removal is a row too. One object serves the threads of a process:
    those that read, one after another, and beside them those that write.
    """

    def __init__(self, path: str | os.PathLike[str] | None, *, read_only: bool = False) -> None:
        """Opens a file, or makes it where there is none.

        Args:
            path: The file; None keeps the edits in memory alone.
            read_only: Refuse to write; the file must be there.

        Raises:
            MissingFileError: There is no such file or folder.
            DataFileError: The file is damaged, of another kind, or of a newer version.
        """
        self._path = "the memory" if path is None else str(path)
        self._file = None if path is None else Path(path).absolute()
        self._index_file = None if path is None or read_only else Path(f"{self._file}.index")
        self._opened: tuple[int, int] | None = None
        if path is not None:
            _require_place(Path(path), must_be_there=read_only)
        mode = "memory" if path is None else "ro" if read_only else "rwc"
        with self._refusing(), contextlib.ExitStack() as failed:
            # Whoever waits for a writer of another process keeps no reader of this one waiting.
            self._writer = self._reader = failed.enter_context(self._connected(mode))
            self._write_lock = self._read_lock = threading.RLock()
            self._prepare(read_only)
            self._opened = _identity(self._file)
            if mode == "rwc":
                self._reader = failed.enter_context(self._connected("ro"))
                self._read_lock = threading.RLock()
                self._require_own_file()
            failed.pop_all()
        locks, connections = (self._write_lock, self._read_lock), (self._reader, self._writer)
        weakref.finalize(self, _close_unless_used, locks, connections)

    def _connected(self, mode: str) -> contextlib.closing[sqlite3.Connection]:
        place = "file:" if self._file is None else self._file.as_uri()
        how: Any = {"isolation_level": None, "check_same_thread": False, "timeout": _PATIENCE}
        return contextlib.closing(sqlite3.connect(f"{place}?mode={mode}", uri=True, **how))

    def _prepare(self, read_only: bool) -> None:
        """Makes the tables where the file is empty, and checks them where it is not."""
        if self._number("PRAGMA schema_version") or read_only:
            self._check()  # before anything of another's file is changed
        if read_only:
            return
        self._writer.execute("PRAGMA journal_mode = WAL")
        self._writer.execute("PRAGMA synchronous = FULL")
        self._writer.execute("PRAGMA foreign_keys = ON")
        with self._writing():
            if self._number("PRAGMA schema_version") == 0:
                for statement in _SCHEMA:
                    self._writer.execute(statement)
        self._check()

    def _check(self) -> None:
        if self._number("PRAGMA application_id") != _APPLICATION_ID:
            raise self._no_memory()
        version = self._number("PRAGMA user_version")
        if version > _VERSION:
            raise DataFileError(
                f"{self._path} is of version {version} and this package knows {_VERSION}; update "
                "easyedit-fast"
            )

    def add(self, requests: Sequence[EditRequest], embeddings: Tensor, encoder: str) -> list[int]:
        """As `EditStore.add`; ``embeddings`` are ``[edits, d]``, kept in float32.

        Raises:
            EditStateError: The edits there were embedded by another encoder.
            DataFileError: The file cannot be written.
        """
        now = _now()
        rows = embeddings.detach().cpu().float().numpy().astype("<f4")
        ids = []
        with self._write_lock, self._refusing(), self._writing():
            self.require_encoder(encoder)
            for request, row in zip(requests, rows, strict=True):
                done = self._writer.execute(
                    "INSERT INTO edits (added, encoder, request, embedding) VALUES (?, ?, ?, ?)",
                    (now, encoder, json_line(request), row.tobytes()),
                )
                ids.append(int(done.lastrowid or 0))
        return ids

    def require_encoder(self, encoder: str) -> None:
        """Refuses to mix encoders; while there are edits, the last row's is that of all.

        Raises:
            EditStateError: The edits there were embedded by another encoder.
        """
        found = self._rows("SELECT encoder FROM edits ORDER BY id DESC LIMIT 1")
        if not found or found[0][0] == encoder:
            return
        left = "SELECT id FROM edits WHERE id NOT IN (SELECT edit FROM removals) LIMIT 1"
        if self._rows(left):
            raise EditStateError(
                f"the edits in {self._path} were embedded by the encoder {found[0][0][:12]}, and "
                f"this one is {encoder[:12]}; nothing was added; {ENCODER_REMEDY}"
            )

    def export(self, path: str | os.PathLike[str]) -> None:
        """Writes the requests as JSON lines, which `read_requests` reads; needs no encoder.

        Raises:
            MissingFileError: The folder of `path` is not there.
            DataFileError: A row is damaged.
        """
        write_requests(path, (edit.request for edit in self.listed()))

    def remove(self, ids: Sequence[int]) -> None:
        """As `EditStore.remove`.

        Raises:
            EditStateError: An edit is not there, or was removed before.
            DataFileError: The file cannot be written.
        """
        now = _now()
        with self._write_lock, self._refusing(), self._writing():
            for edit in ids:
                done = self._writer.execute(
                    "INSERT INTO removals (edit, removed) SELECT id, ? FROM edits "
                    "WHERE id = ? AND id NOT IN (SELECT edit FROM removals)",
                    (now, edit),
                )
                if not done.rowcount:
                    raise EditStateError(
                        f"edit {edit} is not in {self._path}; nothing was removed; list the edits "
                        "to see their numbers"
                    )

    def added_after(self, last_id: int) -> Iterator[StoredEdit]:
        """As `EditStore.added_after`.

        Raises:
            DataFileError: A row is damaged.
        """
        import numpy as np
        import torch

        for edit, blob in self._kept("embedding", last_id):
            try:
                values = np.frombuffer(blob, dtype="<f4").astype(np.float32)
            except ValueError as error:
                raise self._damaged(edit.id, error) from None
            yield dataclasses.replace(edit, embedding=torch.from_numpy(values))

    def listed(self, last_id: int = 0) -> Iterator[StoredEdit]:
        """As `added_after`, without embeddings: quick, and neither torch nor NumPy is imported.

        Raises:
            DataFileError: A row is damaged.
        """
        return (edit for edit, _ in self._kept("NULL", last_id))

    @property
    def index_file(self) -> Path | None:
        """Where an approximate index of the edits is kept; None: nowhere."""
        return self._index_file

    def __len__(self) -> int:
        """How many edits there are."""
        ((count,),) = self._rows(
            "SELECT (SELECT count(*) FROM edits) - (SELECT count(*) FROM removals)"
        )
        return int(count)

    def removed_after(self, last_number: int) -> list[tuple[int, int]]:
        """As `EditStore.removed_after`."""
        return self._rows(
            "SELECT number, edit FROM removals WHERE number > ? ORDER BY number", (last_number,)
        )

    def close(self) -> None:
        """As `EditStore.close`."""
        with self._write_lock, self._read_lock:
            self._reader.close()  # first: who closes last tidies up, which takes a writer
            self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _kept(self, last: str, last_id: int) -> Iterator[tuple[StoredEdit, Any]]:
        """The edits with a higher id, without embeddings, and what the column `last` has."""
        while True:
            rows = self._rows(
                f"SELECT id, request, encoder, added, {last} FROM edits "  # noqa: S608  a constant
                "WHERE id > ? AND id NOT IN (SELECT edit FROM removals) ORDER BY id LIMIT ?",
                (last_id, _BLOCK),
            )
            for id_, request, encoder, added, value in rows:
                try:
                    made = EditRequest.from_dict(json.loads(request))
                except (AttributeError, TypeError, ValueError) as error:
                    raise self._damaged(id_, error) from None
                yield StoredEdit(id_, made, None, encoder, added), value
            if len(rows) < _BLOCK:
                return
            last_id = rows[-1][0]

    def _damaged(self, id_: int, error: Exception) -> DataFileError:
        return DataFileError(f"{self._path}: edit {id_} is damaged: {error}")

    def _rows(self, query: str, values: tuple[int, ...] = ()) -> list[Any]:
        with self._read_lock, self._refusing():
            return self._reader.execute(query, values).fetchall()

    def _number(self, query: str) -> int:
        return int(self._writer.execute(query).fetchone()[0])

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """A transaction, which begins as the only writer and ends whole or not at all."""
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            self._require_own_file()
            yield
            self._writer.execute("COMMIT")
        except BaseException:
            if self._writer.in_transaction:  # not where SQLite has ended it by itself
                self._writer.execute("ROLLBACK")
            raise

    def _require_own_file(self) -> None:
        if self._opened is not None and _identity(self._file) != self._opened:
            raise DataFileError(
                f"{self._path} was removed or replaced while it was open; nothing was written; "
                "open it anew"
            )

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        """One line for whatever SQLite says."""
        try:
            yield
        except sqlite3.Error as error:
            if "not a database" in str(error):
                raise self._no_memory() from error
            if "closed database" in str(error):
                raise DataFileError(
                    f"{self._path} was closed with its editor; make a new one"
                ) from error
            remedy = next((told for what, told in _REMEDIES.items() if what in str(error)), "")
            raise DataFileError(f"{self._path}: {error}{remedy}") from error

    def _no_memory(self) -> DataFileError:
        return DataFileError(
            f"{self._path} is no edit memory; give the file that edits were added to (edit "
            "--memory, memory import), or a new one to add them to"
        )


def write_requests(path: str | os.PathLike[str], requests: Iterable[EditRequest]) -> None:
    """Writes requests as JSON lines, which `read_requests` reads; whole or not at all.

    Raises:
        MissingFileError: The folder of `path` is not there.
    """
    write_whole(Path(path), "".join(f"{json_line(request)}\n" for request in requests).encode())


def json_line(request: EditRequest) -> str:
    """A request as a line of JSON, without its end, as `read_requests` reads it."""
    return json.dumps(request.to_dict(), ensure_ascii=False)


def _close_unless_used(
    locks: Sequence[threading.RLock], connections: Sequence[sqlite3.Connection]
) -> None:
    """Leaves one whole file where nobody has called `close`; whoever writes is not waited for."""
    if all(lock.acquire(timeout=_LAST_WAIT) for lock in locks):
        for connection in connections:
            connection.close()


def _identity(file: Path | None) -> tuple[int, int] | None:
    """What a file is told from another one of its name by; None where there is none."""
    if file is None or not file.exists():
        return None
    found = file.stat()
    return found.st_dev, found.st_ino


def _require_place(path: Path, *, must_be_there: bool) -> None:
    if not path.parent.is_dir():
        raise MissingFileError(f"there is no folder {str(path.parent)!r}; create it first")
    if path.is_dir():
        raise DataFileError(f"{path} is a folder; give a file")
    if must_be_there and not path.exists():
        raise MissingFileError(f"there is no file {str(path)!r}; give an edit memory")


def _now() -> str:
    return dt.datetime.now(dt.timezone.utc).isoformat(timespec="milliseconds")
