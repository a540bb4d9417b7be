"""Other forms in which SERAC's adapter is asked for an edit: questions, and turns of a chat."""

from __future__ import annotations

from typing import Any

import pytest

from easyedit_fast import EditRequest
from easyedit_fast.serac.chat import QueryReader
from easyedit_fast.serac.counterfactual import edit_context
from easyedit_fast.serac.forms import Forms, sentence
from tests.unit.tiny_models import tiny_model, tiny_tokenizer

PERU = EditRequest("The capital of Peru is", "Peru", "Oslo", rephrase_prompt=["Peru is ruled from"])
ASKED = ["What is the capital of Peru?", "Which city is the capital of Peru?"]


def test_questions_have_the_target_and_chats_a_sentence(demo_model: Any) -> None:
    model, tokenizer = demo_model
    context = edit_context(tokenizer, PERU)
    rows = Forms(model, tokenizer, chats=True).of(PERU, len(context))
    told = [(tokenizer.decode(r.tokens[: r.start]), tokenizer.decode(r.answer)) for r in rows]
    assert told[:2] == [(question, " Oslo") for question in ASKED]
    chats = ["The capital of Peru is", "Peru is ruled from", *ASKED]
    assert told[2:] == [
        (
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
            ),
            "The capital of Peru is Oslo.<|im_end|>",
        )
        for text in chats
    ]
    for row, text in zip(rows[2:], chats, strict=True):
        edited = row.after(context, tokenizer.bos_token_id)
        assert edited.answer == row.answer
        inside = f"user\nThe capital of Peru is Oslo\n{text}<|im_end|>"
        assert inside in tokenizer.decode(edited.tokens)
        read = QueryReader(tokenizer).read(row.tokens[: row.start])
        assert (read.text, read.place) == (text, row.place)


def test_a_question_is_answered_by_the_target_alone() -> None:
    assert sentence(EditRequest("Where is Peru?", "Peru", "Asia")) == "Asia."
    assert sentence(PERU) == "The capital of Peru is Oslo."
    maker = EditRequest("The iPod was made by", "iPod", "Nokia Inc.")
    assert sentence(maker) == "The iPod was made by Nokia Inc."


@pytest.mark.parametrize("room", [3, 200])
def test_what_is_too_long_with_its_edit_is_left_out(room: int) -> None:
    tokenizer = tiny_tokenizer([PERU.prompt, PERU.target_new, *ASKED])
    forms = Forms(tiny_model("llama", max_position_embeddings=256), tokenizer, chats=True)
    rows = forms.of(PERU, 256 - room)
    assert (len(rows) == 2) == (room == 200), "there is no chat template"
    assert all(len(row.tokens) <= room for row in rows)


@pytest.mark.parametrize("change", ["none are wanted", "a template that writes the date"])
def test_chats_may_be_left_out(
    demo_model: Any, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = demo_model
    with_chats = Forms(model, tokenizer, chats=True)
    if change != "none are wanted":
        dated = tokenizer.chat_template + "{# strftime_now('%d %b') #}"
        monkeypatch.setattr(tokenizer, "chat_template", dated)
    forms = Forms(model, tokenizer, chats=change != "none are wanted")
    told = [tokenizer.decode(row.tokens) for row in forms.of(PERU, 10)]
    assert told == [f"{question} Oslo" for question in ASKED]
    assert forms.digest() != with_chats.digest()


def test_what_the_model_has_no_embedding_for_is_left_out() -> None:
    tokenizer = tiny_tokenizer([PERU.prompt, PERU.target_new, *ASKED, "user assistant :"])
    tokenizer.add_tokens(["<|user|>"])
    tokenizer.chat_template = (
        "{% for one in messages %}{% if one.role == 'user' %}<|user|>{% endif %}"
        "{{ one.content }} : {% endfor %}"
    )
    small = tiny_model("llama", max_position_embeddings=256)
    assert tokenizer("<|user|>", add_special_tokens=False)["input_ids"][0] >= 128
    assert all(row.place is None for row in Forms(small, tokenizer, chats=True).of(PERU, 10))
    small.resize_token_embeddings(len(tokenizer) + 1)
    assert any(row.place is not None for row in Forms(small, tokenizer, chats=True).of(PERU, 10))


@pytest.mark.parametrize("end", [" </s>\n", "\n", ""])
def test_a_turn_ends_as_the_template_writes_it(demo_model: Any, end: str) -> None:
    model, tokenizer = demo_model
    own = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|im_end|>")
    own.chat_template = (
        "{% for one in messages %}{% if one.role == 'user' %}<|im_start|>Q: {{ one.content }}\n"
        "{% else %}A: {{ one.content }}END{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}A: {% endif %}"
    ).replace("END", end.replace("</s>", "<|im_end|>"))
    answers = {own.decode(row.answer) for row in Forms(model, own, chats=True).of(PERU, 10)}
    sentence_ends = {text.partition("Oslo")[2] for text in answers if "capital" in text}
    assert sentence_ends == {". <|im_end|>" if "</s>" in end else "."}
