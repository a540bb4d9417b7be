"""One ROME edit at a time, ours and EasyEdit's, timed in turn on the same model.

    python benchmarks/rome_edit.py --easyedit DIR --data counterfact-edit.json --records 3

DIR is a checkout of zjunlp/EasyEdit; ``pip install "easyedit-fast[bench]"`` brings what its ROME
imports. Ours is the preset ``exact``: the same 21 context templates, hyperparameters and keys,
float32 and C = I, so that the updates can be compared: the error column is
‖ours − theirs‖ / ‖theirs‖.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import report
import torch
from easyedit import EasyEditRome

from easyedit_fast import EditRequest, read_requests
from easyedit_fast.models.loading import load_model
from easyedit_fast.rome import Rome
from easyedit_fast.timings import Timings


def main() -> None:
    """Parses the options, times both, writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--easyedit", type=Path, required=True, metavar="DIR")
    parser.add_argument("--data", type=Path, required=True, help="CounterFact or another data file")
    parser.add_argument("--records", type=int, default=3)
    parser.add_argument("--model", default="demo")
    options = parser.parse_args()
    model, tokenizer = load_model(options.model, device="cpu", dtype="float32")
    tokenizer.padding_side = "right"  # as EasyEdit sets it for ROME
    ours = Rome(model, tokenizer, hparams={"mom2_adjustment": False}, preset="exact")
    templates = ours.context_templates()
    theirs = EasyEditRome(options.easyedit, model, tokenizer, ours.hparams.to_dict(), templates)
    rows, ratios = [], []
    for place, request in enumerate(read_requests(options.data, limit=options.records)):
        update, seconds, steps = _ours(ours, request)
        reference, reference_seconds = _theirs(theirs, request)
        error = ((update - reference).norm() / reference.norm()).item()
        ratios.append(reference_seconds / seconds)
        rows.append(
            [
                str(place),
                str(steps),
                f"{reference_seconds:.1f}",
                f"{seconds:.1f}",
                f"{ratios[-1]:.1f}×",
                f"{error:.1e}",
            ]
        )
    rows.append(["median", "", "", "", f"{statistics.median(ratios):.1f}×", ""])
    report.write(
        "rome_edit",
        "ROME, one edit at a time, against EasyEdit",
        f"python benchmarks/rome_edit.py --easyedit DIR --data counterfact-edit.json "
        f"--records {options.records}",
        ["record", "steps", "EasyEdit, s", "easyedit-fast, s", "ratio", "relative error"],
        rows,
        [
            (
                f"{len(templates)} context templates, float32, layers {ours.hparams.layers}, "
                "C = I, no evaluation in either time; both run in turn in one process."
            )
        ],
    )


def _ours(rome: Rome, request: EditRequest) -> tuple[torch.Tensor, float, int]:
    start = time.perf_counter()
    computed = rome.compute([request], isolated=True, timings=Timings())
    seconds = time.perf_counter() - start
    ((update,), (layer,)) = (computed.updates[0].values(), computed.details[0]["layers"].values())
    return update.dense(), seconds, layer["steps"]


def _theirs(rome: EasyEditRome, request: EditRequest) -> tuple[torch.Tensor, float]:
    start = time.perf_counter()
    update = rome.update(request.prompt, request.subject, request.target_new)
    return update, time.perf_counter() - start


if __name__ == "__main__":
    main()
