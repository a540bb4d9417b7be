"""Training without labels for the scope (``supervised: false``), on small random models."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from easyedit_fast.serac import Serac
from easyedit_fast.serac.answers import answer_logits
from easyedit_fast.serac.training import SeracTrainee
from easyedit_fast.serac.validation import VALUES
from easyedit_fast.training.loop import train
from tests.unit.test_mend_training import requests
from tests.unit.test_serac_training import both_kinds, own_tokenizer, small, turned
from tests.unit.tiny_models import tiny_model

__all__ = ["small"]  # a fixture

pytestmark = pytest.mark.usefixtures("one_thread")
PLACES = [3, 0, 5, 1]


def mixture(
    trainee: SeracTrainee, edits: list[int], prompt: str, row: Any, own: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixed and base probabilities of a row's answer, by passes of that row alone."""
    data, adapter, scope = trainee.data, trainee.adapter, trainee.scope
    texts = [data.requests[place].prompt for place in edits]
    read = list(range(len(texts)))
    if trainee.hparams.cross_attend:
        distances = (scope.embed(texts) - scope.embed([prompt])).square().sum(1)
        near = [at for at in distances.argsort().tolist() if at != own]
        read = [own, *near[: trainee.hparams.hard_negatives]]
    likely = scope.pair_similarities([texts[at] for at in read], [prompt] * len(read))
    weight = max(likely)
    placed = data.with_edit(row, edits[read[likely.index(weight)]])
    with torch.no_grad():
        edited = answer_logits(adapter, [placed], [True]).double().softmax(-1)
        base = answer_logits(adapter, [row], [False]).double().softmax(-1)
    return (1 - weight) * base + weight * edited, base


@both_kinds
@pytest.mark.parametrize("iteration", [0, 1])
def test_the_losses_are_the_mixtures(small: Any, iteration: int) -> None:
    trainee = turned(small(supervised=False, cedit=0.5, cloc=2.0, cntr_batch_size=3))
    data = trainee.data
    none, share = trainee.prepare(iteration, PLACES)
    assert none is None
    total, values = trainee.step((none, share))
    nll, kl = [], []
    for at, place in enumerate(PLACES[:3]):
        row, prompt = data.rewrites[place], data.requests[place].prompt
        if iteration:
            row, prompt = data.rephrases[place][0], data.rephrase_prompts[place][0]
        mixed, _ = mixture(trainee, share.places, prompt, row, at)
        nll.append(functional.nll_loss(mixed.log(), torch.tensor(row.answer)))
        probe = data.probes[data.localities[place][0]]
        mixed, base = mixture(trainee, share.places, data.locality_prompts[place][0], probe, at)
        kl.append((base * (base / mixed).log()).sum(-1).mean())
    edit, locality = torch.stack(nll).mean(), torch.stack(kl).mean()
    values = {name: one.item() for name, one in values.items()}
    assert values["loss/edit_train"] == pytest.approx(float(edit), rel=1e-3)
    assert values["loss/loc_train"] == pytest.approx(float(locality), rel=1e-3, abs=1e-5)
    assert total.item() == pytest.approx(float(0.5 * edit + 2 * locality), rel=1e-3)
    assert "loss/scope_train" not in values
    assert 0 <= values["scope/acc_train"] <= 1


@both_kinds
@pytest.mark.parametrize("part", ["both", "scope", "counterfactual"])
def test_gradients_reach_what_is_trained(small: Any, part: str) -> None:
    trainee = turned(small(supervised=False, parts=part))
    trainee.step(trainee.prepare(0, PLACES))[0].backward()
    learning = [p for group in trainee.parameter_groups() for p in group["params"]]
    assert learning
    for parameter in learning:
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() > 0
    if part == "scope":
        assert all(parameter.grad is None for parameter in trainee.adapter.parameters())


@both_kinds
def test_the_scope_learns_from_answers_alone(small: Any, tmp_path: Path) -> None:
    """The adapter can answer from edits already; the scope finds out where that helps."""
    first = small(parts="counterfactual", max_iters=60, val_interval=60, lr=2e-2)
    train(first, first.hparams, tmp_path / "first", about={})
    archive = tmp_path / "editor.safetensors"
    first.write_editor(archive, {})
    keys = {"archive": str(archive), "parts": "scope", "supervised": False, "cedit": 1.0}
    trainee = small(**keys, max_iters=60, val_interval=60, model_save_pt=60, cls_lr=5e-3)
    before = [trainee.step(trainee.prepare(at, PLACES))[0].item() for at in (0, 1)]
    result = train(trainee, trainee.hparams, tmp_path / "second", about={})
    assert set(result.values) == set(VALUES)
    after = [trainee.step(trainee.prepare(at, PLACES))[0].item() for at in (0, 1)]
    assert sum(after) < sum(before)


def test_a_run_that_goes_on_ends_with_the_same_editor(small: Any, tmp_path: Path) -> None:
    whole, first, second = (small(supervised=False, max_iters=n) for n in (4, 2, 4))
    train(whole, whole.hparams, tmp_path / "whole", about={})
    train(first, first.hparams, tmp_path / "parts", about={})
    assert train(second, second.hparams, tmp_path / "parts", about={}).resumed == 2
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


def test_the_shares_of_processes_add_up(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def gradients(ranks: int) -> tuple[float, list[torch.Tensor]]:
        trainee = turned(small(supervised=False, cntr_batch_size=3))
        total = 0.0
        for rank in range(ranks):
            told = functools.partial(lambda *own: own, rank, ranks)
            monkeypatch.setattr("easyedit_fast.serac.drawing.rank_and_ranks", told)
            loss = trainee.step(trainee.prepare(0, PLACES))[0]
            loss.backward()
            total += loss.item()
        return total, [p.grad for group in trainee.parameter_groups() for p in group["params"]]

    (one, alone), (other, shared) = gradients(1), gradients(2)
    assert other == pytest.approx(one, rel=1e-5)
    for own, theirs in zip(alone, shared, strict=True):
        torch.testing.assert_close(theirs, own, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("supervised", [True, False])
def test_such_an_editor_mixes_in_use(small: Any, tmp_path: Path, supervised: bool) -> None:
    trainee = small(supervised=supervised)
    path = tmp_path / "editor.safetensors"
    trainee.write_editor(path, {})
    trainee.close()
    model = tiny_model("llama", max_position_embeddings=256)
    method = Serac(model, own_tokenizer(), hparams={"archive": str(path)})
    assert method.model.soft is not supervised
    with torch.no_grad():
        method._router.scope.threshold.fill_(2.0)
    method.memory.add([requests()[0]])
    ids = torch.tensor([method.model.base.config.bos_token_id, 8, 9, 10])[None]
    found = method.model(ids).logits
    expected = method.model(ids, soft=not supervised).logits
    assert torch.equal(found, expected)
    assert not torch.equal(found, method.model(ids, soft=supervised).logits)
    method.close()
