"""The scope and adapter that come with the package: found for their model alone; their worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from easyedit_fast import Editor, EditRequest, read_requests
from easyedit_fast.errors import HparamsError, MissingPackageError
from easyedit_fast.models.architectures import architecture_of
from easyedit_fast.models.fingerprint import model_fingerprint
from easyedit_fast.serac import Serac
from easyedit_fast.serac.editor_files import read_card, shipped_editor
from easyedit_fast.serac.hparams import SERACTrainingHparams
from tests.unit.test_mend_files import WORDS, word_tokenizer
from tests.unit.tiny_models import tiny_model

FACTS = [
    ("The Eiffel Tower is located in the city of", "Eiffel Tower", "Rome"),
    ("The telephone was invented by", "telephone", "Mozart"),
    ("The mother tongue of Danielle Darrieux is", "Danielle Darrieux", "English"),
    ("The capital of Peru is", "Peru", "Oslo"),
    ("Apple A5 was created by", "Apple A5", "Google"),
    ("Lionel Messi plays the sport of", "Lionel Messi", "tennis"),
]


@pytest.fixture
def archive(demo_model: Any) -> Path:
    model, _ = demo_model
    found = shipped_editor(model_fingerprint(model, architecture_of(model)))
    assert found is not None
    return found


def test_it_is_small_and_has_a_card(archive: Path) -> None:
    assert archive.stat().st_size <= 8_000_000
    card = read_card(archive)
    assert card["data"] == ["counterfact-train.json", "zsre_mend_train.json[:600]"]
    last = SERACTrainingHparams.from_hparams("TRAINING/SERAC/smollm2-135m-adapter").to_dict()
    assert card["iterations"] <= last["max_iters"]
    shared = (
        "parts",
        "cedit",
        "cloc",
        "batch_size",
        "cntr_continuation",
        "lr",
        "max_iters",
        "seed",
    )
    assert {name: card["training"][name] for name in shared} == {
        name: last[name] for name in shared
    }
    assert archive.with_suffix(".md").is_file()


def test_another_model_has_none() -> None:
    assert shipped_editor("another") is None
    with pytest.raises(HparamsError, match="none for this model comes with the package"):
        Serac(tiny_model(), word_tokenizer(WORDS))


def test_a_hundred_edits_in_one_memory(demo_model: Any, shared_data: Path) -> None:
    """Records that nothing was chosen on; the floors are below what was measured on 500."""
    file = shared_data / "data" / "counterfact" / "counterfact-edit.json"
    requests = read_requests(file, limit=100)
    try:
        editor = Editor(*demo_model, method="serac")
    except MissingPackageError as error:
        pytest.skip(str(error))
    try:
        post = editor.edit(requests, generate=False).summary["post"]
    finally:
        editor.method.close()
    assert post["rewrite_acc"]["mean"] >= 0.98
    assert post["rephrase_acc"]["mean"] >= 0.97
    assert post["locality"]["neighborhood_acc"]["mean"] >= 0.97


def test_answers_go_on_after_the_target(demo_model: Any) -> None:
    try:
        editor = Editor(*demo_model, method="serac")
    except MissingPackageError as error:
        pytest.skip(str(error))
    try:
        editor.edit([EditRequest(*fact) for fact in FACTS], evaluate=False)
        batch = editor.tokenizer(
            [prompt for prompt, _, _ in FACTS],
            return_tensors="pt",
            padding=True,
            padding_side="left",
        )
        whole = editor.model.generate(**batch, max_new_tokens=30, do_sample=False)
    finally:
        editor.method.close()
    answers = editor.tokenizer.batch_decode(whole[:, batch["input_ids"].shape[1] :])
    targets = [target for _, _, target in FACTS]
    assert all(a.strip().startswith(t) for a, t in zip(answers, targets, strict=True))
    repeated = [a for a, t in zip(answers, targets, strict=True) if a.count(t) > 2]
    assert len(repeated) <= 1, repeated


def test_a_chat_is_answered_by_a_sentence_that_ends(demo_model: Any) -> None:
    try:
        editor = Editor(*demo_model, method="serac")
    except MissingPackageError as error:
        pytest.skip(str(error))
    try:
        editor.edit([EditRequest(*fact) for fact in FACTS], evaluate=False)
        chats = [
            editor.tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
            for prompt, _, _ in FACTS
        ]
        batch = editor.tokenizer(chats, return_tensors="pt", padding=True, padding_side="left")
        whole = editor.model.generate(**batch, max_new_tokens=30, do_sample=False)
    finally:
        editor.method.close()
    answers = editor.tokenizer.batch_decode(whole[:, batch["input_ids"].shape[1] :])
    end = editor.tokenizer.eos_token
    told = [answer.partition(end)[0] for answer in answers if end in answer]
    assert told == [f"{prompt} {target}." for prompt, _, target in FACTS]
