"""The editor that comes with the package: found for its model alone, small, and worth its card."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from easyedit_fast import Editor, read_requests
from easyedit_fast.errors import HparamsError
from easyedit_fast.mend import Mend
from easyedit_fast.mend.editor_files import read_card, read_editor, shipped_editor, write_editor
from easyedit_fast.mend.hparams import HOW_EDITS_SHARE
from easyedit_fast.mend.mend import resolve_mend_hparams
from easyedit_fast.models.architectures import architecture_of
from easyedit_fast.models.fingerprint import model_fingerprint
from tests.unit.test_mend_files import WORDS, word_tokenizer
from tests.unit.tiny_models import tiny_model


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
    assert card["iterations"] <= card["training"]["max_iters"] == 3500
    assert archive.with_suffix(".md").is_file()


def test_a_file_has_no_say_in_how_edits_share_a_model(archive: Path, tmp_path: Path) -> None:
    editor = read_editor(archive)
    assert not HOW_EDITS_SHARE & set(editor.hparams)
    path = tmp_path / "editor.safetensors"
    hparams = {**editor.hparams, "together": "sum", "ridge": 3.0}
    write_editor(path, dataclasses.replace(editor, hparams=hparams))
    for given, expected in (({}, "corrected"), ({"together": "sum"}, "sum")):
        resolved, _ = resolve_mend_hparams({"archive": str(path), **given})
        assert (resolved.together, resolved.ridge) == (expected, 0.01)


def test_another_model_has_none() -> None:
    assert shipped_editor("another") is None
    with pytest.raises(HparamsError, match="none for this model comes with the package"):
        Mend(tiny_model(), word_tokenizer(WORDS))


def test_another_model_is_warned_of(archive: Path, demo_model: Any) -> None:
    model, tokenizer = demo_model
    weight = model.get_parameter("model.layers.3.self_attn.q_proj.weight")
    weight.data.neg_()
    try:
        with pytest.warns(UserWarning, match="was trained for another model"):
            Mend(model, tokenizer, hparams={"archive": str(archive)})
    finally:
        weight.data.neg_()


def test_its_edits_hold(demo_model: Any, shared_data: Path) -> None:
    """On records that it has not seen."""
    editor = Editor(*demo_model, method="mend")
    path = shared_data / "data" / "counterfact" / "counterfact-edit.json"
    requests = read_requests(path, limit=96)
    post = editor.edit(requests, isolated=True, generate=False).summary["post"]
    assert post["rewrite_acc"]["mean"] >= 0.9
    assert post["rephrase_acc"]["mean"] >= 0.6
    assert post["locality"]["neighborhood_acc"]["mean"] >= 0.7
