"""Memory of a training step of MEND and of edits together, ours and EasyEdit's, and how it grows.

    python benchmarks/mend_memory.py --easyedit DIR --data counterfact-train.json

DIR is a checkout of zjunlp/EasyEdit; it needs ``pip install higher`` too. Every measurement has a
process of its own: it loads the model and the editor, does the same once with a single record, and
only then the peak of its resident memory begins anew.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import multiprocessing
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import report
import torch
from easyedit_mend import EasyEditMend
from mend import BATCH, their_batches, training_hparams

from easyedit_fast import Editor, EditRequest, read_requests
from easyedit_fast.mend.editor_files import read_editor
from easyedit_fast.mend.training import MendTrainee
from easyedit_fast.models.loading import load_model
from easyedit_fast.profiling.devices import Devices

_MIB = 2**20
_WAYS = {"EasyEdit": "#E69F00", "easyedit-fast": "#0072B2"}
_STEP = "training step"


@dataclasses.dataclass(frozen=True)
class _Case:
    """One measurement.

    Attributes:
        way: Whose code.
        what: A training step, or edits together.
        records: How many records.
        rank: Of the editor.
    """

    way: str
    what: str
    records: int
    rank: int


def main() -> None:
    """Parses the options, measures, writes table and plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--easyedit", type=Path, required=True, metavar="DIR")
    parser.add_argument("--data", type=Path, required=True, help="CounterFact or another data file")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1920, 256])
    parser.add_argument("--edits", type=int, nargs="+", default=[1, 3, 10, 30, 100, 300])
    options = parser.parse_args()
    groups = [(_STEP, BATCH, rank) for rank in options.ranks]
    groups += [("edits together", count, options.ranks[0]) for count in options.edits]
    found: dict[_Case, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        for group in groups:
            for way in _WAYS:
                case = _Case(way, *group)
                found[case] = _in_own_process(case, options.easyedit, options.data, Path(folder))
                print(f"{case}: {found[case] / _MIB:.0f} MiB", flush=True)
    _plot(found, options.edits, report.RESULTS / "mend_memory.png")
    report.write(
        "mend_memory",
        "MEND: memory of training and editing, against EasyEdit",
        f"python benchmarks/mend_memory.py --easyedit DIR --data {options.data.name} "
        f"--ranks {' '.join(map(str, options.ranks))} --edits {' '.join(map(str, options.edits))}",
        ["what", "records", "rank", *(f"{way}, MiB" for way in _WAYS), "ratio"],
        [_row(found, *group) for group in groups],
        [
            (
                "The most resident memory beside model, editor and optimiser, in a process of its "
                "own, float32, after a warm-up. The same nine weights, the MLPs of the last three "
                "layers."
            ),
            "",
            "![memory against the number of edits](mend_memory.png)",
        ],
    )


def _row(found: dict[_Case, int], what: str, records: int, rank: int) -> list[str]:
    theirs, ours = (found[_Case(way, what, records, rank)] for way in _WAYS)
    sizes = [f"{size / _MIB:.0f}" for size in (theirs, ours)]
    return [what, str(records), str(rank), *sizes, f"{theirs / ours:.1f}×"]


def _in_own_process(case: _Case, checkout: Path, data: Path, folder: Path) -> int:
    fresh = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=fresh) as process:
        return process.submit(_measure, case, checkout, data, folder).result()


def _measure(case: _Case, checkout: Path, data: Path, folder: Path) -> int:
    """Bytes beside what was there before."""
    model, tokenizer = load_model("demo", device="cpu", dtype="float32")
    tokenizer.padding_side = "left"  # as EasyEdit sets it for MEND
    requests = read_requests(data, limit=max(case.records, BATCH))
    hparams = training_hparams(model, case.rank)
    learner = MendTrainee(
        model, tokenizer, requests[:BATCH], requests[:1], hparams, cache_folder=folder / "trunks"
    )
    learner.step(learner.prepare(0, list(range(BATCH))))  # a mean and a deviation
    archive = folder / "editor.safetensors"
    learner.write_editor(archive, {})
    run: Callable[[int], Any]
    if case.way == "EasyEdit":
        del learner
        theirs = EasyEditMend(checkout, model, tokenizer, hparams.to_dict())
        theirs.load(read_editor(archive).tensors)
        run = _their_step(theirs, requests) if case.what == _STEP else _their_edit(theirs, requests)
    elif case.what == _STEP:
        run = _our_step(learner)
    else:
        del learner
        keys = {"archive": str(archive)}  # edits that share a model are corrected, the default
        editor = Editor(model, tokenizer, method="mend", hparams=keys)
        run = lambda count: editor.edit(requests[:count], evaluate=False).edit.revert()  # noqa: E731
    run(1)
    devices = Devices.of(model)
    if not devices.reset_peak():
        raise SystemExit("error: the peak of resident memory cannot be measured on this system")
    before = devices.held()
    run(case.records)
    peak = devices.peak()
    assert peak is not None
    assert before is not None
    return peak - before


def _our_step(learner: MendTrainee) -> Callable[[int], Any]:
    optimizer = torch.optim.Adam(learner.parameter_groups(), fused=True)

    def run(records: int) -> None:
        loss, _ = learner.step(learner.prepare(0, list(range(records))))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def _their_step(theirs: EasyEditMend, requests: Sequence[EditRequest]) -> Callable[[int], Any]:
    def run(records: int) -> None:
        theirs.train_step(*their_batches(theirs, requests[:records]))

    return run


def _their_edit(theirs: EasyEditMend, requests: Sequence[EditRequest]) -> Callable[[int], Any]:
    def run(records: int) -> None:
        own = requests[:records]
        theirs.edit([{"prompt": r.prompt, "target_new": r.target_new} for r in own])

    return run


def _plot(found: dict[_Case, int], counts: Sequence[int], path: Path) -> None:
    """Memory over the number of edits."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for way, colour in _WAYS.items():
        own = {
            case.records: size / _MIB
            for case, size in found.items()
            if case.way == way and case.what != _STEP
        }
        axes.plot(counts, [own[count] for count in counts], "o-", color=colour, label=way)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xlabel("edits together")
    axes.set_ylabel("memory, MiB")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
