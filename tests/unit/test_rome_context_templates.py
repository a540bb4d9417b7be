"""Context templates: how they are made, kept and read."""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from easyedit_fast.errors import DataFileError, HparamsError, NonFiniteError
from easyedit_fast.rome.context_templates import context_templates, read_context_templates
from tests.unit.tiny_models import ending, tiny_model

LENGTHS = [(5, 5), (8, 3)]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EASYEDIT_FAST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make(demo: Any, name: str, seed: int = 0) -> list[str]:
    """Each name is a place of its own in the cache."""
    return context_templates(*demo, name, LENGTHS, seed)


def test_they_follow_the_seed_and_are_kept(demo_model: Any, cache: Path) -> None:
    made = make(demo_model, "a")
    assert len(made) == 1 + 5 + 3
    assert made[0] == "{}"
    assert all(template.count("{}") == 1 for template in made)
    assert made == make(demo_model, "b")
    assert made != make(demo_model, "c", seed=1)
    (path,) = [
        path
        for path in (cache / "context_templates").iterdir()
        if json.loads(path.read_text())["model_fingerprint"] == "a"
    ]
    assert read_context_templates(path) == made
    path.write_text(json.dumps(["{}", "kept {}"]))
    assert make(demo_model, "a") == ["{}", "kept {}"]


def test_a_tokenizer_without_pad_token_will_do(demo_model: Any, cache: Path) -> None:
    model, tokenizer = demo_model
    bare = copy.deepcopy(tokenizer)
    bare.pad_token = None
    assert bare.pad_token_id is None
    side = bare.padding_side
    assert make((model, bare), "bare") == make(demo_model, "whole")
    assert bare.padding_side == side


def test_what_a_tokenizer_puts_after_every_text_is_left_out(demo_model: Any, cache: Path) -> None:
    model, tokenizer = demo_model
    assert make((model, ending(tokenizer)), "ended") == make(demo_model, "plain")


def test_the_models_own_generation_settings_are_not_mixed_in(
    demo_model: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = make(demo_model, "plain")
    own = copy.deepcopy(demo_model[0].generation_config)
    own.repetition_penalty, own.temperature, own.min_p = 9.0, 0.1, 0.9
    monkeypatch.setattr(demo_model[0], "generation_config", own)
    assert make(demo_model, "penalised") == plain
    assert demo_model[0].generation_config is own


def test_a_cache_that_cannot_be_written_is_said(
    demo_model: Any, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.write_text("a file in the folder's place")
    with caplog.at_level(logging.WARNING, "easyedit_fast"):
        made = make(demo_model, "a")
    assert len(made) == 9
    (record,) = caplog.records
    assert "cannot be kept" in record.message
    assert "EASYEDIT_FAST_CACHE" in record.message


def test_a_short_context_is_refused_before_anything_is_made(demo_model: Any, cache: Path) -> None:
    tokenizer = demo_model[1]
    short = tiny_model("gpt2", vocab_size=len(tokenizer), n_positions=7)
    with pytest.raises(
        HparamsError, match=r"8 tokens do not fit .* reads 7 .*length_params or con"
    ):
        make((short, tokenizer), "short")
    assert not cache.exists()
    just = tiny_model("gpt2", vocab_size=len(tokenizer), n_positions=8)
    assert len(make((just, tokenizer), "just")) == 9


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite(demo_model: Any, cache: Path, value: float) -> None:
    tokenizer = demo_model[1]
    model = tiny_model(vocab_size=len(tokenizer))
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = value
    with pytest.raises(NonFiniteError, match="the model's logits hold NaN or infinity; load it"):
        make((model, tokenizer), "broken")
    assert not cache.exists()


@pytest.mark.parametrize("key", [None, "templates", "context_templates"])
def test_a_file_is_a_list_or_an_object_with_it(tmp_path: Path, key: str | None) -> None:
    path = tmp_path / "templates.json"
    given = ["{}", "I think. {}"]
    path.write_text(json.dumps(given if key is None else {key: given}))
    assert read_context_templates(path) == given


@pytest.mark.parametrize("content", ['{"other": ["{}"]}', "[]", '["no place"]', "[", "7"])
def test_another_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "templates.json"
    path.write_text(content)
    with pytest.raises(DataFileError, match=r"templates\.json"):
        read_context_templates(path)
