"""A training step of MEND, and edits with a trained editor, ours and EasyEdit's, in turn.

    python benchmarks/mend.py --easyedit DIR --data counterfact-train.json

DIR is a checkout of zjunlp/EasyEdit; it needs ``pip install higher`` too. Both edit the same nine
weights (the MLPs of the last three layers), ten records in one model, with the loss on the rewrite
prompts and the divergence over all tokens of the locality prompts, in float32. Ours begins with the
second epoch: what enters the first edited layer is known.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import report
import torch
from easyedit_mend import EasyEditMend
from timing import interleaved, median_ratio, spread

from easyedit_fast import Editor, EditRequest, read_requests
from easyedit_fast.mend.hparams import MENDTrainingHparams
from easyedit_fast.mend.modules import mend_rule
from easyedit_fast.mend.training import MendTrainee
from easyedit_fast.models.architectures import architecture_of
from easyedit_fast.models.loading import load_model

BATCH = 10
ISOLATED = 100


def main() -> None:
    """Parses the options, times both, writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--easyedit", type=Path, required=True, metavar="DIR")
    parser.add_argument("--data", type=Path, required=True, help="CounterFact or another data file")
    parser.add_argument("--ranks", default="1920,256")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    requests = read_requests(options.data, limit=ISOLATED)
    rows = []
    for rank in map(int, options.ranks.split(",")):
        rows += measure(options.easyedit, requests, rank, options.rounds)
    report.write(
        "mend",
        "MEND: training and editing, against EasyEdit",
        f"python benchmarks/mend.py --easyedit DIR --data counterfact-train.json "
        f"--ranks {options.ranks} --rounds {options.rounds}",
        ["rank", "what", "EasyEdit, s", "easyedit-fast, s", "ratio", "note"],
        rows,
        [
            (
                "Median (range) of the rounds; the ratio is the median of the rounds' ratios. No "
                "evaluation in any time but the last row's; taking an edit out again counts on "
                "neither side. The floor of a step is its matrix products at the speed of a "
                "product of 2048 × 2048 here."
            )
        ],
    )


def measure(checkout: Path, requests: list[EditRequest], rank: int, rounds: int) -> list[list[str]]:
    """The rows of one rank."""
    model, tokenizer = load_model("demo", device="cpu", dtype="float32")
    tokenizer.padding_side = "left"  # as EasyEdit sets it for MEND
    hparams = training_hparams(model, rank)
    theirs_model, _ = load_model("demo", device="cpu", dtype="float32")
    theirs = EasyEditMend(checkout, theirs_model, tokenizer, hparams.to_dict())
    with tempfile.TemporaryDirectory() as folder:
        learner = MendTrainee(
            model, tokenizer, requests, requests[:1], hparams, cache_folder=Path(folder)
        )
        rows = [step_row(theirs, learner, requests, rank, rounds)]
        path = Path(folder) / "editor.safetensors"
        learner.write_editor(path, {})
        theirs.load(learner.state_dict())
        for way, count in (("sum", 1), ("sum", BATCH), ("corrected", BATCH)):
            keys = {"archive": str(path), "together": way}
            editor = Editor(model, tokenizer, method="mend", hparams=keys)
            rows.append(edit_row(theirs, editor, requests[:count], rank, rounds))
        return [*rows, isolated_row(editor, requests, rank)]


def training_hparams(model: Any, rank: int) -> MENDTrainingHparams:
    """What both train: ten records in one model, the loss on the rewrite prompts."""
    return MENDTrainingHparams(
        inner_params=mend_rule(model, architecture_of(model)),
        rank=rank,
        vary_n_edits=False,
        outer_prompts="rewrite",
        edit_lr=-1e-4,
        lr=1e-6,
        batch_size=BATCH,
    )


def their_batches(theirs: EasyEditMend, requests: Sequence[EditRequest]) -> tuple[Any, Any]:
    """The rewrite prompts and the first neighbourhood prompts of records, as EasyEdit's batches."""
    probes = [request.locality["neighborhood"][0] for request in requests]
    return (
        theirs.batch([(request.prompt, request.target_new) for request in requests]),
        theirs.batch([(probe.prompt, str(probe.ground_truth)) for probe in probes]),
    )


