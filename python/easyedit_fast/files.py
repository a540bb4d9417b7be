"""Files written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from easyedit_fast.errors import MissingFileError


def write_whole(path: Path, content: bytes) -> None:
    """Writes `content` beside `path` first and renames it, so that no reader sees half a file.

    Raises:
        MissingFileError: The folder of `path` is not there.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except FileNotFoundError:
        raise MissingFileError(
            f"there is no folder {str(path.parent)!r}; create it first"
        ) from None
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.chmod(0o666 & ~_umask())
        partial.replace(path)
    except BaseException:
        partial.unlink()
        raise


def _umask() -> int:
    """The process's file mode mask; the system can only tell it by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
