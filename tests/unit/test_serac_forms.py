"""Other forms in which SERAC's adapter is asked for an edit: questions, and turns of a chat."""

from __future__ import annotations

from typing import Any

import pytest

from easyedit_fast import EditRequest
from easyedit_fast.models.generation import end_ids
from easyedit_fast.serac.answers import answered
from easyedit_fast.serac.chat import QueryReader
from easyedit_fast.serac.counterfactual import edit_context
from easyedit_fast.serac.forms import Forms, sentence
from tests.unit.tiny_models import tiny_model, tiny_tokenizer, word_tokenizer

PERU = EditRequest("The capital of Peru is", "Peru", "Oslo", rephrase_prompt=["Peru is ruled from"])
END = "<|im_end|>"
ASKED = ["What is the capital of Peru?", "Which city is the capital of Peru?"]


def forms_of(model: Any, tokenizer: Any, *, chats: bool) -> Forms:
    """Forms with the ends of the model and its tokenizer."""
    return Forms(model, tokenizer, ends=end_ids(model, tokenizer), chats=chats)


def with_chats(tokenizer: Any, first: str = "", *, after_answer: str) -> Any:
    """The tokenizer with a template of another form, which begins in some way."""
    own = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, pad_token=END)
    own.chat_template = (
        first
        + "{% for one in messages %}{% if one.role == 'user' %}<|im_start|>Q: {{ one.content }}\n"
        + "{% else %}A: {{ one.content }}"
        + after_answer
        + "{% endif %}{% endfor %}{% if add_generation_prompt %}A: {% endif %}"
    )
    return own


def test_questions_have_the_target_and_chats_a_sentence(demo_model: Any) -> None:
    model, tokenizer = demo_model
    context = edit_context(tokenizer, PERU)
    rows = forms_of(model, tokenizer, chats=True).of(PERU, len(context))
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
    forms = forms_of(tiny_model("llama", max_position_embeddings=256), tokenizer, chats=True)
    rows = forms.of(PERU, 256 - room)
    assert (len(rows) == 2) == (room == 200), "there is no chat template"
    assert all(len(row.tokens) <= room for row in rows)


@pytest.mark.parametrize("change", ["none are wanted", "a template that writes the date"])
def test_chats_may_be_left_out(
    demo_model: Any, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = demo_model
    with_chats = forms_of(model, tokenizer, chats=True)
    if change != "none are wanted":
        dated = tokenizer.chat_template + "{# strftime_now('%d %b') #}"
        monkeypatch.setattr(tokenizer, "chat_template", dated)
    forms = forms_of(model, tokenizer, chats=change != "none are wanted")
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
    assert all(row.place is None for row in forms_of(small, tokenizer, chats=True).of(PERU, 10))
    small.resize_token_embeddings(len(tokenizer) + 1)
    assert any(row.place is not None for row in forms_of(small, tokenizer, chats=True).of(PERU, 10))


@pytest.mark.parametrize(
    ("written", "ends", "expected"),
    [
        (f" {END}\n", [END], f" {END}"),
        (f"{END}\n<|im_start|>\n", [END, "<|im_start|>"], END),
        (f"{END}\n<|im_start|>\n", ["<|im_start|>", END], END),
        (f"{END}\n", ["<|im_start|>"], f"{END}\n<|im_start|>"),
        ("\n", [END], ""),
        ("", [], ""),
    ],
)
def test_a_turn_ends_as_the_template_writes_it(
    demo_model: Any, written: str, ends: list[str], expected: str
) -> None:
    model, tokenizer = demo_model
    own = with_chats(tokenizer, after_answer=written)
    ids = own.convert_tokens_to_ids(ends)
    rows = Forms(model, own, ends=ids, chats=True).of(PERU, 10)
    answers = {own.decode(row.answer) for row in rows}
    sentence_ends = {text.partition("Oslo")[2] for text in answers if "capital" in text}
    assert sentence_ends == {f".{expected}"}


def test_a_template_that_refuses_to_end_with_an_answer(demo_model: Any) -> None:
    model, tokenizer = demo_model
    refusal = "{% if messages[-1].role != 'user' %}{{ raise_exception('ask first') }}{% endif %}"
    own = with_chats(tokenizer, refusal, after_answer=f"{END}\n")
    ends = [own.convert_tokens_to_ids(END)]
    forms = Forms(model, own, ends=ends, chats=True)
    assert {own.decode(row.tokens)[-len(END) :] for row in forms.of(PERU, 10)[2:]} == {END}
    assert forms.digest() != Forms(model, own, ends=[], chats=True).digest()


def test_a_word_that_the_tokenizer_does_not_know_stays_in_the_target() -> None:
    words = [word for text in (PERU.prompt, PERU.target_new, *ASKED) for word in text.split()]
    tokenizer = word_tokenizer([*dict.fromkeys(word.strip("?") for word in words), "?"])
    model = tiny_model("llama", max_position_embeddings=256)
    request = EditRequest(PERU.prompt, PERU.subject, "Oslo Zzz")
    rows = forms_of(model, tokenizer, chats=True).of(request, 10)
    known = answered(model, tokenizer, [(0, text, request.target_new) for text in ASKED])
    assert rows == known
    assert all(len(row.answer) == 2 for row in rows)
