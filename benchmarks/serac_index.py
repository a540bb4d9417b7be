r"""SERAC's approximate index beside the exact search: what it misses, and what it takes.

    python benchmarks/serac_index.py --data counterfact-edit.json --fill counterfact-val.json \
        --fill counterfact-train.json --fill zsre_mend_train.json --out DIR

The memory holds the prompts of all records, then their wordings with the subjects of others,
embedded by the packaged scope of the demo model; ``--out`` keeps the embeddings, and a run goes on
with what is there. It is asked the rephrased prompts of ``--data`` (in scope) and its locality
prompts (out of scope, unless another edit is near). Recall: the edit that is found is as near as
the nearest. Routing: the same edit answers, or none in both. ``--recall-only`` times nothing.
"""

from __future__ import annotations

import argparse
import collections
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import report
import torch
from safetensors.torch import load_file, save_file
from timing import interleaved, median_ratio, spread
from torch import Tensor

from easyedit_fast import EditRequest, read_requests
from easyedit_fast.serac.memory import EditMemory
from easyedit_fast.serac.routing import Router
from easyedit_fast.serac.store import SqliteStore
from easyedit_fast.serac.trained import trained_scope

_BLOCK = 5000
_OFTEN = 5
"""Records that a wording needs before it is used for other subjects."""

_SAME = 1e-4
"""Difference of squared distances that is rounding."""

COMMAND = "python benchmarks/serac_index.py --data counterfact-edit.json --fill … --out DIR"
RECALL_COLUMNS = ["edits", "prompts", "recall@1", "routed to an edit", "routed otherwise"]
TIME_COLUMNS = [
    "edits",
    *("routing, exact", "approximate", "ratio"),
    *("searching, exact", "approximate"),
    *("adding, exact", "approximate"),
    *("start, exact", "approximate, no file", "with its file"),
    "index file, bytes an edit",
]


class Asked(NamedTuple):
    """Prompts, and their embeddings ``[prompts, d]``."""

    prompts: list[str]
    queries: Tensor


def main() -> None:
    """Measures, and writes the tables."""
    options = parsed()
    options.out.mkdir(parents=True, exist_ok=True)
    records = [list(read_requests(file, on_error="skip")) for file in (options.data, *options.fill)]
    sizes = [int(size) for size in options.sizes.split(",")]
    held = edits([one for file in records for one in file], max(sizes))
    scope = trained_scope()
    rows = embedded(scope, [edit.prompt for edit in held], options.out / scope.fingerprint[:16])
    prompts = {
        "rephrase": [text for one in records[0] for text in one.rephrase_prompt],
        "locality": [p.prompt for one in records[0] for ps in one.locality.values() for p in ps],
    }
    asked = {name: Asked(texts, scope.embed(texts)) for name, texts in prompts.items()}
    found, times = [], []
    for size in sizes:
        path = memory_file(options.out, held[:size], rows[:size], scope.fingerprint)
        memories, starts = started(path, scope)
        found += [recall_row(f"{size:,}", *pair, memories) for pair in asked.items()]
        if not options.recall_only:
            times.append(
                time_row(f"{size:,}", prompts["rephrase"], memories, starts, options.rounds)
            )
        for memory in memories.values():
            memory.close()
    notes = [
        "Routed otherwise: to an edit that is not as near, to none, or to one and not to none."
    ]
    title = "SERAC: what the approximate index misses"
    report.write("serac_index", title, COMMAND, RECALL_COLUMNS, found, notes)
    if times:
        notes = [f"Median and range of {options.rounds} rounds, and one start each; seconds."]
        notes += ["", "Searching is routing without the encoder's pass."]
        title = "SERAC: the approximate index's time"
        report.write("serac_index_times", title, COMMAND, TIME_COLUMNS, times, notes)


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--fill", type=Path, action="append", default=[])
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for embeddings and memories"
    )
    parser.add_argument("--sizes", default="10000,20000,50000,100000", help="edits in the memory")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--recall-only", action="store_true")
    return parser.parse_args()


def edits(records: Sequence[EditRequest], size: int) -> list[EditRequest]:
    """So many edits with different prompts: the records, then their wordings of other subjects."""
    made = {" ".join(one.prompt.split()): one for one in records}
    wordings = collections.Counter(one.prompt.replace(one.subject, "{}") for one in records)
    often = sorted(text for text, count in wordings.items() if count >= _OFTEN and "{}" in text)
    subjects = sorted({one.subject for one in records})
    pairs = [(text, subject) for text in often for subject in subjects]
    random.Random(0).shuffle(pairs)
    for text, subject in pairs:
        if len(made) >= size:
            break
        one = EditRequest(text, subject, "another")
        made.setdefault(" ".join(one.prompt.split()), one)
    if len(made) < size:
        raise SystemExit(f"the data makes {len(made):,} edits; ask for fewer with --sizes")
    return list(made.values())[:size]


