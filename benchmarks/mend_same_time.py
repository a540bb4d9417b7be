"""Trains EasyEdit's own MEND on the demo model for a given time, and writes the editor.

    python benchmarks/mend_same_time.py --easyedit DIR --data counterfact-train.json
        --seconds 1500 --out theirs.safetensors
    python benchmarks/mend_quality.py --data counterfact-edit.json --out runs
        --easyedit theirs.safetensors

DIR is a checkout of zjunlp/EasyEdit; it needs ``pip install higher`` too. Its networks and its
training step are its own, but for one thing: ``clamp(min=0)`` gets the gradient at 0 that it had
before torch 2.15, without which they never learn. The time is that of its steps alone.
``--hparams`` takes the file of our training by default, with EasyEdit's one edit a model and an
optimiser step every ten of them. Edits by the editor are computed by our code, which gives the
updates that theirs does (tests/parity).

Its training differs from ours in what it knows to do: it asks the rewrite prompts alone, keeps the
predictions of all tokens of the locality prompts, has no decay of the learning rate, runs in
float32 and keeps its last editor.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from easyedit_mend import EasyEditMend

from easyedit_fast import EditRequest, read_requests
from easyedit_fast.hparams import find_hparams_file, read_yaml
from easyedit_fast.mend.editor_files import write_editor
from easyedit_fast.mend.hparams import MENDTrainingHparams
from easyedit_fast.models.loading import load_model
from easyedit_fast.training.batches import BatchOrder, draws
from easyedit_fast.training.editors import EditorFile

_ACCUMULATE = 10
_TOLD_EVERY = 50


def main() -> None:
    """Parses the options, trains, writes the editor."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--easyedit", type=Path, required=True, metavar="DIR")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--records", type=int, help="the first of the file; all by default")
    parser.add_argument("--hparams", default="TRAINING/MEND/smollm2-135m")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    model, tokenizer = load_model("demo", device="cpu", dtype="float32")
    tokenizer.padding_side = "left"  # as EasyEdit sets it for MEND
    keys = read_yaml(find_hparams_file(options.hparams))
    hparams = MENDTrainingHparams(**{**keys, "accumulate_bs": _ACCUMULATE, "half": False})
    theirs = EasyEditMend(options.easyedit, model, tokenizer, hparams.to_dict(), learning=True)
    requests = read_requests(options.data, limit=options.records, on_error="skip")
    steps = train(theirs, requests, options.seconds)
    tensors = {
        name: tensor.detach().clone()
        for name, tensor in theirs.algorithm.state_dict().items()
        if isinstance(tensor, torch.Tensor)
    }
    card = {"trained by": "EasyEdit", "seconds": options.seconds, "steps": steps}
    write_editor(options.out, EditorFile(tensors, hparams.for_edits(), card))
    print(f"{steps} steps of one record in {options.seconds:.0f} s; {options.out}")


def train(theirs: EasyEditMend, requests: list[EditRequest], seconds: float) -> int:
    """Trains for so many seconds of steps; returns how many those were."""
    order = BatchOrder(len(requests), 1, theirs.config.seed)
    taken, step, losses = 0.0, 0, []
    while taken < seconds:
        request = requests[order.places(step)[0]]
        draw = draws(theirs.config.seed, "probe", step)
        probes = [probe for probes in request.locality.values() for probe in probes]
        probe = probes[int(draw.integers(len(probes)))]
        edits = theirs.batch([(request.prompt, request.target_new)])
        locality = theirs.batch([(probe.prompt, str(probe.ground_truth))])
        start = time.perf_counter()
        step += 1
        losses.append(theirs.train_step(edits, locality, descend=step % _ACCUMULATE == 0))
        taken += time.perf_counter() - start
        if step % _TOLD_EVERY == 0:
            mean = sum(losses) / len(losses)
            print(f"{step}: {taken:.0f} s, loss {mean:.3f}", flush=True)
            losses = []
    return step


if __name__ == "__main__":
    main()
