"""The scope and adapter that come with the package: found for their model alone; their worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from easyedit_fast import Editor, EditRequest, read_requests
from easyedit_fast.errors import HparamsError
from easyedit_fast.hparams import find_hparams_file, read_yaml
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
    name = "TRAINING/SERAC/smollm2-135m-adapter"
    stated = read_yaml(find_hparams_file(name, "TRAINING/SERAC")).keys() - {"archive"}
    last = SERACTrainingHparams.from_hparams(name).to_dict()
    assert {key: card["training"][key] for key in stated} == {key: last[key] for key in stated}
    assert card["iterations"] <= last["max_iters"]
    assert archive.with_suffix(".md").is_file()


def test_another_model_has_none() -> None:
    assert shipped_editor("another") is None
    with pytest.raises(HparamsError, match="none for this model comes with the package"):
        Serac(tiny_model(), word_tokenizer(WORDS))


def test_a_hundred_edits_in_one_memory(serac_editor: Editor, shared_data: Path) -> None:
    """Records that nothing was chosen on; the floors are below what was measured on 500."""
    file = shared_data / "data" / "counterfact" / "counterfact-edit.json"
    requests = read_requests(file, limit=100)
    post = serac_editor.edit(requests, generate=False).summary["post"]
    assert post["rewrite_acc"]["mean"] >= 0.98
    assert post["rephrase_acc"]["mean"] >= 0.97
    assert post["locality"]["neighborhood_acc"]["mean"] >= 0.97


def answers(editor: Editor, prompts: Sequence[str]) -> list[str]:
    """What is said to prompts with the facts in the memory, special tokens included."""
    editor.edit([EditRequest(*fact) for fact in FACTS], evaluate=False)
    tokenizer: Any = editor.tokenizer
    batch = tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left")
    whole = editor.model.generate(**batch, max_new_tokens=30, do_sample=False)
    told: list[str] = tokenizer.batch_decode(whole[:, batch["input_ids"].shape[1] :])
    return told


def test_answers_go_on_after_the_target(serac_editor: Editor) -> None:
    told = answers(serac_editor, [prompt for prompt, _, _ in FACTS])
    targets = [target for _, _, target in FACTS]
    assert all(a.strip().startswith(t) for a, t in zip(told, targets, strict=True))
    repeated = [a for a, t in zip(told, targets, strict=True) if a.count(t) > 2]
    assert len(repeated) <= 1, repeated


def test_a_chat_is_answered_by_a_sentence_that_ends(serac_editor: Editor) -> None:
    tokenizer: Any = serac_editor.tokenizer
    chats = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        for prompt, _, _ in FACTS
    ]
    end = tokenizer.eos_token
    told = [answer.partition(end)[0] for answer in answers(serac_editor, chats) if end in answer]
    assert told == [f"{prompt} {target}." for prompt, _, target in FACTS]


def test_subjects_in_letters_that_the_encoder_does_not_know(serac_editor: Editor) -> None:
    facts = [("💀", "Rome"), ("😀", "Oslo"), ("საქართველო", "Lima"), ("სომხეთი", "Cairo")]
    requests = [EditRequest("The capital of {} is", *fact) for fact in facts]
    serac_editor.edit(requests, evaluate=False)
    asked = [f"The capital city of {name} is" for name, _ in facts]
    routes = serac_editor.method.model.routes(asked)
    told = [None if route.edit is None else route.edit.request.target_new for route in routes]
    assert told == [target for _, target in facts]


def test_its_file_of_hyperparameters_takes_the_packaged_parts(
    demo_model: Any, archive: Path
) -> None:
    made = Editor(*demo_model, method="serac", hparams="SERAC/smollm2-135m")
    made.method.close()
    assert made.method.hparams.archive == str(archive)


def test_embeddings_in_a_quarter_of_the_bytes(demo_model: Any) -> None:
    made = Editor(*demo_model, method="serac", hparams={"memory_precision": "int8"})
    made.edit([EditRequest(*fact) for fact in FACTS], evaluate=False)
    assert made.method.memory._matrix._rows.dtype == torch.int8
    routes = made.method.model.routes([prompt for prompt, _, _ in FACTS])
    made.method.close()
    assert [route.edit and route.edit.id for route in routes] == [1, 2, 3, 4, 5, 6]


def test_the_newest_spelling_of_a_prompt_holds(serac_editor: Editor) -> None:
    spellings = ["The wife of Beyonce\u0301 is", "the wife of Beyonc\u00e9 is"]
    for prompt, target in zip(spellings, ("Rome", "Oslo"), strict=True):
        subject = prompt.split()[3]
        (edit,) = serac_editor.edit(EditRequest(prompt, subject, target), evaluate=False).edits
    assert edit.describe()["superseded"] == [1]
    routes = serac_editor.method.model.routes(spellings)
    assert [route.edit.id for route in routes if route.edit is not None] == [2, 2]