def embedded(scope: Any, prompts: Sequence[str], folder: Path) -> Tensor:
    """``[prompts, d]``, of which what the folder has is not embedded again."""
    folder.mkdir(exist_ok=True)
    parts = []
    for first in range(0, len(prompts), _BLOCK):
        part = folder / f"{first:08d}.safetensors"
        own = prompts[first : first + _BLOCK]
        rows = load_file(part)["rows"] if part.exists() else torch.empty(0, scope.size)
        if len(rows) < len(own):
            rows = scope.embed(own)
            save_file({"rows": rows}, part)
            print(f"embedded {first + len(own):,} of {len(prompts):,}", flush=True)
        parts.append(rows[: len(own)])
    return torch.cat(parts)


def memory_file(folder: Path, held: Sequence[EditRequest], rows: Tensor, encoder: str) -> Path:
    """A new file with the edits, and no index beside it."""
    path = folder / f"{len(held)}.sqlite"
    for old in folder.glob(f"{path.name}*"):
        old.unlink()
    with SqliteStore(path) as store:
        store.add(held, rows, encoder)
    return path


def started(path: Path, scope: Any) -> tuple[dict[str, EditMemory], dict[str, float]]:
    """Both memories on one file, and the seconds of their starts."""
    seconds: dict[str, float] = {}

    def start(name: str, index: Any) -> EditMemory:
        store = SqliteStore(path)
        began = time.perf_counter()
        made = EditMemory(store, scope, index=index, index_file=store.index_file, graph_from=1)
        seconds[name] = time.perf_counter() - began
        print(f"{path.name}: {name}: started in {seconds[name]:.1f} s", flush=True)
        return made

    exact = start("exact", "exact")
    start("approximate, no file", "approximate").close()
    memories = {"exact": exact, "approximate": start("with its file", "approximate")}
    seconds["bytes"] = Path(f"{path}.index").stat().st_size / len(exact)
    return memories, seconds


def recall_row(size: str, name: str, asked: Asked, memories: Mapping[str, EditMemory]) -> list[str]:
    """What the approximate one finds of what the exact one does."""
    scope: Any = memories["exact"].encoder
    found = [memory.nearest(asked.queries) for memory in memories.values()]
    inside = [[own[0] > 0.5 for own in scope.similarities(asked.prompts, all_)] for all_ in found]
    near = [
        a[0].squared_distance + _SAME >= b[0].squared_distance for a, b in zip(*found, strict=True)
    ]
    apart = [a != b or (a and not as_near) for a, b, as_near in zip(*inside, near, strict=True)]
    recall = sum(near) / len(near)
    return [size, f"{len(near):,} {name}", f"{recall:.4f}", f"{sum(inside[0]):,}", str(sum(apart))]


def time_row(
    size: str,
    prompts: Sequence[str],
    memories: dict[str, EditMemory],
    starts: dict[str, float],
    rounds: int,
) -> list[str]:
    """Routing a prompt, the search alone, adding an edit, starting."""
    cells = [size]
    for what in (routing, searching, adding):
        ways = {name: what(memory, prompts) for name, memory in memories.items()}
        for way in ways.values():
            way()  # once before it counts
        seconds, _ = interleaved(ways, rounds)
        cells += [spread(own, 4) for own in seconds.values()]
        if what is routing:
            cells.append(f"{median_ratio(seconds['exact'], seconds['approximate']):.1f}×")
    cells += [f"{starts[name]:.1f}" for name in ("exact", "approximate, no file", "with its file")]
    return [*cells, f"{starts['bytes']:,.0f}"]


def routing(memory: EditMemory, prompts: Sequence[str]) -> Callable[[], Any]:
    """Routes one prompt after another."""
    scope: Any = memory.encoder
    router = Router(scope, memory)
    asked = in_turn(prompts)
    return lambda: router.routes([next(asked)])


def searching(memory: EditMemory, prompts: Sequence[str]) -> Callable[[], Any]:
    """Finds the nearest to one embedding after another."""
    asked = in_turn(list(memory.encoder.embed(prompts[:200]).split(1)))
    return lambda: memory.nearest(next(asked))


def adding(memory: EditMemory, prompts: Sequence[str]) -> Callable[[], Any]:
    """Adds one edit after another."""
    asked = in_turn([EditRequest(text, text, "another") for text in prompts])
    return lambda: memory.add(next(asked))


def in_turn(values: Sequence[Any]) -> Iterator[Any]:
    """One after the other, then from the first on again."""
    while True:
        yield from values


if __name__ == "__main__":
    main()
