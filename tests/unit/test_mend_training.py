"""MEND's training on the real model: what is drawn, what is told, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from easyedit_fast import Editor, EditRequest
from easyedit_fast.errors import HparamsError, ModelError, NonFiniteError, RequestError
from easyedit_fast.mend.training import MendTrainee, mend_trainee
from easyedit_fast.mend.validation import _locality_sums
from easyedit_fast.trainers import train_editor
from easyedit_fast.training.differences import differences

INNER = [
    f"model.layers.{layer}.mlp.{part}_proj.weight" for layer in (28, 29) for part in ("up", "down")
]
HPARAMS: dict[str, Any] = {
    "inner_params": INNER,
    "rank": 4,
    "edit_lr": -1e-4,
    "lr": 1e-4,
    "batch_size": 4,
    "max_iters": 4,
    "val_interval": 2,
    "log_interval": 2,
    "model_save_pt": 2,
}
FACTS = [
    ("The mother tongue of {} is", "Ada Lovelace", "French", "{} speaks", "Alan Turing speaks"),
    ("The capital of {} is", "Norland", "Rome", "{} is governed from", "France is governed from"),
    ("{} was born in", "Marie Curie", "Paris", "The birthplace of {} is", "Bohr was born in"),
    ("{} plays", "Miles Davis", "chess", "What {} does is play", "John Coltrane plays"),
    ("{} works for", "Grace Hopper", "Google", "The employer of {} is", "Ken Olsen works for"),
    ("The colour of {} is", "the sky", "green", "Look at {}: it is", "The colour of grass is"),
]


def requests() -> list[EditRequest]:
    return [
        EditRequest.from_dict(
            {
                "prompt": prompt,
                "subject": subject,
                "target_new": target,
                "rephrase_prompt": rephrase.format(subject),
                "locality": {"neighborhood": {"prompt": [other], "ground_truth": ["English"]}},
            }
        )
        for prompt, subject, target, rephrase, other in FACTS
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trunks of these tests."""
    return tmp_path_factory.mktemp("trunks")


def trainee(
    demo_model: Any, folder: Path, records: Sequence[EditRequest] | None = None, **keys: Any
) -> MendTrainee:
    records = requests() if records is None else records
    return mend_trainee(
        *demo_model, records, requests(), hparams={**HPARAMS, **keys}, cache_folder=folder
    )[0]


def test_each_batch_draws_how_many_edits_a_model_gets(demo_model: Any, folder: Path) -> None:
    learner = trainee(demo_model, folder, batch_size=6)
    sizes = []
    for iteration in range(30):
        batch = learner.prepare(iteration, [3, 1, 4, 0, 5, 2])
        again = learner.prepare(iteration, [3, 1, 4, 0, 5, 2])
        assert batch.groups == again.groups == sorted(batch.groups)
        assert batch.places == [3, 1, 4, 0, 5, 2]
        assert batch.edit_share == batch.locality_share == 1.0
        assert (batch.targets is batch.edits) == (iteration % 2 == 0), "rewrite and rephrase"
        sizes.append(batch.groups.count(0))
    assert {1, 2, 6} <= set(sizes)
    assert sizes.count(1) > 30 / 6
    same = trainee(demo_model, folder, n_edits=3, vary_n_edits=False, outer_prompts="rewrite")
    for iteration in range(4):
        batch = same.prepare(iteration, [0, 1, 2, 3])
        assert batch.groups == [0, 0, 0, 1]
        assert batch.targets is batch.edits


def test_a_null_edit_changes_nothing(demo_model: Any, folder: Path) -> None:
    learner = trainee(demo_model, folder)
    learner.step(learner.prepare(0, [0, 1, 2, 3]))  # a mean and a deviation
    with torch.no_grad():
        learner.network.edit_lrs.zero_()
    values = learner.validate()
    assert values["loss/loc_val"] == pytest.approx(0, abs=1e-9)
    for name in ("acc", "nll", "perplexity", "n_tokens"):
        assert values[f"{name}/pre_val"] == pytest.approx(values[f"{name}/post_val"], rel=1e-5)
    assert values["locality/acc_val"] == 1
    assert values["n_tokens/pre_val"] == 6


