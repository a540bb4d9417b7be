"""What people see (rich, on stdout), and what machines read (JSON, on stdout alone)."""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import json
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

console = Console()
_SECONDS_BETWEEN_LINES = 30.0


def show_warnings_as_lines() -> None:
    """Warnings and log messages of the package go to stderr, one line each."""
    warnings.showwarning = _show_warning
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    logger = logging.getLogger("easyedit_fast")
    if not logger.handlers:
        logger.addHandler(handler)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    print_warning(str(message))


def print_warning(text: str) -> None:
    """Prints a warning to stderr."""
    print(f"warning: {text}", file=sys.stderr)


def print_json(value: Any) -> None:
    """Prints one JSON object to stdout; see `json_text`."""
    sys.stdout.write(json_text(value))


def json_text(value: Any) -> str:
    """One JSON object as lines of text; NaN and infinity, which JSON has not, are refused."""
    return f"{json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False)}\n"


def print_line(text: str) -> None:
    """Prints a line as it stands: brackets in it are text, no markup."""
    console.print(Text(text))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints a table; numbers are aligned on the right, runs of white space are one space.

    A blank among numbers is the empty text.
    """
    table = Table(title=Text(title), title_justify="left", title_style="bold")
    for place, column in enumerate(columns):
        cells = [row[place] for row in rows if row[place] != ""]
        numeric = cells and all(isinstance(cell, int | float) for cell in cells)
        table.add_column(Text(column), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_text(cell) for cell in row))
    console.print(table)


def print_summary(summary: Mapping[str, Any]) -> None:
    """Prints the summary of an edit: a row a score, before and after."""
    before, after = (_leaves(summary.get(when, {})) for when in ("pre", "post"))
    rows = [
        [name, _score(before.get(name)), _score(leaf), leaf["count"]]
        for name, leaf in after.items()
    ]
    if rows:
        print_table("Scores", ["score", "before", "after", "count"], rows)


def print_scores(scores: Mapping[str, Mapping[str, Any]]) -> None:
    """Prints a row a score, teacher-forced and generated side by side; see `Scores.scores`."""
    rows = []
    parts = [
        part for score in scores.values() for part in score.values() if part != score["counted"]
    ]
    whens = [when for when in ("before", "after") if any(when in part for part in parts)]
    for name, score in scores.items():
        sides = [score.get(side, {}) for side in ("teacher_forced", "generated")]
        cells = [_with_interval(side.get(when)) for side in sides for when in whens]
        count = max(leaf["count"] for side in sides for leaf in side.values())
        section, _, key = name.partition(".")
        rows.append([_lines(section, key), *cells, _lines(f"{count:,}", score["counted"])])
    forced, generated = "teacher-\nforced", "\ngenerated"
    columns = [f"{side}\n{when}" for side in (forced, generated) for when in whens]
    print_table("Scores, with their 95 % intervals", ["\n\nscore", *columns, "\n\ncount"], rows)


def print_timings(timings: Mapping[str, float]) -> None:
    """Prints the seconds of each phase and their sum."""
    rows = [[name, f"{seconds:.2f}"] for name, seconds in timings.items()]
    rows.append(["total", f"{sum(timings.values()):.2f}"])
    print_table("Time", ["phase", "seconds"], rows)


@contextlib.contextmanager
def edit_progress(*, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, where that is a terminal: requests done, time gone and left."""
    with phase_progress(quiet=quiet, unit=" requests") as update:
        yield functools.partial(update, "editing")


