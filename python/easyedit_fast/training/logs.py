"""What is told of a training run while it goes on: JSON lines, and TensorBoard's files."""

from __future__ import annotations

import contextlib
import importlib.util
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from easyedit_fast.errors import MissingFileError
from easyedit_fast.result_files import ResultsFile, open_results, read_results
from easyedit_fast.training.differences import differences

LOG = "log.jsonl"


class TrainingLog:
    """The log of one run, open for this process alone.

    A line holds ``iteration``, ``epoch``, ``seconds`` (of training so far) and values by name.

    Attributes:
        run: Identifies the run; its checkpoint has it too.
        is_new: Whether the run begins with this process.
    """

    def __init__(self, lines: ResultsFile, folder: Path | None, own_run: str) -> None:
        """Takes the file, the folder for TensorBoard's (None: without), and what a new run gets."""
        self.run: str = lines.settled["run"]
        self.is_new = self.run == own_run
        self._lines = lines
        self._folder = folder
        self._writer: Any = None

    def go_on_after(self, iteration: int) -> None:
        """Drops what was told of later iterations, which are run again."""
        kept = sum(line["iteration"] <= iteration for line in self._lines.lines)
        self._lines.cut(kept)
        if self._folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=iteration + 1)

    def add(self, iteration: int, epoch: int, seconds: float, values: Mapping[str, float]) -> None:
        """Adds a line; it is on the disk when this returns."""
        line = {"iteration": iteration, "epoch": epoch, "seconds": round(seconds, 3), **values}
        self._lines.append([line])
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, iteration)
            self._writer.flush()

    def close(self) -> None:
        """Closes TensorBoard's files."""
        if self._writer is not None:
            self._writer.close()


@contextlib.contextmanager
def open_log(
    folder: Path, description: Mapping[str, Any], about: Mapping[str, Any], *, overwrite: bool
) -> Iterator[TrainingLog]:
    """The log in a run's folder, new or to go on with; see `open_results` for the errors.

    TensorBoard's files are written where it is installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    own = secrets.token_hex(8)
    opened = open_results(
        folder / LOG, description, about=about, settled={"run": own}, overwrite=overwrite,
        differences=differences,
    )  # fmt: skip
    board = importlib.util.find_spec("tensorboard") is not None
    with opened as lines:
        log = TrainingLog(lines, folder / "tensorboard" if board else None, own)
        try:
            yield log
        finally:
            log.close()


def is_empty(folder: Path) -> bool:
    """Whether nothing was told of a run yet."""
    path = folder / LOG
    return not path.exists() or path.stat().st_size == 0


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log.

    Raises:
        MissingFileError: There is none.
        DataFileError: It is damaged.
    """
    if not (folder / LOG).is_file():
        raise MissingFileError(f"there is no {LOG} in {str(folder)!r}; name the folder of a run")
    return read_results(folder / LOG)[1]
