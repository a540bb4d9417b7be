"""Where a command writes: checked before the model is loaded, so that no work is lost."""

from __future__ import annotations

from pathlib import Path

from easyedit_fast.errors import DataFileError, MissingFileError


def require_file_path(path: Path | None, option: str) -> None:
    """Refuses a path that no file can be written to.

    Args:
        path: The path, or None where the option is not given.
        option: Its option, for the message.

    Raises:
        MissingFileError: The folder that it lies in is not there.
        DataFileError: It is a folder.
    """
    if path is None:
        return
    if path.is_dir():
        raise DataFileError(f"{option}: {str(path)!r} is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise MissingFileError(
            f"{option}: there is no folder {str(path.parent)!r}; create it first"
        )


def require_folder_path(path: Path | None, option: str) -> None:
    """Refuses a path that can neither be a folder nor be made one; see `require_file_path`.

    Raises:
        DataFileError: It, or a part of it, is a file.
    """
    if path is None:
        return
    for part in (path, *path.parents):
        if part.exists() and not part.is_dir():
            raise DataFileError(f"{option}: {str(part)!r} is a file; give the name of a folder")
