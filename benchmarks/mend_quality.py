r"""What edits by MEND are worth, one a model and 10 and 100 in one, beside others.

    python benchmarks/mend_quality.py --data counterfact-edit.json --records 500 --out runs \
        --easyedit theirs.safetensors --second-moment second_moment.npz

Each record's prompts are asked of the model that holds its edit, with those of its group. The
editor is the one that comes with the package, unless ``--archive`` names another; its edits share a
model in each of the ways that it knows. ``--easyedit`` is an editor of EasyEdit's own MEND, as
``mend_same_time.py`` writes it; its edits are made and summed by our code, each with a mean over
its own target's tokens, where EasyEdit takes one over all. ``--second-moment`` adds ROME, preset
``default``. The scores are kept in ``--out`` group by group; ended and started again it goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import kept
import report

from easyedit_fast import Editor, EditRequest, read_requests
from easyedit_fast.metrics import mean_interval
from easyedit_fast.models.loading import load_model

KINDS = ("teacher-forced", "generated")
SECTIONS = ("rewrite", "rephrase", "locality", "portability")
_ISOLATED_AT_ONCE = 50


def main() -> None:
    """Parses the options, edits, writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--records", type=int, default=500)
    parser.add_argument("--offset", type=int, default=0)
    parser.add_argument("--sizes", default="1,10,100", help="edits in a model")
    parser.add_argument("--archive", type=Path, help="an editor of ours")
    parser.add_argument("--easyedit", type=Path, help="an editor of EasyEdit's MEND")
    parser.add_argument("--second-moment", type=Path, help="an .npz; adds ROME")
    parser.add_argument("--only", help="some of the editors, by the table's names, with commas")
    parser.add_argument("--out", type=Path, required=True, help="folder of the scores")
    parser.add_argument("--name", default="mend_quality", help="of the table")
    options = parser.parse_args()
    requests = read_requests(
        options.data, limit=options.records, offset=options.offset, on_error="skip"
    )
    sizes = list(map(int, options.sizes.split(",")))
    found = [
        (name, size, edited(editor, requests, size, options.out / f"{name}, {size}.jsonl"))
        for name, editor in editors(options)
        if options.only is None or name in options.only.split(",")
        for size in sizes
        if size > 1 or "MEND, " not in name  # alone, an edit is its own
    ]
    sections = SECTIONS if any(request.portability for request in requests) else SECTIONS[:3]
    rows = [
        [name, str(size), kind, *(cell(metrics, kind, section) for section in sections)]
        for name, size, metrics in found
        for kind in KINDS
    ]
    given = {
        "archive": options.archive,
        "easyedit": options.easyedit,
        "second-moment": options.second_moment,
    }
    named = "".join(f" --{name} {path.name}" for name, path in given.items() if path is not None)
    report.write(
        options.name,
        f"MEND: quality on {options.data.name}",
        f"python benchmarks/mend_quality.py --data {options.data.name} --records "
        f"{options.records} --offset {options.offset} --sizes {options.sizes}{named} "
        + (f'--only "{options.only}" ' if options.only else "")
        + "--out DIR",
        ["editor", "edits in a model", "scores", *sections],
        rows,
        [
            (
                f"{len(requests)} records; means over the records with 95 % intervals, and "
                "how many records count. Edits by EasyEdit's MEND that share a model are summed "
                "by our code."
            )
        ],
    )


def editors(options: argparse.Namespace) -> Iterator[tuple[str, Editor]]:
    """What is compared, by name."""
    model, tokenizer = load_model("demo", device="cpu")
    ours = {} if options.archive is None else {"archive": str(options.archive)}
    yield "MEND", Editor(model, tokenizer, method="mend", hparams=ours)
    if options.easyedit is not None:
        theirs = {"archive": str(options.easyedit), "together": "sum"}
        yield "EasyEdit's MEND", Editor(model, tokenizer, method="mend", hparams=theirs)
    if options.second_moment is not None:
        moment = {"second_moment": str(options.second_moment)}
        yield "ROME", Editor(model, tokenizer, hparams=moment)
    for way in ("least_squares", "sum"):
        hparams = {**ours, "together": way}
        yield f"MEND, {way}", Editor(model, tokenizer, method="mend", hparams=hparams)


def edited(
    editor: Editor, requests: Sequence[EditRequest], size: int, path: Path
) -> list[dict[str, Any]]:
    """The metrics of all records, edited in groups; those that the file has are taken from it."""
    step = size if size > 1 else _ISOLATED_AT_ONCE
    settings = editor.method.settings() | {"hparams": editor.method.used_hparams()}
    done = len(kept.read(path, requests, step, settings))
    for first in range(done, len(requests), step):
        group = requests[first : first + step]
        if size == 1:
            kept.add(path, first, editor.edit(group, isolated=True).metrics, settings)
        else:
            with editor.editing(group) as result:
                kept.add(path, first, result.metrics, settings)
        print(f"{path.stem}: {first + len(group)} of {len(requests)}", flush=True)
    return kept.read(path, requests, 1, settings)


def cell(metrics: Sequence[dict[str, Any]], kind: str, section: str) -> str:
    """The mean over the records, each record's own mean first; empty where none has a score."""
    values = []
    for one in metrics:
        post = one["post"] if kind == "teacher-forced" else one["post"]["generated"]
        found = scores(post, section)
        if found:
            values.append(sum(found) / len(found))
    if not values:
        return ""
    mean = mean_interval(values)
    return f"{mean.mean:.3f} ({mean.low:.3f} – {mean.high:.3f}), {mean.count}"


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
