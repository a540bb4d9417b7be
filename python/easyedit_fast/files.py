"""Files written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from easyedit_fast.errors import MissingFileError


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


def _umask() -> int:
    """The process's file mode mask; the system can only tell it by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
