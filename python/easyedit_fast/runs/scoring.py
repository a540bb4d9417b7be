"""Scores the records of a data file: apart from each other, or all of them in one model."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from easyedit_fast.errors import NonFiniteError
from easyedit_fast.failures import OnError, numbered
from easyedit_fast.runs.jobs import EditJob, ScoreJob
from easyedit_fast.runs.run import errors_of, run_records
from easyedit_fast.runs.scores import Scores
from easyedit_fast.timings import Timings

if TYPE_CHECKING:
    from easyedit_fast.editor import Editor
    from easyedit_fast.evaluation import Perplexity
    from easyedit_fast.methods import Progress
    from easyedit_fast.models.memory import BatchSize
    from easyedit_fast.runs.perplexity_text import PerplexityText
    from easyedit_fast.runs.records import Records

logger = logging.getLogger(__name__)


def score_apart(
    job: EditJob | ScoreJob,
    records: Records,
    out: str | os.PathLike[str] | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Scores:
    """Scores records that are independent of each other; see `run_records`."""
    run = run_records(job, records, out, overwrite=overwrite, progress=progress)
    timings = Timings(run.timings)
    measured: dict[str, Perplexity] = {}
    if isinstance(job, ScoreJob) and job.text is not None:
        with timings.phase("perplexity"):
            measured = job.perplexity()
    about = {**job.about(), "data": str(records.path)}
    return Scores(
        about,
        run.settings,
        run.metrics,
        timings,
        [*map(str, records.requests.skipped), *errors_of(run.lines)],
        perplexity=measured,
    )


def score_in_one_model(
    editor: Editor,
    records: Records,
    *,
    sequential: int | None = None,
    batch_size: BatchSize = "auto",
    on_error: OnError = "raise",
    fluency: bool = False,
    text: PerplexityText | None = None,
    progress: Progress | None = None,
) -> Scores:
    """Edits all records in one model and scores that; the model is as before afterwards.

    Args:
        editor: The editor.
        records: The records.
        sequential: As for `Editor.edit`.
        batch_size: As for `Editor.edit`.
        on_error: As for `Editor.edit`.
        fluency: As for `Editor.edit`.
        text: Measure the perplexity on this text, before and after.
        progress: As for `Editor.edit`.

    Raises:
        RequestError: A record cannot be used; it is named by its number in the file.
    """
    numbers = records.requests.records
    measured: dict[str, Perplexity] = {}
    timings = Timings()

    def measure(when: str) -> None:
        if text is not None:
            with timings.phase(f"perplexity {when}"):
                measured[when] = text.measure(editor)

    measure("before")
    with (
        numbered(numbers),
        editor.editing(
            records.requests,
            sequential=sequential,
            batch_size=batch_size,
            on_error=on_error,
            fluency=fluency,
            progress=progress,
        ) as result,
    ):
        try:
            measure("after")
        except NonFiniteError as error:
            if on_error == "raise":
                raise
            logger.warning("after the edits: %s", error)
    about = {**EditJob(editor).about(), "data": str(records.path)}
    return Scores(
        about,
        result.settings,
        [result.metrics[place] for place in result.finished],
        {**result.timings, **timings},
        [
            *map(str, records.requests.skipped),
            *(str(error.at(numbers[place])) for place, error in result.failures.items()),
        ],
        perplexity=measured,
    )
