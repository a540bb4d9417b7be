"""The evaluation on the packaged demo model, and on real edits of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from easyedit_fast.evaluation import Evaluator, merge
from easyedit_fast.evaluation.isolation import Updates
from easyedit_fast.metrics import summarise
from easyedit_fast.requests import EditRequest, Probe
from easyedit_fast.updates import LowRankUpdate

REQUESTS = [
    EditRequest(
        prompt="The capital of {} is",
        subject="France",
        target_new="Rome",
        rephrase_prompt=("France's seat of government is in the city of",),
        locality={"neighborhood": (Probe("The capital of Germany is", "Berlin"),)},
        portability={"one_hop": (Probe("The Eiffel Tower stands in", "Rome in the year 1900"),)},
    ),
    EditRequest(prompt="The Mona Lisa was painted by", subject="Mona Lisa", target_new="Monet"),
    EditRequest(
        prompt="In the year 1969 the first human being who walked on the Moon was",
        subject="Moon",
        target_new="Yuri Gagarin",
        locality={"neighborhood": (Probe("The Moon is made of"),)},
    ),
]


def forward_by_hand(demo_model: Any, prompt: str, target: str) -> tuple[list[int], list[int]]:
    """Predicted and true ids of the target, from one plain forward pass of one text."""
    model, tokenizer = demo_model
    start = len(tokenizer(prompt)["input_ids"])
    ids = tokenizer(f"{prompt} {target}", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        tokens = model(input_ids=ids).logits[0].argmax(-1).tolist()
    return tokens[start - 1 : -1], ids[0, start:].tolist()


def test_scores_equal_a_plain_loop(demo_model: Any) -> None:
    scores = Evaluator(*demo_model).score(REQUESTS, generate=False)
    for request, score in zip(REQUESTS, scores, strict=True):
        for prompt, accuracy in [
            (request.prompt, score["rewrite_acc"][0]),
            *zip(request.rephrase_prompt, score.get("rephrase_acc", ()), strict=True),
        ]:
            predicted, true = forward_by_hand(demo_model, prompt, request.target_new)
            hits = [one == other for one, other in zip(predicted, true, strict=True)]
            assert math.isclose(accuracy, sum(hits) / len(hits))
    first = scores[0]
    assert first["locality"]["neighborhood_output"] == [
        forward_by_hand(demo_model, "The capital of Germany is", "Berlin")[0]
    ]
    predicted, true = forward_by_hand(
        demo_model, "The Eiffel Tower stands in", "Rome in the year 1900"
    )
    hits = [one == other for one, other in zip(predicted, true, strict=True)]
    assert len(hits) > 6  # the digits are tokens of their own, and so is the space before them
    assert first["portability"]["one_hop_acc"] == [pytest.approx(sum(hits) / len(hits))]


def test_generations_equal_a_plain_loop_and_say_something(demo_model: Any) -> None:
    model, tokenizer = demo_model
    known = EditRequest("The capital of France is", "France", "Paris")
    requests = [known, REQUESTS[2]]
    scores = Evaluator(model, tokenizer).score(requests)
    for request, score in zip(requests, scores, strict=True):
        ids = tokenizer(request.prompt, return_tensors="pt")["input_ids"]
        whole = ids
        for _ in range(10):
            with torch.no_grad():
                last = model(input_ids=whole).logits[:, -1].argmax(-1, keepdim=True)
            whole = torch.cat([whole, last], dim=1)
        text = tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)
        assert score["generated"]["rewrite_text"] == [text]
    assert (scores[0]["rewrite_acc"], scores[0]["generated"]["rewrite_acc"]) == ([1.0], [1.0])


@pytest.fixture(scope="module")
def reference(shared_data: Path) -> list[tuple[EditRequest, Updates]]:
    """EasyEdit's own ROME edits of the demo model, with the records that they are for."""
    folder = shared_data / "reference"
    cases = json.loads((folder / "rome_smollm2.json").read_text())["cases"]
    factors = load_file(folder / "rome_smollm2.safetensors")
    records = json.loads((shared_data / "data/counterfact/counterfact-edit.json").read_text())
    edits = []
    for case in cases:
        if case["hparams"]["mom2_adjustment"]:
            name, record = case["name"], records[case["index"]]
            update = LowRankUpdate(
                factors[f"{name}.right"][:, None], factors[f"{name}.left"][None, :]
            )
            edits.append((_request(record), {case["parameter"]: update}))
    return edits


def _request(record: dict[str, Any]) -> EditRequest:
    probe = Probe(record["locality_prompt"], record["locality_ground_truth"])
    return EditRequest(
        prompt=record["prompt"],
        subject=record["subject"],
        target_new=record["target_new"],
        rephrase_prompt=(record["rephrase_prompt"],),
        locality={"neighborhood": (probe,)},
    )


def test_easyedits_edits_hold_when_isolated(
    demo_model: Any, reference: list[tuple[EditRequest, Updates]]
) -> None:
    """Four edits in one pass score as each does in the weights, and all of them succeed."""
    model, _ = demo_model
    requests = [request for request, _ in reference]
    edits = [edit for _, edit in reference]
    evaluator = Evaluator(*demo_model)
    pre = evaluator.score(requests)
    post = evaluator.score(requests, updates=edits)
    summary = summarise(merge(requests, pre, post))
    assert summary["post"]["rewrite_acc"] == {"mean": 1.0, "count": 4}
    assert summary["post"]["generated"]["rewrite_acc"] == {"mean": 1.0, "count": 4}
    assert summary["post"]["locality"]["neighborhood_acc"] == {"mean": 1.0, "count": 4}
    assert summary["pre"]["rewrite_acc"]["mean"] < 0.5
    for place, (request, edit) in enumerate(reference):
        [(name, update)] = edit.items()
        weight = model.get_parameter(name)
        saved = weight.detach().clone()
        try:
            with torch.no_grad():
                weight.add_(update.dense())
            alone = evaluator.score([request], generate=place == 0)
        finally:
            with torch.no_grad():
                weight.copy_(saved)
        expected = {key: value for key, value in post[place].items() if key in alone[0]}
        assert alone == [expected]
