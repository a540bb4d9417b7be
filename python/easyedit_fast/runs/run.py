"""A run: a job done with record after record, a batch at a time.

Records are independent of each other, and a batch's results are written before the next batch
begins. So a run that was ended goes on at the first batch that was not written whole. Its batches
are those of the run without the interruption, and so are its results, but for the seconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from easyedit_fast.errors import DataFileError
from easyedit_fast.failures import numbered
from easyedit_fast.metrics import summarise
from easyedit_fast.result_files import ResultsFile, open_results
from easyedit_fast.sequence import Batch, in_batches
from easyedit_fast.timings import Timings

if TYPE_CHECKING:
    from easyedit_fast.methods import Progress
    from easyedit_fast.requests import EditRequest
    from easyedit_fast.runs.records import Records


class Job(Protocol):
    """What is done with the records of a run."""

    def about(self) -> dict[str, Any]:
        """What people want to know of it; nothing depends on it."""
        ...

    def settings(self) -> dict[str, Any]:
        """What its results depend on, for people, as plain JSON values."""
        ...

    def description(self) -> dict[str, Any]:
        """All that its results depend on beside the records, as plain JSON values."""
        ...

    def settled_batch_size(self, requests: Sequence[EditRequest]) -> int:
        """How many of these make a batch."""
        ...

    def work(
        self, batch: Batch, numbers: Sequence[int], progress: Progress
    ) -> tuple[list[dict[str, Any]], Timings]:
        """Does a batch.

        Args:
            batch: The batch.
            numbers: Its records' numbers in the file.
            progress: Called with the number of its records that are done, and of all of them.

        Returns:
            What a line of the results file holds (``metrics`` and others), one a record, and the
            seconds of the batch.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run gave.

    Attributes:
        lines: One dict a record, as in the results file.
        summary: Means over the records, as `EditResult.summary`.
        timings: Seconds by phase over all batches, those of an earlier process among them.
        resumed: How many records an earlier process had finished.
        settings: What the results depend on beside the records.
    """

    lines: list[dict[str, Any]]
    summary: dict[str, Any]
    timings: Timings
    resumed: int
    settings: dict[str, Any]

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The metrics of each record, as `EditResult.metrics`; empty where nothing was scored."""
        return [line["metrics"] for line in self.lines if "metrics" in line]

    def to_dict(self) -> dict[str, Any]:
        """All but the lines, as plain JSON values."""
        return {
            "settings": self.settings,
            "summary": self.summary,
            "timings": dict(self.timings),
            "records": len(self.lines),
            "resumed": self.resumed,
            "failures": {line["case_id"]: line["error"] for line in self.lines if "error" in line},
        }


def run_records(
    job: Job,
    records: Records,
    out: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Does a job with the records of a file.

    Args:
        job: What is done with them.
        records: The records.
        out: File for the results, a JSON line a record; the same call goes on with it after it was
            ended. None: the results are in the returned run alone.
        overwrite: Begin anew where the file belongs to another run.
        progress: Called with the number of records that are done, and of all.

    Returns:
        The results of all records, those of an earlier process among them.

    Raises:
        RequestError: A record cannot be used; it is named by its number in the file. The batches
            before it are written.
        DataFileError: `out` belongs to another run, is being written, or is damaged.
        MissingFileError: The folder of `out` is not there.
    """
    size = job.settled_batch_size(records.requests)
    with _opened(job, records, out, size, overwrite) as results:
        lines = [] if results is None else results.lines
        done = len(lines)
        size = size if results is None else results.settled["batch_size"]
        for batch in in_batches(records.requests, size):
            if batch.first >= done:
                made = _do_batch(job, records, batch, progress)
                if results is None:
                    lines += made
                else:
                    results.append(made)
    metrics = [line["metrics"] for line in lines if "metrics" in line]
    return Run(lines, summarise(metrics), sum_of_seconds(lines), done, job.settings())


@contextlib.contextmanager
def _opened(
    job: Job,
    records: Records,
    out: str | os.PathLike[str] | None,
    size: int,
    overwrite: bool,
) -> Iterator[ResultsFile | None]:
    """The results file, cut to whole batches; None where there is to be none."""
    if out is None:
        yield None
        return
    opened = open_results(
        Path(out),
        {"data": records.identity, **job.description()},
        about={"data": str(records.path), **job.about()},
        settled={"batch_size": size},
        overwrite=overwrite,
    )
    with opened as results:
        _check_records(results, records.requests.records)
        done = len(results.lines)
        if done < len(records.requests):
            results.cut(done - done % results.settled["batch_size"])
        yield results


def _check_records(results: ResultsFile, numbers: Sequence[int]) -> None:
    """Refuses lines that are not those of the run's records, in order."""
    for place, line in enumerate(results.lines):
        wanted = numbers[place] if place < len(numbers) else None
        if line.get("case_id") != wanted:
            raise DataFileError(
                f"{results.path}: line {place + 1} is of record {line.get('case_id')}, not of "
                f"record {wanted}; cut the file before that line to go on from there"
            )


def _do_batch(
    job: Job, records: Records, batch: Batch, progress: Progress | None
) -> list[dict[str, Any]]:
    """The lines of a batch."""
    numbers = records.requests.records[batch.first : batch.first + len(batch.requests)]

    def tell(done: int, of: int) -> None:
        if progress is not None:
            batch.progress(progress)(done, of)

    with numbered(numbers):
        made, timings = job.work(batch, numbers, tell)
    seconds = {phase: value / len(made) for phase, value in timings.items()}
    share = {"batch": batch.number, "divided_by": len(made), "seconds": seconds}
    return [
        {"case_id": number, **line, "timings": share}
        for number, line in zip(numbers, made, strict=True)
    ]


def errors_of(lines: Sequence[dict[str, Any]]) -> list[str]:
    """The errors of the records that failed."""
    return [line["error"] for line in lines if "error" in line]


def sum_of_seconds(lines: Sequence[dict[str, Any]]) -> Timings:
    """The seconds of the lines of a results file, by phase."""
    total = Timings()
    for line in lines:
        for phase, seconds in line["timings"]["seconds"].items():
            total[phase] = total.get(phase, 0.0) + seconds
    return total
