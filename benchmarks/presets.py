r"""What the presets cost and give: isolated edits of one data file, scored record by record.

    python benchmarks/presets.py --data counterfact-edit.json --records 500 \
        --second-moment second_moment.npz --out runs --preset exact
    …                                                        --preset default
    …                                                        --preset fast
    python benchmarks/presets.py --data counterfact-edit.json --records 500 --out runs

With ``--preset`` it edits, and adds a line a record to ``runs/<preset>.jsonl``; ended and started
again it goes on after the last whole batch. Without it the table is made from these files. The
differences are paired: the same records under both presets.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kept
import report

from easyedit_fast import Editor, EditRequest, read_requests
from easyedit_fast.metrics import mean_interval, paired_difference, record_scores

_PRESETS = ("exact", "default", "fast")
_SCORES = {
    "rewrite": ("rewrite_acc",),
    "rephrase": ("rephrase_acc",),
    "locality": ("locality", "neighborhood_acc"),
}


def main() -> None:
    """Parses the options; edits, or writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--records", type=int, default=24)
    parser.add_argument("--out", type=Path, required=True, help="folder of the scores")
    parser.add_argument("--preset", choices=_PRESETS, help="edit; without it: write the table")
    parser.add_argument("--second-moment", type=Path, help="an .npz; C = I if left out")
    parser.add_argument("--batch-size", type=int, default=24, help="records between two writes")
    parser.add_argument("--model", default="demo")
    options = parser.parse_args()
    requests = read_requests(options.data, limit=options.records)
    if options.preset is not None:
        _edit(requests, options)
    else:
        _write_table(requests, options)


def _edit(requests: Sequence[EditRequest], options: argparse.Namespace) -> None:
    """Edits the records that the preset's file lacks."""
    moment = options.second_moment
    editor = Editor.from_pretrained(
        options.model,
        preset=options.preset,
        hparams={"mom2_adjustment": False} if moment is None else {"second_moment": str(moment)},
        device="cpu",
    )
    path = _path(options, options.preset)
    settings = {
        "layers": editor.method.settings()["layers"],
        "second_moment": moment is not None,
        "batch_size": options.batch_size,
    }
    done = len(kept.read(path, requests, options.batch_size, settings))
    for first in range(done, len(requests), options.batch_size):
        batch = requests[first : first + options.batch_size]
        result = editor.edit(batch, isolated=True)
        more = [{"steps": _steps(details)} for details in result.details]
        kept.add(path, first, result.metrics, settings, more)
        print(f"{options.preset}: {first + len(batch)} of {len(requests)}", flush=True)


def _steps(details: dict[str, Any]) -> int:
    return sum(layer["steps"] for layer in details["layers"].values())


def _path(options: argparse.Namespace, preset: str) -> Path:
    folder: Path = options.out
    return folder / f"{preset}.jsonl"


def _write_table(requests: Sequence[EditRequest], options: argparse.Namespace) -> None:
    runs = {preset: kept.read(_path(options, preset), requests) for preset in _PRESETS}
    count = min(map(len, runs.values()))
    if count < len(requests):
        raise SystemExit(f"error: only {count} records are there for all presets; edit the rest")
    rows = [
        _row(runs, f"{name}, {kind}", ("post", *inside, *path))
        for name, path in _SCORES.items()
        for kind, inside in (("teacher-forced", ()), ("generated", ("generated",)))
    ]
    steps = [statistics.fmean(record["steps"] for record in run) for run in runs.values()]
    rows.append(["steps", *(f"{mean:.1f}" for mean in steps), "", ""])
    first = runs[_PRESETS[0]][0]["settings"]
    moment = "with the second moment" if first["second_moment"] else "C = I"
    report.write(
        f"presets_{count}",
        f"The presets of ROME on {count} records of {options.data.name}",
        f"python benchmarks/presets.py --data {options.data.name} --records {count} --out DIR",
        ["", *_PRESETS, "default − exact", "fast − exact"],
        rows,
        [
            (
                f"Isolated edits, layers {first['layers']}, {moment}; means with 95 % intervals. "
                "Differences are paired, record by record, with Student's intervals. "
                "Times are in rome_batch.md."
            )
        ],
    )


def _row(runs: dict[str, list[dict[str, Any]]], name: str, path: tuple[str, ...]) -> list[str]:
    scores = {preset: record_scores(run, path) for preset, run in runs.items()}
    cells = []
    for values in scores.values():
        known = mean_interval([score for score in values if score is not None])
        cells.append(f"{known.mean:.3f} ({known.low:.3f} – {known.high:.3f})")
    for preset in _PRESETS[1:]:
        paired = paired_difference(scores[preset], scores[_PRESETS[0]])
        cells.append(f"{paired.mean:+.3f} ({paired.low:+.3f} – {paired.high:+.3f})")
    return [name, *cells]


if __name__ == "__main__":
    main()