@pytest.mark.parametrize("size", [1, 3])
def test_a_validation_tells_what_the_editor_does(
    demo_model: Any, folder: Path, tmp_path: Path, size: int
) -> None:
    """Held to the editor's own file, loaded and used as users do."""
    learner = trainee(demo_model, folder, val_batch_size=size, edit_lr=-3e-4)
    learner.step(learner.prepare(0, [0, 1, 2, 3]))
    learner.network.zero_grad()
    values = learner.validate()
    learner.write_editor(tmp_path / "e.safetensors", {})
    keys = {"archive": str(tmp_path / "e.safetensors"), "together": "sum"}
    editor = Editor(*demo_model, method="mend", hparams=keys)
    scores = []
    records = requests()
    for first in range(0, len(records), size):
        with editor.editing(records[first : first + size], generate=False) as result:
            scores += result.metrics
    for name, found in (
        ("edit/acc_val", [score["post"]["rewrite_acc"][0] for score in scores]),
        ("rephrase/acc_val", [score["post"]["rephrase_acc"][0] for score in scores]),
        (
            "locality/acc_val",
            [score["post"]["locality"]["neighborhood_acc"][0] for score in scores],
        ),
    ):
        # All answers are of one token, so that a mean over tokens is one over records; the kept
        # trunk's rounding may turn one of them over.
        assert values[name] == pytest.approx(sum(found) / len(found), abs=1 / 6 + 1e-6), name
    assert values["edit/acc_val"] > 0.5
    assert values["loss/edit_val"] == pytest.approx(
        -(values["edit/log_prob_val"] + values["rephrase/log_prob_val"]) / 2
    )
    total = 0.1 * values["loss/edit_val"] + values["loss/loc_val"]
    assert values["loss/total_edit_val"] == values["loss/total_val"] == pytest.approx(total)
    assert values["perplexity/post_val"] == pytest.approx(math.exp(values["nll/post_val"]))


