"""Where a command writes: checked before the model is loaded, so that no work is lost."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from easyedit_fast.errors import DataFileError, MissingFileError
from easyedit_fast.result_files import header_path


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


def require_new_file(path: Path, option: str) -> None:
    """Refuses a path where there is something; see `require_file_path`.

    Raises:
        MissingFileError: The folder that it lies in is not there.
        DataFileError: It is there already.
    """
    require_file_path(path, option)
    if path.exists():
        raise DataFileError(
            f"{option}: {str(path)!r} is there already; give a new file, or remove it"
        )


def require_other_files(
    outputs: Mapping[str, Path | None], inputs: Mapping[str, Path | None]
) -> None:
    """Refuses to write over what the same command reads.

    Args:
        outputs: The paths by their options.
        inputs: The same of what is read.

    Raises:
        DataFileError: Two of them are one file.
    """
    read = {path.resolve(): option for option, path in inputs.items() if path is not None}
    for option, path in outputs.items():
        if path is not None and path.resolve() in read:
            raise DataFileError(
                f"{option}: {str(path)!r} is what {read[path.resolve()]} reads; give another path"
            )


def require_folder_path(path: Path | None, option: str) -> None:
    """Refuses a path that can neither be a folder nor be made one; see `require_file_path`.

    Raises:
        DataFileError: It, or a part of it, is a file, or no folder can be made there.
    """
    if path is None:
        return
    for part in (path, *path.parents):
        if part.exists() and not part.is_dir():
            raise DataFileError(f"{option}: {str(part)!r} is a file; give the name of a folder")
    if not path.exists():
        inside = next(part for part in path.parents if part.exists())
        try:
            tempfile.TemporaryDirectory(dir=inside).cleanup()
        except OSError as error:
            raise DataFileError(
                f"{option}: {str(path)!r} cannot be made in {str(inside)!r} ({error.strerror}); "
                "give a folder where you may write"
            ) from None


def require_new_folder(path: Path | None, option: str) -> None:
    """Refuses a folder that holds something; see `require_folder_path`.

    Raises:
        DataFileError: It is a file, or there is something in it that new files would mix with.
    """
    require_folder_path(path, option)
    if path is not None and path.is_dir() and any(path.iterdir()):
        raise DataFileError(f"{option}: {str(path)!r} is not empty; give a new folder, or empty it")


def require_results_path(path: Path, option: str, *, folder: Path | None) -> None:
    """Refuses a results file that cannot be written, and a folder beside it that is not its own.

    Args:
        path: The results file.
        option: Its option, for the message.
        folder: Where a file for each record goes (``--save``), or None. It may hold something
            only where the results file is there already.

    Raises:
        MissingFileError: As `require_file_path`.
        DataFileError: As `require_file_path` and `require_new_folder`.
    """
    require_file_path(path, option)
    goes_on = header_path(path).exists()
    (require_folder_path if goes_on else require_new_folder)(folder, "--save")