def step_row(
    theirs: EasyEditMend, learner: MendTrainee, requests: list[EditRequest], rank: int, rounds: int
) -> list[str]:
    """A training step."""
    chosen = requests[:BATCH]
    edits, locality = their_batches(theirs, chosen)
    optimizer = torch.optim.Adam(learner.parameter_groups(), fused=True)
    parameters = list(learner.network.parameters())

    def ours() -> float:
        loss, _ = learner.step(learner.prepare(0, list(range(BATCH))))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, learner.hparams.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    ways = {
        "EasyEdit": lambda: theirs.train_step(edits, locality),
        "ours": ours,
    }
    for way in ways.values():
        way()
    seconds, _ = interleaved(ways, rounds)
    floor = step_operations(learner, edits, locality) / peak()
    ratio = median_ratio(seconds["EasyEdit"], seconds["ours"])
    return [
        str(rank),
        f"training step, {BATCH} records",
        spread(seconds["EasyEdit"]),
        spread(seconds["ours"]),
        f"{ratio:.1f}×",
        f"floor {floor:.2f} s",
    ]


def step_operations(learner: MendTrainee, edits: Any, locality: Any) -> float:
    """Floating-point operations of a step's matrix products, from the second epoch on.

    Two a weight and token forwards, and as many backwards for the gradient of what enters. The
    locality prompts' base needs the head alone. The editor's own gradients are as many again.
    """
    edit_tokens = int(edits["attention_mask"].sum()) - BATCH  # the last predicts nothing
    answers = int((edits["labels"] != 0).sum())
    others = int(locality["attention_mask"].sum())
    model = learner._model  # noqa: SLF001
    layers = model.model.layers[27:]
    of_layers = sum(p.numel() for layer in layers for p in layer.parameters())
    head = model.lm_head.weight.numel()
    network = sum(
        p.numel() for name, p in learner.network.named_parameters() if name.endswith((".u", ".v"))
    )
    weights = len(learner.hparams.inner_params)
    forward = 2 * of_layers * (2 * edit_tokens + others) + 2 * head * (2 * answers + 2 * others)
    backward = 2 * of_layers * (2 * edit_tokens + others) + 2 * head * (2 * answers + others)
    of_network = 3 * 2 * network / len(learner.network.mend) * edit_tokens * weights
    return float(forward + backward + of_network)


def peak() -> float:
    """Operations a second of a product of 2048 × 2048, the best of ten."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    seconds, _ = interleaved({"product": lambda: a @ b}, 10)
    return 2 * 2048**3 / min(seconds["product"])


def edit_row(
    theirs: EasyEditMend, editor: Editor, requests: list[EditRequest], rank: int, rounds: int
) -> list[str]:
    """Edits in one model."""
    plain = [{"prompt": r.prompt, "target_new": r.target_new} for r in requests]

    def theirs_edit() -> None:
        before = theirs.edit(plain)
        kept.append(before)

    def ours_edit() -> None:
        results.append(editor.edit(requests, evaluate=False))

    kept: list[Any] = []
    results: list[Any] = []
    seconds: dict[str, list[float]] = {"EasyEdit": [], "ours": []}
    for number in range(rounds + 1):
        timed, _ = interleaved({"EasyEdit": theirs_edit, "ours": ours_edit}, 1)
        with torch.no_grad():
            for name, weight in kept.pop().items():
                theirs.model.get_parameter(name).copy_(weight)
        results.pop().edit.revert()
        if number:  # the first warms up
            for name, one in timed.items():
                seconds[name] += one
    ratio = median_ratio(seconds["EasyEdit"], seconds["ours"])
    way = editor.method.used_hparams()["together"]
    what = "1 edit" if len(requests) == 1 else f"{len(requests)} edits together, {way}"
    return [
        str(rank),
        what,
        spread(seconds["EasyEdit"], 3),
        spread(seconds["ours"], 3),
        f"{ratio:.1f}×",
        "",
    ]


def isolated_row(editor: Editor, requests: list[EditRequest], rank: int) -> list[str]:
    """Isolated edits, scored."""
    editor.edit(requests[:8], isolated=True, generate=False)
    seconds, _ = interleaved(
        {"ours": lambda: editor.edit(requests, isolated=True, generate=False)}, 3
    )
    rate = len(requests) / sorted(seconds["ours"])[1]
    return [
        str(rank),
        f"{len(requests)} isolated, with teacher-forced scores",
        "",
        spread(seconds["ours"]),
        "",
        f"{rate:.0f} edits a second",
    ]


if __name__ == "__main__":
    main()