def test_training_resumes_bit_for_bit(demo_model: Any, folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    def run(name: str, **options: Any) -> Any:
        return train_editor(
            *demo_model,
            requests(),
            requests(),
            tmp_path / name,
            hparams=HPARAMS,
            cache_folder=folder,
            **options,
        )

    class EndedError(Exception):
        pass

    def end(done: int, of: int, values: Any) -> None:
        if done == 3:
            raise EndedError

    whole = run("whole")
    with pytest.raises(EndedError):
        run("parted", progress=end)
    parted = run("parted")
    assert parted.resumed == 2
    for name in ("editor.safetensors", "checkpoint.safetensors"):
        one, other = (load_file(tmp_path / part / name) for part in ("whole", "parted"))
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert parted.best_iteration == whole.best_iteration


def test_what_differs_between_runs_is_told_as_users_know_it(demo_model: Any, folder: Path) -> None:
    others = [dataclasses.replace(one, target_new="Oslo") for one in requests()]
    first = trainee(demo_model, folder).description()

    def found(records: Sequence[EditRequest] | None = None, **keys: Any) -> list[str]:
        return list(differences(first, trainee(demo_model, folder, records, **keys).description()))

    of_records = "its records differ (the data file changed, or another is given)"
    assert found() == found(max_iters=9) == []
    assert found(others) == [of_records]
    assert found(others, rank=2) == ["its hyperparameter rank was 4 and is 2", of_records]
    assert [line[:31] for line in found(inner_params=INNER[2:])] == [
        "its hyperparameter inner_params"
    ]
    for part, told in (("weights", "its model, or this package's version, is another"),
                       ("dtype", "its dtype was 'torch.float32' and is 'x'")):  # fmt: skip
        second = copy.deepcopy(first)
        for rows in second["data"]:
            rows["targets"][part] = rows["locality"][part] = "x"
        assert list(differences(first, second)) == [told]
    tokens = copy.deepcopy({**first, "model": "another"})
    tokens["data"][0]["targets"]["tokens"] = "x"
    assert list(differences(first, tokens)) == ["its model is another"]


def test_training_goes_on_from_an_editor(demo_model: Any, folder: Path, mend_archive: Path) -> None:
    learner = trainee(demo_model, folder, archive=str(mend_archive), rank=8)
    assert learner.network.edit_lrs.tolist() == pytest.approx([-0.02] * 4)


def test_in_bfloat16(demo_model: Any, folder: Path) -> None:
    """The model is run in bfloat16, what learns stays in float32."""
    from easyedit_fast.models.loading import load_model

    half, tokenizer = load_model("demo", device="cpu", dtype="bfloat16")
    values = []
    for model in (demo_model[0], half):
        learner = trainee((model, tokenizer), folder)
        loss, _ = learner.step(learner.prepare(0, [0, 1, 2, 3]))
        loss.backward()
        assert {p.dtype for p in learner.network.parameters()} == {torch.float32}
        assert loss.dtype == torch.float32
        values.append(loss.item())
    assert values[0] == pytest.approx(values[1], rel=0.1)


def test_answers_alone(demo_model: Any, folder: Path) -> None:
    learner = trainee(demo_model, folder, loc_tokens="answer")
    batch = learner.prepare(0, [0, 1, 2, 3])
    assert int(batch.locality.reads.sum()) == 4
    assert batch.locality.labels().tolist() == [int(batch.locality.labels()[0])] * 4
    everywhere = trainee(demo_model, folder).prepare(0, [0, 1, 2, 3])
    assert int(everywhere.locality.reads.sum()) == len(everywhere.locality.final) > 4


def test_what_cannot_be_trained_on(demo_model: Any, folder: Path) -> None:
    model, tokenizer = demo_model
    bare = EditRequest(prompt="The capital of {} is", subject="Norland", target_new="Rome")
    with pytest.raises(RequestError, match=r"record 6, field 'locality': has no locality prompt"):
        trainee(demo_model, folder, [*requests(), bare])
    with pytest.raises(RequestError, match="record 1 of the validation records, field 'locality'"):
        mend_trainee(
            *demo_model, requests(), [requests()[0], bare], hparams=HPARAMS, cache_folder=folder
        )
    with pytest.raises(HparamsError, match=r"n_edits \(5\) is more than the batch has \(4\)"):
        trainee(demo_model, folder, n_edits=5)
    with pytest.raises(HparamsError, match="is in no layer"):
        trainee(demo_model, folder, inner_params=["lm_head.weight"])
    with pytest.raises(HparamsError, match="rome needs no training"):
        train_editor(model, tokenizer, requests(), requests(), folder, method="rome")
    with pytest.raises(RequestError, match="there is no request"):
        train_editor(model, tokenizer, requests(), [], folder)
    with pytest.raises(ModelError, match="the hyperparameters say 'half'"):
        trainee(demo_model, folder, half=True)


def test_locality_without_an_answer(demo_model: Any, folder: Path) -> None:
    """Its prompt alone is looked at, where all tokens are."""
    records = requests()
    records[2] = EditRequest.from_dict(
        {**records[2].to_dict(), "locality": {"n": {"prompt": ["Bohr was born in"]}}}
    )
    learner = trainee(demo_model, folder, records)
    batch = learner.prepare(0, [2, 3])
    assert (batch.locality.labels() != -100).sum() == 1
    with pytest.raises(RequestError, match=r"record 2, field 'locality': .*ground_truth"):
        trainee(demo_model, folder, records, loc_tokens="answer")


@pytest.mark.parametrize("row", [0, 2])
def test_what_is_not_finite_names_its_record(demo_model: Any, folder: Path, row: int) -> None:
    """The very record, though others share its model; the running moments stay finite."""
    learner = trainee(demo_model, folder, n_edits=4, vary_n_edits=False)
    learner.step(learner.prepare(0, [0, 1, 2, 3]))
    places = [5, 2, 0, 1]
    batch = learner.prepare(0, places)
    batch.edits.tail.entering[row] = torch.nan
    with pytest.raises(NonFiniteError, match=f"record {places[row]}: its activations"):
        learner.step(batch)
    batch = learner.prepare(0, places)
    batch.locality.rows.tail.entering[row] = torch.nan
    with pytest.raises(NonFiniteError, match=f"record {places[row]}: its activations"):
        learner.step(batch)
    assert all(tensor.isfinite().all() for tensor in learner.network.state_dict().values())


def test_locality_that_was_not_asked_alike_is_told(demo_model: Any, folder: Path) -> None:
    locality = trainee(demo_model, folder)._validation.locality([0, 1], "all")
    after = locality.base_logits()
    sums = _locality_sums(locality, after)
    assert sums["pre.n"] == sums["post.n"] == sums["same"] == 2
    with pytest.raises(ModelError, match=r"tokens shall stay, and the unedited model was asked"):
        _locality_sums(locality, after[:-1])


def test_one_token_is_enough_to_begin_with(demo_model: Any, folder: Path) -> None:
    """In the last block only predicting tokens count, and a target may be of one token."""
    inner = ["model.layers.29.mlp.down_proj.weight"]
    learner = trainee(demo_model, folder, inner_params=inner, batch_size=1, n_edits=1)
    loss, _ = learner.step(learner.prepare(0, [0]))
    assert loss.isfinite()
