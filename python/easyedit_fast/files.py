"""Files written whole or not at all, and their digests."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from easyedit_fast.errors import MissingFileError

_BLOCK = 1 << 20


def write_whole(path: Path, content: bytes) -> None:
    """Writes `content` beside `path` first and renames it, so that no reader sees half a file.

    Raises:
        MissingFileError: The folder of `path` is not there.
    """
    with replacing(path) as partial:
        partial.write_bytes(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new file beside `path` that takes its place at the end of a ``with`` block.

    Where the block raises, the new file is removed and `path` stays as it was.

    Raises:
        MissingFileError: The folder of `path` is not there.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except FileNotFoundError:
        raise MissingFileError(
            f"there is no folder {str(path.parent)!r}; create it first"
        ) from None
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.chmod(0o666 & ~_umask())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def digest(path: Path) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    return found.hexdigest()


def _umask() -> int:
    """The process's file mode mask; the system can only tell it by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
