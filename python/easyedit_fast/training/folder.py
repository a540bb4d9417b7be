"""The folder of a training run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from easyedit_fast.errors import DataFileError
from easyedit_fast.training.checkpoint import CHECKPOINT, EDITOR
from easyedit_fast.training.logs import TrainingLog, is_empty, open_log


@contextlib.contextmanager
def open_run(
    folder: Path, description: Mapping[str, Any], about: Mapping[str, Any], *, overwrite: bool
) -> Iterator[TrainingLog]:
    """The log of the folder's run.

    Raises:
        DataFileError: The folder holds another run, or files of none.
    """
    begun = (folder / CHECKPOINT).exists() or not is_empty(folder)
    with open_log(folder, description, about, overwrite=overwrite or not begun) as log:
        for name in (EDITOR, CHECKPOINT):
            if log.is_new and not overwrite and (folder / name).exists():
                raise DataFileError(
                    f"{folder / name} is there and belongs to no run; give another folder, or "
                    "begin anew over it (--overwrite, overwrite=True)"
                )
        yield log
