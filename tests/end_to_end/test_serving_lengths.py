"""Edits and prompts that fit the base model, and not with the edit before them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
import transformers

from tests.end_to_end.servers import edit, serving, untrained_editor
from tests.unit.tiny_models import tiny_tokenizer


def tiny(tokenizer: Any, length: int) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        max_position_embeddings=length,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


@pytest.mark.filterwarnings("ignore:.*another vocabulary")
def test_the_prompt_that_is_too_long_is_named(demo_model: Any, tmp_path: Path) -> None:
    archive, own = untrained_editor(tmp_path), tiny_tokenizer([edit(1)["prompt"]])
    fits = f"{edit(1)['prompt']} {edit(1)['target_new']}"
    length = len(own(f"{fits}\n{fits}")["input_ids"])
    tiny(own, length).save_pretrained(tmp_path / "small")
    own.save_pretrained(tmp_path / "small")
    loaded = tiny(demo_model[1], 2048), demo_model[1]
    hparams = {"small_name": str(tmp_path / "small")}
    with (
        serving(loaded, archive, None, **hparams) as url,
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        assert http.post("/v1/edits", json=edit(1)).is_success
        long = edit(1)["prompt"].replace("was", "was, as is well known,")

        def asked(path: str, **body: Any) -> str:
            answer = http.post(path, json={"max_tokens": 1, **body})
            assert answer.status_code == 400
            error = answer.json()["error"]
            assert error["code"] == "context_length_exceeded"
            assert f"reads {length} at most" in error["message"]
            return str(error["message"])

        several = asked("/v1/completions", prompt=[edit(1)["prompt"], long])
        assert several.startswith("field 'prompt'[1] takes ")
        chat = [{"role": "user", "content": long}]
        told = asked("/v1/chat/completions", messages=chat, stream=True)
        assert told.startswith("field 'messages' takes ")
        assert "after edit 1" in told
        answer = http.post("/v1/completions", json={"prompt": edit(1)["prompt"], "max_tokens": 30})
        assert answer.json()["choices"][0]["edit"] == 1


def test_an_edit_that_cannot_be_answered_is_refused(demo_model: Any, tmp_path: Path) -> None:
    """As `Editor.edit` refuses it: after itself its prompt is longer than what the model reads."""
    archive, tokenizer = untrained_editor(tmp_path), demo_model[1]
    long = {**edit(1), "prompt": edit(1)["prompt"].replace("was", "was, as is well known,")}
    asked = f"{long['prompt']} {long['target_new']}"
    size = len(tokenizer(f"{asked}\n{asked}")["input_ids"])
    with (
        serving((tiny(tokenizer, size - 1), tokenizer), archive, None) as url,
        httpx.Client(base_url=url, timeout=60) as http,
    ):
        answer = http.post("/v1/edits", json=[edit(0), long])
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["param"] == "prompt"
        assert error["message"] == (
            f"record 1, field 'prompt': with its edit as context it takes {size} tokens, and the "
            f"model reads {size - 1} at most; shorten it"
        )
        assert http.get("/v1/edits").json()["data"] == []
        assert http.post("/v1/edits", json=edit(0)).is_success
