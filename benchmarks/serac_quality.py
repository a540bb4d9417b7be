r"""What edits in SERAC's memory are worth, with more and more of them in it.

    python benchmarks/serac_quality.py --data counterfact-edit.json --sizes 1,10,100,500,2000 \
        --records 500 --out DIR

A memory of n edits holds the first n records; the prompts of the first ``--records`` of these are
asked, of all of them where the option is left out. With n = 1 each record has a memory of its own.
Locality prompts that name the subject of an edit in the memory are counted apart: they may well be
in its scope. The scores are kept in ``--out``; ended and started again it goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kept
import report

from easyedit_fast import Editor, EditRequest, read_requests
from easyedit_fast.evaluation import Evaluator, merge
from easyedit_fast.metrics import mean_interval
from easyedit_fast.plots import require_matplotlib

_AT_ONCE = 100
_COLUMNS = ("rewrite", "rephrase", "locality", "locality, in another's scope", "portability")


def main() -> None:
    """Parses the options, fills memories, asks, writes the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--offset", type=int, default=0)
    parser.add_argument("--sizes", default="1,10,100,500,2000", help="edits in the memory")
    parser.add_argument("--records", type=int, help="records that are asked, of each memory")
    parser.add_argument("--archive", type=Path, help="a scope and adapter of ours")
    parser.add_argument("--out", type=Path, required=True, help="folder of the scores")
    parser.add_argument("--name", default="serac_quality", help="of the table")
    options = parser.parse_args()
    require_matplotlib()
    sizes = list(map(int, options.sizes.split(",")))
    read = read_requests(options.data, limit=max(sizes), offset=options.offset, on_error="skip")
    requests = list({request.prompt: request for request in read}.values())
    hparams = {} if options.archive is None else {"archive": str(options.archive)}
    editor = Editor.from_pretrained("demo", method="serac", hparams=hparams, device="cpu")
    found = {size: asked(editor, requests, size, options) for size in sizes}
    rows = [
        [str(size), str(len(metrics)), kind, *(cell(metrics, kind, name) for name in _COLUMNS)]
        for size, metrics in found.items()
        for kind in ("teacher-forced", "generated")
    ]
    records = "" if options.records is None else f" --records {options.records}"
    report.write(
        options.name,
        f"SERAC: quality on {options.data.name}",
        f"python benchmarks/serac_quality.py --data {options.data.name} --offset "
        f"{options.offset} --sizes {options.sizes}{records} --out DIR",
        ["edits in the memory", "asked", "scores", *_COLUMNS],
        rows,
        [
            (
                f"{len(requests)} records; {len(read) - len(requests)} left out, whose prompt a "
                "later one edits too. Means over the prompts with 95 % intervals, and how many "
                "count."
            )
        ],
    )
    if len(sizes) > 2:
        draw(found, report.RESULTS / f"{options.name}.png")


def asked(
    editor: Editor, requests: Sequence[EditRequest], size: int, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """The metrics of the records that are asked, with a memory of the first so many."""
    memory = editor.method.memory
    evaluator = Evaluator(editor.method.base, editor.tokenizer)
    held = list(requests[:size]) if size > 1 else []
    wanted = held or list(requests)
    wanted = wanted[: options.records]
    settings = editor.method.settings() | {"memory": size}
    base, path = (options.out / f"{options.name}, {name}.jsonl" for name in ("base", size))
    ids = memory.add(held) if held else []
    done = len(kept.read(path, wanted, 1, settings))
    for first in range(done, len(wanted), _AT_ONCE):
        group = wanted[first : first + _AT_ONCE]
        pre = before(evaluator, requests, first + len(group), base)[first : first + len(group)]
        routing = editor.method.routing(None if held else group)
        metrics = merge(group, pre, evaluator.score(group, routing=routing))
        others = held or group
        more = [{"shared": shared(one, [one] if not held else others)} for one in group]
        kept.add(path, first, metrics, settings, more)
        print(f"{path.stem}: {first + len(group)} of {len(wanted)}", flush=True)
    if ids:
        memory.remove(ids)
    return kept.read(path, wanted, 1, settings)


def before(
    evaluator: Evaluator, requests: Sequence[EditRequest], count: int, path: Path
) -> list[dict[str, Any]]:
    """The base model's scores of the first so many records."""
    known = kept.read(path, requests)
    for first in range(len(known), count, _AT_ONCE):
        group = requests[first : min(first + _AT_ONCE, count)]
        scores = evaluator.score(group)
        told = [{"requested_rewrite": one.to_dict()} for one in group]
        kept.add(
            path, first, [{"scores": one, **own} for one, own in zip(scores, told, strict=True)], {}
        )
    return [line["scores"] for line in kept.read(path, requests)]


def shared(request: EditRequest, held: Sequence[EditRequest]) -> list[bool]:
    """Which of a record's locality prompts name the subject of an edit in the memory."""
    subjects = [one.subject for one in held]
    return [
        any(subject in probe.prompt for subject in subjects)
        for probes in request.locality.values()
        for probe in probes
    ]


def cell(metrics: Sequence[dict[str, Any]], kind: str, column: str) -> str:
    """The mean over the prompts; empty where there are none."""
    values = scores(metrics, kind, column)
    if not values:
        return ""
    mean = mean_interval(values)
    return f"{mean.mean:.3f} ({mean.low:.3f} – {mean.high:.3f}), {mean.count}"


def scores(metrics: Sequence[dict[str, Any]], kind: str, column: str) -> list[float]:
    """All scores of one column."""
    found: list[float] = []
    for one in metrics:
        post = one["post"] if kind == "teacher-forced" else one["post"]["generated"]
        section = column.partition(",")[0]
        if section in ("rewrite", "rephrase"):
            found += post.get(f"{section}_acc", [])
            continue
        named = post.get(section, {})
        own = [value for name in named if name.endswith("_acc") for value in named[name]]
        if section == "locality":
            apart = "," in column
            own = [v for v, other in zip(own, one["shared"], strict=True) if other == apart]
        found += [value for value in own if value is not None]
    return found


def draw(found: dict[int, list[dict[str, Any]]], path: Path) -> None:
    """The means over the memory's size."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.0))
    for column in _COLUMNS[:3]:
        for kind, line in (("teacher-forced", "-"), ("generated", "--")):
            values = [scores(metrics, kind, column) for metrics in found.values()]
            means = [sum(own) / len(own) for own in values]
            axes.plot(list(found), means, line, marker="o", label=f"{column}, {kind}")
    axes.set(xscale="log", xlabel="edits in the memory", ylabel="score", ylim=(0.8, 1.01))
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
