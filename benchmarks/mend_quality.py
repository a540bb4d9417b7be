"""What edits by MEND are worth: one a model, and 10 and 100 in one model.

    python benchmarks/mend_quality.py --data counterfact-edit.json --records 500

Each record's prompts are asked of the model that holds its edit, with those of its group. The
editor is the one that comes with the package, unless ``--archive`` names another.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import report

from easyedit_fast import Editor, EditRequest, read_requests
from easyedit_fast.metrics import mean_interval

SIZES = (1, 10, 100)
KINDS = {"teacher-forced": "", "generated": "generated"}


def main() -> None:
    """Parses the options, edits, writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--records", type=int, default=500)
    parser.add_argument("--offset", type=int, default=0)
    parser.add_argument("--archive", type=Path)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--together", choices=["sum", "least_squares"], default="sum")
    parser.add_argument("--ridge", type=float, default=0.01)
    parser.add_argument("--name", default="mend_quality", help="of the table")
    options = parser.parse_args()
    hparams = {"together": options.together, "ridge": options.ridge}
    if options.archive is not None:
        hparams["archive"] = options.archive
    editor = Editor.from_pretrained("demo", method="mend", hparams=hparams)
    requests = read_requests(
        options.data, limit=options.records, offset=options.offset, on_error="skip"
    )
    rows = []
    for size in map(int, options.sizes.split(",")):
        start = time.perf_counter()
        metrics = edited(editor, requests, size)
        print(f"{size}: {time.perf_counter() - start:.0f} s", flush=True)
        rows += [row(metrics, size, kind) for kind in KINDS]
    sections = ["rewrite", "rephrase", "locality", *(["portability"] if portable(requests) else [])]
    report.write(
        options.name,
        f"MEND: quality on {options.data.name}",
        f"python benchmarks/mend_quality.py --data {options.data.name} "
        f"--records {options.records} --offset {options.offset} --sizes {options.sizes} "
        f"--together {options.together} --ridge {options.ridge}"
        + (f" --archive {options.archive.name}" if options.archive else ""),
        ["edits in a model", "scores", *sections],
        [[*own[:2], *own[2 : 2 + len(sections)]] for own in rows],
        [
            (
                f"{len(requests)} records; means over the records with 95 % intervals, and "
                "how many records count."
            )
        ],
    )


def portable(requests: list[EditRequest]) -> bool:
    """Whether any record has a portability prompt."""
    return any(request.portability for request in requests)


def edited(editor: Editor, requests: list[EditRequest], size: int) -> list[dict[str, Any]]:
    """The metrics of all records, edited in groups."""
    if size == 1:
        return editor.edit(requests, isolated=True).metrics
    metrics: list[dict[str, Any]] = []
    for first in range(0, len(requests), size):
        with editor.editing(requests[first : first + size]) as result:
            metrics += result.metrics
    return metrics


def row(metrics: list[dict[str, Any]], size: int, kind: str) -> list[str]:
    """Means over the records, each record's own mean first."""
    cells = [str(size), kind]
    for section in ("rewrite", "rephrase", "locality", "portability"):
        values = []
        for one in metrics:
            post = one["post"] if kind == "teacher-forced" else one["post"]["generated"]
            found = scores(post, section)
            if found:
                values.append(sum(found) / len(found))
        if not values:
            cells.append("")
            continue
        mean = mean_interval(values)
        cells.append(f"{mean.mean:.3f} ({mean.low:.3f} – {mean.high:.3f}), {mean.count}")
    return cells


def scores(post: dict[str, Any], section: str) -> list[float]:
    """A record's scores of one section."""
    if section in ("rewrite", "rephrase"):
        return list(post.get(f"{section}_acc", []))
    return [
        value
        for name, values in post.get(section, {}).items()
        if name.endswith("_acc")
        for value in values
        if value is not None
    ]


if __name__ == "__main__":
    main()
