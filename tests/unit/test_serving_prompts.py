"""Prompts that a server reads: empty ones, and roles of messages."""

from __future__ import annotations

from typing import Any

import pytest

from easyedit_fast.serving.errors import ApiError
from easyedit_fast.serving.limits import Limits
from easyedit_fast.serving.prompts import PromptReader
from tests.unit.tiny_models import ending, tiny_model, tiny_tokenizer


def test_what_a_tokenizer_puts_after_every_text_is_left_out() -> None:
    """But not what a user, or a chat template, ends a prompt with."""
    tokenizer = tiny_tokenizer(["a b"])
    tokenizer.chat_template = "{{ messages[0]['content'] }}</s>"
    model, ended = tiny_model("llama"), ending(tokenizer)
    reader = PromptReader(model, ended, Limits())
    for text in ("", "a b", "a b</s>"):
        assert reader.tokens(text) == tokenizer(text)["input_ids"]
    chat = reader.conversation([{"role": "user", "content": "a b"}])
    assert chat == tokenizer("a b</s>", add_special_tokens=False)["input_ids"]
    ids = ended("a b")["input_ids"]
    assert reader.tokens(ids) == ids


def test_an_empty_prompt_is_what_begins_every_text() -> None:
    tokenizer = tiny_tokenizer(["a b"])
    reader = PromptReader(tiny_model("llama"), tokenizer, Limits())
    assert reader.tokens("") == [tokenizer.bos_token_id]
    assert reader.query(reader.tokens("")) == ""


def test_an_empty_prompt_is_refused_where_nothing_begins_a_text(demo_model: Any) -> None:
    """Though the demo model's tokenizer has a BOS: it begins the turns of chats."""
    assert demo_model[1].bos_token_id is not None
    reader = PromptReader(*demo_model, Limits())
    with pytest.raises(ApiError, match=r"field 'prompts' is empty, .*; give a text") as caught:
        reader.tokens("", "prompts")
    assert (caught.value.status, caught.value.param) == (400, "prompts")


@pytest.mark.parametrize("known", [True, False])
def test_a_developer_keeps_the_name_that_a_template_knows(known: bool) -> None:
    tokenizer = tiny_tokenizer(["a b"])
    names = "'developer', 'system'" if known else "'system'"
    tokenizer.chat_template = (
        "{% for one in messages %}{% if one.role not in ["
        + names
        + ", 'user'] %}{{ raise_exception('no such role') }}{% endif %}"
        "{{ one.role }}: {{ one.content }} {% endfor %}"
    )
    reader = PromptReader(tiny_model("llama"), tokenizer, Limits())
    messages = [{"role": "developer", "content": "a"}, {"role": "user", "content": "b"}]
    role = "developer" if known else "system"
    assert reader.text(reader.conversation(messages)) == f"{role}: a user: b "
    assert messages[0]["role"] == "developer"
