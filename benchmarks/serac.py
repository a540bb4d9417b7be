r"""SERAC's time: adding an edit, routing a prompt, and generating, beside EasyEdit's.

    python benchmarks/serac.py --easyedit DIR --data counterfact-train.json

The same packaged encoder in both, without its trained change in EasyEdit's. Beyond the records of
``--data`` our memory is filled with random unit vectors. EasyEdit encodes its whole memory for
each prompt, in one batch; it is asked of up to ``--most`` edits. Generation is of 20 tokens a
prompt with 100 edits in the memory, every other prompt in scope; EasyEdit's takes one prompt at a
time, and the base model, not an adapter, answers from its edits.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import report
import torch
from easyedit_serac import EasyEditSerac
from timing import interleaved, median_ratio, spread

from easyedit_fast import Editor, EditRequest, read_requests
from easyedit_fast.models.sentence_encoders import load_sentence_encoder
from easyedit_fast.serac.memory import EditMemory
from easyedit_fast.serac.routing import Router
from easyedit_fast.serac.store import SqliteStore

_BATCHES = (1, 8, 32)
_NEW_TOKENS = 20


def main() -> None:
    """Parses the options, measures, writes the tables and the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--easyedit", type=Path, required=True, metavar="DIR")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--most", type=int, default=10_000, help="edits in EasyEdit's memory")
    parser.add_argument("--sizes", default="1,100,10000,100000", help="edits in the memory")
    options = parser.parse_args()
    requests = list(read_requests(options.data, limit=10_100, on_error="skip"))
    editor = Editor.from_pretrained("demo", method="serac", device="cpu")
    theirs = EasyEditSerac(
        options.easyedit, editor.method.base, editor.tokenizer, *load_sentence_encoder("minilm")
    )
    memories = memory_rows(editor, theirs, requests, options)
    batches = generation_rows(editor, theirs, requests, options.rounds)
    command = "python benchmarks/serac.py --easyedit DIR --data counterfact-train.json"
    notes = [f"Median and range of {options.rounds} rounds; seconds."]
    columns = ["edits", "what", "EasyEdit", "easyedit-fast", "ratio", "int8"]
    report.write(
        "serac", "SERAC: adding an edit and routing a prompt", command, columns, memories, notes
    )
    columns = ["prompts", "EasyEdit, one by one", "easyedit-fast, one batch", "ratio"]
    report.write("serac_generation", "SERAC: 20 tokens a prompt", command, columns, batches, notes)


def filled(
    editor: Editor, requests: Sequence[EditRequest], size: int, precision: Any
) -> EditMemory:
    """A memory of so many edits: the records, then random unit vectors."""
    scope = editor.method.memory.encoder
    store = SqliteStore(None)
    own = min(size, 100)  # real ones
    embeddings = torch.nn.functional.normalize(torch.randn(size, scope.size), dim=1)
    embeddings[:own] = scope.embed([request.prompt for request in requests[:own]])
    held = [requests[place % len(requests)] for place in range(size)]
    store.add(held, embeddings, scope.fingerprint)
    return EditMemory(store, scope, precision=precision)


def memory_rows(
    editor: Editor, theirs: EasyEditSerac, requests: Sequence[EditRequest], options: Any
) -> list[list[str]]:
    """A row a size for adding an edit and one for routing a prompt."""
    rows = []
    times: dict[tuple[str, str], dict[int, float]] = {}
    scope: Any = editor.method.memory.encoder
    prompt, new = requests[0].rephrase_prompt[0], requests[-1]
    for size in map(int, options.sizes.split(",")):
        plain, small = (filled(editor, requests, size, kind) for kind in ("float32", "int8"))
        routers = {"easyedit-fast": Router(scope, plain), "int8": Router(scope, small)}
        ways: dict[str, Callable[[], Any]] = {
            name: lambda router=router: router.routes([prompt]) for name, router in routers.items()
        }
        adding: dict[str, Callable[[], Any]] = {
            "easyedit-fast": lambda plain=plain: plain.add(new),
            "int8": lambda small=small: small.add(new),
        }
        if size <= options.most:
            theirs.fill([f"{r.prompt} {r.target_new}" for r in requests[:size]])
            ways["EasyEdit"] = lambda: theirs.route(prompt)
            adding["EasyEdit"] = lambda: theirs.add(f"{new.prompt} {new.target_new}")
        for what, own in (("routing a prompt", ways), ("adding an edit", adding)):
            for way in own.values():
                way()  # once before it counts
            seconds, _ = interleaved(own, options.rounds)
            rows.append(row(f"{size:,}", what, seconds))
            for name, found in seconds.items():
                times.setdefault((what, name), {})[size] = statistics.median(found)
    draw(times, report.RESULTS / "serac.png")
    return rows


def draw(times: Mapping[tuple[str, str], Mapping[int, float]], path: Path) -> None:
    """Seconds over the memory's size."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.0))
    for (what, name), found in times.items():
        line = "-" if what.startswith("routing") else "--"
        axes.plot(list(found), list(found.values()), line, marker="o", label=f"{what}, {name}")
    axes.set(xscale="log", yscale="log", xlabel="edits in the memory", ylabel="seconds")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def row(size: str, what: str, seconds: dict[str, list[float]]) -> list[str]:
    """A row of the table."""
    fast = seconds["easyedit-fast"]
    slow = seconds.get("EasyEdit")
    return [
        size,
        what,
        "not run" if slow is None else spread(slow, 4),
        spread(fast, 4),
        "" if slow is None else f"{median_ratio(slow, fast):.1f}×",
        spread(seconds["int8"], 4),
    ]


def generation_rows(
    editor: Editor, theirs: EasyEditSerac, requests: Sequence[EditRequest], rounds: int
) -> list[list[str]]:
    """A row a batch."""
    held = requests[:100]
    editor.method.memory.add(held)
    theirs.fill([f"{r.prompt} {r.target_new}" for r in held])
    outside = [request.prompt for request in requests[1000:1100]]
    rows = []
    for size in _BATCHES:
        prompts = [
            held[place].prompt if place % 2 == 0 else outside[place] for place in range(size)
        ]
        ways: dict[str, Callable[[], Any]] = {
            "EasyEdit": functools.partial(one_by_one, theirs, prompts),
            "easyedit-fast": functools.partial(together, editor, prompts),
        }
        for way in ways.values():
            way()
        seconds, _ = interleaved(ways, rounds)
        slow, fast = seconds["EasyEdit"], seconds["easyedit-fast"]
        rows.append([str(size), spread(slow), spread(fast), f"{median_ratio(slow, fast):.1f}×"])
    return rows


def one_by_one(theirs: EasyEditSerac, prompts: Sequence[str]) -> None:
    """Each prompt by itself."""
    for prompt in prompts:
        theirs.generate(prompt, _NEW_TOKENS)


def together(editor: Editor, prompts: Sequence[str]) -> Any:
    """One batch, whose rows go different ways."""
    batch = editor.tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left")
    model: Any = editor.model
    return model.generate(
        batch["input_ids"],
        attention_mask=batch["attention_mask"],
        max_new_tokens=_NEW_TOKENS,
        min_new_tokens=_NEW_TOKENS,
        do_sample=False,
    )


if __name__ == "__main__":
    main()
