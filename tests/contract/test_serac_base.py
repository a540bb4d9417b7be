"""The base model while SERAC's adapter is in it, and what SERAC's own model is not for."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from easyedit_fast import Edit, Editor
from easyedit_fast.errors import EditStateError, ModelError
from easyedit_fast.evaluation import Evaluator
from easyedit_fast.models.architectures import architecture_of
from easyedit_fast.models.fingerprint import model_fingerprint
from easyedit_fast.runs import EditJob
from easyedit_fast.trainers import train_editor
from tests.contract.test_methods import REQUESTS

FACT = REQUESTS[0]


@pytest.fixture
def editor(serac_editor: Editor) -> Editor:
    """SERAC on the demo model, with an edit in its memory."""
    serac_editor.edit(FACT, evaluate=False)
    return serac_editor


@pytest.fixture(scope="module")
def plain(demo_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the demo model, saved before it holds anything."""
    folder = tmp_path_factory.mktemp("plain")
    demo_model[0].save_pretrained(folder)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_saved_base_model_is_the_plain_one_to_the_last_bit(
    editor: Editor, plain: Path, tmp_path: Path
) -> None:
    base = editor.method.base
    base.save_pretrained(tmp_path / "in")
    assert files(tmp_path / "in") == files(plain)
    editor.method.close()
    base.save_pretrained(tmp_path / "out")
    assert files(tmp_path / "out") == files(plain)
    assert not base._state_dict_hooks
    assert not base._load_state_dict_pre_hooks


def test_the_state_dict_is_the_plain_models(editor: Editor, plain: Path) -> None:
    base, ids = editor.method.base, editor.tokenizer(FACT.prompt, return_tensors="pt")["input_ids"]
    state = {name: one.clone() for name, one in base.state_dict().items()}
    plain_state = AutoModelForCausalLM.from_pretrained(plain).state_dict()
    assert list(state) == list(plain_state)
    assert all(torch.equal(state[name], own) for name, own in plain_state.items())
    with torch.no_grad():
        answered = editor.model(ids).logits
        for parameter in base.model.layers[3].self_attn.q_proj.base_layer.parameters():
            parameter.zero_()
        assert not torch.equal(editor.model(ids).logits, answered)
        base.load_state_dict(state)
        assert torch.equal(editor.model(ids).logits, answered)
    assert list(editor.model.state_dict()) == [f"base.{name}" for name in state]


def test_a_copy_of_the_base_model_answers_and_is_saved_as_the_plain_one(
    editor: Editor, plain: Path, tmp_path: Path
) -> None:
    base, ids = editor.method.base, editor.tokenizer(FACT.prompt, return_tensors="pt")["input_ids"]
    other = copy.deepcopy(base)
    with torch.no_grad():
        assert torch.equal(other(ids).logits, base(ids).logits)
    other.save_pretrained(tmp_path)
    assert files(tmp_path) == files(plain)


def test_other_editors_refuse_the_base_model_until_it_is_closed(
    editor: Editor, mend_archive: Path, tmp_path: Path
) -> None:
    base, tokenizer = editor.method.base, editor.tokenizer
    mend = {"archive": str(mend_archive)}
    quick = {"context_templates": ["{}"], "v_num_grad_steps": 2}
    attempts: list[Callable[[], Any]] = [
        lambda: Editor(base, tokenizer, method="rome"),
        lambda: Editor(base, tokenizer, method="rome", architecture=architecture_of(base)),
        lambda: Editor(base, tokenizer, method="mend", hparams=mend),
        lambda: model_fingerprint(base, architecture_of(base)),
        *(
            lambda method=method: train_editor(
                base, tokenizer, [FACT], [FACT], tmp_path / "run", method=method
            )
            for method in ("mend", "serac")
        ),
    ]
    for attempt in attempts:
        with pytest.raises(ModelError, match=r"adapter already; .*editor\.method\.close\(\)"):
            attempt()
    editor.method.close()
    rome = Editor(base, tokenizer, method="rome", hparams=quick)
    edit = rome.edit(FACT, evaluate=False, isolated=True).edit
    edit.save(tmp_path / "edit.safetensors")
    again = Editor(base, tokenizer, method="serac")
    try:
        with pytest.raises(ModelError, match="adapter already"):
            rome.edit(FACT, evaluate=False)
        with pytest.raises(ModelError, match="adapter already"):
            Edit.load(tmp_path / "edit.safetensors").apply(base)
    finally:
        again.method.close()


def test_seracs_model_is_no_plain_model(editor: Editor, tmp_path: Path) -> None:
    model, tokenizer = editor.model, editor.tokenizer
    attempts: list[Callable[[], Any]] = [
        lambda: Evaluator(model, tokenizer),
        *(lambda name=name: Editor(model, tokenizer, method=name) for name in ("rome", "serac")),
        lambda: train_editor(model, tokenizer, [FACT], [FACT], tmp_path / "run"),
        lambda: model_fingerprint(model, editor.method.architecture),
    ]
    for attempt in attempts:
        with pytest.raises(ModelError, match=r"SERAC's edits; pass the plain one, model\.base"):
            attempt()
    scores = Evaluator(model.base, tokenizer).score([FACT], routing=editor.method.routing())
    assert scores[0]["rewrite_acc"] == [1.0]
    assert EditJob(editor).description()["model"]["fingerprint"] == editor.method.fingerprint


@pytest.mark.parametrize(
    ("attempt", "remedy"),
    [
        (copy.deepcopy, "another editor"),
        (copy.copy, "another editor"),
        (pickle.dumps, "another editor"),
        (lambda model: torch.save(model, io.BytesIO()), "another editor"),
        (lambda model: model.push_to_hub("name"), r"Editor\.from_pretrained"),
        (lambda model: model.save_pretrained("/nowhere"), r"model\.base\.save_pretrained"),
    ],
)
def test_seracs_model_is_neither_copied_nor_saved(
    editor: Editor, attempt: Callable[[Any], Any], remedy: str
) -> None:
    with pytest.raises(EditStateError, match=remedy) as caught:
        attempt(editor.model)
    assert "\n" not in str(caught.value)


def test_hidden_states_are_refused_where_an_edit_is_read_before_the_prompt(editor: Editor) -> None:
    options: dict[str, Any] = {
        "max_new_tokens": 2,
        "do_sample": False,
        "return_dict_in_generate": True,
    }
    routed, other = (
        editor.tokenizer(text, return_tensors="pt") for text in (FACT.prompt, "Snow is usually")
    )
    for name in ("output_hidden_states", "output_attentions"):
        asked = {name: True}
        own = {"generation_config": GenerationConfig(**options, **asked)}
        for given in ({**options, **asked}, own):
            with pytest.raises(ModelError, match=rf"leave {name} out, or ask model\.base"):
                editor.model.generate(**routed, **given)
        with pytest.raises(ModelError, match=f"leave {name} out"):
            editor.model(**routed, **asked)
    found, expected = (
        model.generate(**other, **options, output_hidden_states=True)
        for model in (editor.model, editor.method.base)
    )
    assert torch.equal(found.hidden_states[1][-1], expected.hidden_states[1][-1])
