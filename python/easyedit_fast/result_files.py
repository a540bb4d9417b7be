"""Files that results go to as they come, and that a run which was killed goes on with.

A line of the file is the result of one record, as JSON. Lines are written a batch at a time and are
on the disk before the next batch begins. Beside the file lies its header, which describes the run:
another run is refused. A process that ends in the middle of a line leaves a torn one; it is cut off
when the file is opened again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from easyedit_fast.errors import DataFileError, MissingFileError
from easyedit_fast.files import write_whole

_FORMAT = "easyedit-fast.results"
_VERSION = 1
_MISSING = object()

Differences = Callable[[Mapping[str, Any], Mapping[str, Any]], Iterable[str]]


class ResultsFile:
    """The results of one run, open for this process alone; see `open_results`.

    Attributes:
        path: The file.
        lines: What it holds.
        settled: What the run settled when it began, e.g. the batch size that ``auto`` gave.
    """

    def __init__(self, path: Path, file: BinaryIO, settled: dict[str, Any]) -> None:
        self.path = path
        self.settled = settled
        self.lines, self._ends = _read_lines(path, file)
        self._file = file
        self.cut(len(self.lines))

    def cut(self, lines: int) -> None:
        """Keeps that many lines from the beginning."""
        del self.lines[lines:], self._ends[lines:]
        self._file.truncate(self._ends[-1] if self._ends else 0)
        self._file.seek(0, os.SEEK_END)

    def append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Writes lines; they are on the disk when this returns.

        Raises:
            ValueError: A number is NaN or infinite, which JSON has not. Nothing was written.
        """
        texts = [json.dumps(line, ensure_ascii=False, allow_nan=False) for line in lines]
        for line, text in zip(lines, texts, strict=True):
            size = self._file.write(f"{text}\n".encode())
            self._ends.append(size + (self._ends[-1] if self._ends else 0))
            self.lines.append(dict(line))
        self._file.flush()
        os.fsync(self._file.fileno())


def header_path(path: Path) -> Path:
    """Where the header of a results file lies."""
    return path.with_name(f"{path.name}.run.json")


def read_results(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Reads a file of results, finished or not.

    Returns:
        The header (``about``, ``description`` and others), and the whole lines.

    Raises:
        MissingFileError: There is no such file, or it has no header.
        DataFileError: It is damaged, or no file of results.
    """
    beside = header_path(path)
    for needed in (path, beside):
        if not needed.is_file():
            raise MissingFileError(f"there is no file {str(needed)!r}; check the path")
    header = _checked_header(beside, beside.read_bytes(), "give the path of a file of results")
    with path.open("rb") as file:
        return header, _read_lines(path, file)[0]


@contextlib.contextmanager
def open_results(
    path: Path,
    description: Mapping[str, Any],
    *,
    about: Mapping[str, Any],
    settled: Mapping[str, Any],
    overwrite: bool = False,
    differences: Differences | None = None,
) -> Iterator[ResultsFile]:
    """Opens a file of results for writing, new or to go on with, for the time of a ``with`` block.

    Args:
        path: The file.
        description: All that the results depend on, as plain JSON values; compared with the
            header's.
        about: What people want to know of the run beside that; not compared.
        settled: What this run would settle, where it is new.
        overwrite: Begin anew where the file belongs to another run. The same run goes on also then.
        differences: Says what makes the header's description, its first argument, another run's
            than the second; where it says nothing the run goes on under the second. None: all
            that differs.

    Raises:
        MissingFileError: The folder of `path` is not there.
        DataFileError: Another process writes to the file, it belongs to another run, or it is
            damaged.
    """
    header = {
        "format": _FORMAT,
        "version": _VERSION,
        "about": dict(about),
        "settled": dict(settled),
        "description": json.loads(json.dumps(description)),  # keys as JSON has them
    }
    with _open_locked(path) as file:
        try:
            empty = os.fstat(file.fileno()).st_size == 0
            kept = _read_header(path, header, differences or _differences, empty=empty)
        except DataFileError as error:
            if not overwrite or isinstance(error, _NoResultsError):
                raise
            file.truncate(0)
            kept = None
        if kept is not None:
            header["settled"] = kept["settled"]
        if kept is None or kept["description"] != header["description"]:
            text = json.dumps(header, ensure_ascii=False, indent=2)
            write_whole(header_path(path), f"{text}\n".encode())
        yield ResultsFile(path, file, header["settled"])


class _NoResultsError(DataFileError):
    """A file that holds something else, which is not overwritten."""


@contextlib.contextmanager
def _open_locked(path: Path) -> Iterator[BinaryIO]:
    """The file, made where it is not there; the lock ends with the process, however that ends."""
    try:
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except FileNotFoundError:
        raise MissingFileError(
            f"there is no folder {str(path.parent)!r}; create it first"
        ) from None
    with open(number, "r+b") as file:  # noqa: PTH123  a descriptor, no path
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataFileError(
                f"{path} is being written by another process; let it end, or give another path"
            ) from None
        yield file


def _read_header(
    path: Path, wanted: dict[str, Any], compare: Differences, *, empty: bool
) -> dict[str, Any] | None:
    """The header of a file that the wanted run can go on with; None where it is to begin.

    Raises:
        DataFileError: The file belongs to another run, or none at all.
    """
    remedy = "give another path, or overwrite=True (--overwrite) to begin anew"
    beside = header_path(path)
    try:
        text = beside.read_bytes()
    except FileNotFoundError:
        if empty:
            return None
        raise _NoResultsError(
            f"{path} is there and has no header {beside.name}; give another path, or remove it"
        ) from None
    header = _checked_header(beside, text, remedy)
    differences = list(compare(header["description"], wanted["description"]))
    if differences:
        more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
        raise DataFileError(f"{path} belongs to another run: {differences[0]}{more}; {remedy}")
    return header


def _checked_header(path: Path, text: bytes, remedy: str) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except ValueError:
        header = None
    if not isinstance(header, dict) or not isinstance(header.get("description"), dict):
        raise DataFileError(f"{path} is no header of results; {remedy}")
    if (header.get("format"), header.get("version")) != (_FORMAT, _VERSION):
        raise DataFileError(f"{path} is of another version of the format; {remedy}")
    return header


def _differences(there: Any, here: Any, name: str = "") -> Iterator[str]:
    """What differs, by dotted name."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key in dict.fromkeys([*here, *there]):
            inner = f"{name}.{key}" if name else key
            yield from _differences(there.get(key, _MISSING), here.get(key, _MISSING), inner)
    elif there != here:
        yield f"{name} is {_short(there)} there and {_short(here)} here"


def _short(value: Any) -> str:
    return "missing" if value is _MISSING else reprlib.repr(value)


def _read_lines(path: Path, file: BinaryIO) -> tuple[list[dict[str, Any]], list[int]]:
    """The whole lines from the beginning, and where each of them ends.

    Raises:
        DataFileError: A line that is whole is no JSON object.
    """
    file.seek(0)
    lines: list[dict[str, Any]] = []
    ends: list[int] = []
    end = 0
    for number, text in enumerate(file):
        end += len(text)
        if not text.endswith(b"\n"):
            break
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not isinstance(line, dict):
            raise DataFileError(
                f"{path}: line {number + 1} is damaged; cut the file before that line to go on "
                "from there, or give another path"
            )
        lines.append(line)
        ends.append(end)
    return lines, ends
