r"""How time and memory of isolated edits grow: with the batch size, and with the number of records.

    python benchmarks/growth.py --data counterfact-edit.json \
        --second-moment second_moment.npz --out growth.jsonl

Every measurement has a process of its own, so that its peak of resident memory is its own too. It
loads the model, edits one record as a warm-up, and only then the peak begins anew and the clock
starts; evaluation is in no time. All batch sizes edit the same records, as many as the largest of
them; the numbers of records are edited with the batch size that ``auto`` gives.

Rows are printed and kept in ``--out`` as they come: a run that was ended goes on from there.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import csv
import dataclasses
import hashlib
import itertools
import multiprocessing
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import report

from easyedit_fast import Editor, read_requests
from easyedit_fast.models.memory import BatchSize
from easyedit_fast.profiling.devices import Devices
from easyedit_fast.result_files import open_results

_PRESET = "default"
_LEAST_EDITS = 16  # few records are edited again and again until there were so many
_MIB = 2**20
_BLUE, _ORANGE = "#0072B2", "#E69F00"


@dataclasses.dataclass(frozen=True)
class _Case:
    """One measurement.

    Attributes:
        varied: ``batch size`` or ``records``.
        batch_size: Records that are optimised at once.
        records: Records that are edited.
    """

    varied: str
    batch_size: BatchSize
    records: int


@dataclasses.dataclass(frozen=True)
class _Row:
    """What a measurement found.

    Attributes:
        varied: As in `_Case`.
        batch_size: As in `_Case`.
        largest_batch: Records of the largest batch that was run; fewer than `batch_size` where
            memory ran out.
        records: As in `_Case`.
        runs: How often they were edited.
        seconds: Of one run; the median.
        steps: Optimisation steps of a record, in the mean.
        peak_bytes: The most resident memory of the process while it edited; None where unknown.
        beside_bytes: The same above what was resident before; None where the system does not let
            the peak begin anew.
    """

    varied: str
    batch_size: BatchSize
    largest_batch: int
    records: int
    runs: int
    seconds: float
    steps: float
    peak_bytes: int | None
    beside_bytes: int | None


def main() -> None:
    """Parses the options, measures what is not there yet, writes CSV, table and plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--second-moment", type=Path, required=True, help="of the edited layer")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[2**n for n in range(9)])
    parser.add_argument("--records", type=int, nargs="+", default=[4**n for n in range(6)])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--out", type=Path, required=True, help="file that the run goes on from")
    options = parser.parse_args()
    most = max(*options.batch_sizes, *options.records)
    if len(read_requests(options.data, limit=most)) < most:
        raise SystemExit(f"error: {options.data} has fewer than {most} records; ask for fewer")
    cases = [_Case("batch size", size, max(options.batch_sizes)) for size in options.batch_sizes]
    cases += [_Case("records", "auto", count) for count in options.records]
    rows = []
    for row in _measured(cases, options):
        rows.append(row)
        print(", ".join(f"{name} {value}" for name, value in _columns(row).items()), flush=True)
    report.RESULTS.mkdir(exist_ok=True)
    _write_csv(rows, report.RESULTS / "growth.csv")
    _plot(rows, report.RESULTS / "growth.png")
    _write_table(rows, options)


def _measured(cases: Sequence[_Case], options: argparse.Namespace) -> Iterator[_Row]:
    """The rows of all cases; those that the file has are not measured anew."""
    description = {
        "data": hashlib.sha256(options.data.read_bytes()).hexdigest(),
        "second_moment": hashlib.sha256(options.second_moment.read_bytes()).hexdigest(),
        "model": options.model,
        "preset": _PRESET,
        "machine": report.machine(),
    }
    with open_results(options.out, description, about={}, settled={}) as file:
        known = {_case(row): row for row in (_Row(**line) for line in file.lines)}
        for case in cases:
            if case not in known:
                known[case] = _in_own_process(case, options)
                file.append([dataclasses.asdict(known[case])])
            yield known[case]


def _case(row: _Row) -> _Case:
    return _Case(row.varied, row.batch_size, row.records)


def _in_own_process(case: _Case, options: argparse.Namespace) -> _Row:
    fresh = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=fresh) as process:
        return process.submit(_measure, case, options).result()