@contextlib.contextmanager
def phase_progress(*, quiet: bool, unit: str = "") -> Iterator[Callable[[str, int, int], None]]:
    """A bar a phase on stderr, where that is a terminal: part done, time gone and left."""
    with _bar(unit, TimeElapsedColumn(), quiet=quiet) as bar:
        tasks: dict[str, TaskID] = {}

        def update(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(phase, total=total)
            bar.update(tasks[phase], completed=done, total=total)

        yield update


@contextlib.contextmanager
def training_bar(
    *, quiet: bool
) -> Iterator[
    tuple[Callable[[int, int, Mapping[str, float]], None], Callable[[str, int, int], None]]
]:
    """A bar on stderr: iterations, the loss, time left; a line now and then where no terminal is.

    Yields:
        What is told after each iteration, and what is told while the trunk is made.
    """
    if not quiet and not sys.stderr.isatty():
        yield _training_lines()
        return
    with _bar("", TextColumn("{task.fields[loss]}"), quiet=quiet) as bar:
        tasks: dict[str, TaskID] = {}

        def show(name: str, done: int, total: int, loss: str = "") -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, total=total, loss="")
            bar.update(tasks[name], completed=done, total=total, loss=loss)

        def iterated(done: int, total: int, values: Mapping[str, float]) -> None:
            show("training", done, total, f"loss {values['loss/total_train']:.3f}")

        yield iterated, show


def _training_lines() -> tuple[
    Callable[[int, int, Mapping[str, float]], None], Callable[[str, int, int], None]
]:
    """What `training_bar` yields, as lines that are `_SECONDS_BETWEEN_LINES` apart.

    The first iteration has one at once: it tells that the run goes on, and how long.
    """
    last = time.monotonic()
    start: tuple[int, float] | None = None

    def show(text: str, *, at_once: bool = False) -> None:
        nonlocal last
        if at_once or time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    def iterated(done: int, total: int, values: Mapping[str, float]) -> None:
        nonlocal start
        is_first = start is None
        # A resumed run begins somewhere; only what it does itself counts as speed.
        start = start or (done - 1, time.monotonic() - values["time/step_train"])
        each = (time.monotonic() - start[1]) / (done - start[0])
        left = dt.timedelta(seconds=round(each * (total - done)))
        loss = values["loss/total_train"]
        show(f"iteration {done:,} of {total:,}, loss {loss:.3f}, {left} left", at_once=is_first)

    def making(name: str, done: int, total: int) -> None:
        show(f"{name}: {done:,} of {total:,}")

    return iterated, making


@contextlib.contextmanager
def token_progress(description: str, *, quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, where that is a terminal: tokens, tokens a second, the time left."""
    with _bar(" tokens", TextColumn("{task.fields[rate]}"), quiet=quiet) as bar:
        task = bar.add_task(description, total=None, rate="", visible=False)
        start: tuple[int, float] | None = None

        def update(done: int, total: int) -> None:
            nonlocal start
            # A resumed run begins somewhere; only what it does itself counts as speed.
            start = start or (done, time.perf_counter())
            tokens, seconds = done - start[0], time.perf_counter() - start[1]
            rate = f"{tokens / seconds:,.0f} tokens/s" if tokens else ""
            bar.update(task, completed=done, total=total, rate=rate, visible=True)

        yield update


def _bar(unit: str, column: ProgressColumn, *, quiet: bool) -> Progress:
    """A bar with the part done, a further column, and the time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} / {task.total:,.0f}" + unit),
        column,
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=quiet or not sys.stderr.isatty(),
    )


def _leaves(section: Mapping[str, Any], prefix: str = "") -> dict[str, dict[str, Any]]:
    """The ``{"mean", "count"}`` leaves of a summary, by dotted name."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in section.items():
        if not isinstance(value, Mapping):
            continue
        name = f"{prefix}{key}"
        found.update({name: dict(value)} if "mean" in value else _leaves(value, f"{name}."))
    return found


def _score(leaf: Mapping[str, Any] | None) -> str:
    return "" if leaf is None or leaf["mean"] is None else f"{leaf['mean']:.3f}"


def _with_interval(leaf: Mapping[str, Any] | None) -> Text:
    """A mean and its interval below it."""
    interval = ""
    if leaf is not None and leaf["low"] is not None:
        interval = f"{leaf['low']:.2f}–{leaf['high']:.2f}"
    return _lines(_score(leaf), interval)


def _lines(*lines: str) -> Text:
    """A cell of several lines, but for those that are empty."""
    return Text("\n".join(" ".join(line.split()) for line in lines if line))


def _text(cell: object) -> Text:
    """A cell as it stands, whatever brackets are in it."""
    if isinstance(cell, Text):
        return cell
    return Text(f"{cell:.3f}" if isinstance(cell, float) else " ".join(str(cell).split()))