def _measure(case: _Case, options: argparse.Namespace) -> _Row:
    """Edits the case's records in this process, which has edited nothing before."""
    editor = Editor.from_pretrained(
        options.model,
        preset=_PRESET,
        hparams={"second_moment": str(options.second_moment)},
        device="cpu",
        dtype="float32",
    )
    requests = read_requests(options.data, limit=case.records)
    # Templates are made, the second moment is factorised.
    editor.edit(requests[:1], isolated=True, evaluate=False)
    devices = Devices.of(editor.model)
    held, anew = devices.held(), devices.reset_peak()
    seconds, steps, done = [], [], [0]
    for _ in range(-(-_LEAST_EDITS // case.records)):
        start = time.perf_counter()
        result = editor.edit(
            requests,
            isolated=True,
            batch_size=case.batch_size,
            evaluate=False,
            progress=lambda count, _: done.append(count),
        )
        seconds.append(time.perf_counter() - start)
        steps = [
            layer["steps"] for details in result.details for layer in details["layers"].values()
        ]
    peak = devices.peak()
    return _Row(
        **dataclasses.asdict(case),
        largest_batch=max(after - before for before, after in itertools.pairwise(done)),
        runs=len(seconds),
        seconds=statistics.median(seconds),
        steps=statistics.fmean(steps),
        peak_bytes=peak,
        beside_bytes=peak - held if anew and peak is not None and held is not None else None,
    )


def _columns(row: _Row) -> dict[str, str]:
    """A row as people read it."""
    asked, ran = row.batch_size, row.largest_batch
    halved = isinstance(asked, int) and ran < min(asked, row.records)
    return {
        "varied": row.varied,
        "batch size": f"{asked} ({ran})" if asked == "auto" or halved else str(asked),
        "records": str(row.records),
        "seconds": f"{row.seconds:.2f}",
        "seconds an edit": f"{row.seconds / row.records:.3f}",
        "edits a second": f"{row.records / row.seconds:.2f}",
        "steps": f"{row.steps:.1f}",
        "peak, MiB": _mib(row.peak_bytes),
        "beside the model, MiB": _mib(row.beside_bytes),
    }


def _mib(size: int | None) -> str:
    return "" if size is None else f"{size / _MIB:.0f}"


def _write_csv(rows: Sequence[_Row], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(_Row)])
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in rows)


def _write_table(rows: Sequence[_Row], options: argparse.Namespace) -> None:
    sizes, counts = (" ".join(map(str, part)) for part in (options.batch_sizes, options.records))
    report.write(
        "growth",
        "Time and memory of isolated edits, against batch size and record count",
        f"python benchmarks/growth.py --data {options.data.name} --second-moment … "
        f"--batch-sizes {sizes} --records {counts} --out …",
        list(_columns(rows[0])),
        [list(_columns(row).values()) for row in rows],
        [
            (
                f"Preset {_PRESET}, float32, with the second moment, no evaluation; every row in a "
                "process of its own, after a warm-up. In brackets: records of the largest batch "
                f"that was run. Fewer than {_LEAST_EDITS} records are edited several times; their "
                "seconds are the median of the runs. Peak: the most resident memory of the process "
                "while it edits; beside the model: above what was resident before."
            ),
            "",
            "![time and memory against batch size and record count](growth.png)",
        ],
    )


def _plot(rows: Sequence[_Row], path: Path) -> None:
    """Seconds above, memory below; batch sizes on the left, numbers of records on the right."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(8, 5.6), layout="constrained")
    grid = figure.subplots(2, 2, sharex="col")
    for column, (varied, label) in enumerate(
        {"batch size": "records a batch", "records": "records, batch size auto"}.items()
    ):
        own = [row for row in rows if row.varied == varied]
        by_size = varied == "batch size"
        at = [row.batch_size if by_size else row.records for row in own]
        seconds = [row.seconds / row.records if by_size else row.seconds for row in own]
        above, below = grid[0][column], grid[1][column]
        above.plot(at, seconds, "o-", color=_BLUE)
        above.set_ylabel("seconds an edit" if by_size else "seconds of all edits")
        known = [(place, row.beside_bytes) for place, row in zip(at, own, strict=True)]
        below.plot(*_known_points(known), "s-", color=_ORANGE)
        below.set_ylabel("peak memory beside\nthe model, MiB")
        _logarithmic(below)
        if by_size:
            above.set_ylim(bottom=0)
        else:
            _logarithmic(above)
        below.set_xscale("log", base=2)
        below.set_xlabel(label)
        below.set_xticks(at, [str(place) for place in at])
        below.xaxis.set_minor_locator(NullLocator())
        for axes in (above, below):
            axes.grid(alpha=0.25, linewidth=0.6)
    figure.savefig(path, dpi=200)


def _known_points(points: Sequence[tuple[Any, int | None]]) -> tuple[list[Any], list[float]]:
    """Where the points lie that are known."""
    known = [(place, size / _MIB) for place, size in points if size is not None]
    return [place for place, _ in known], [size for _, size in known]


def _logarithmic(axes: Any) -> None:
    """The y axis, with numbers written out, of which a short range has some too."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.yaxis.set_minor_locator(NullLocator())


if __name__ == "__main__":
    main()
