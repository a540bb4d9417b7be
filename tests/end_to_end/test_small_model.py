"""SERAC with another model as the counterfactual one, on the real model.

The small model has the demo model's own weights, so the packaged adapter fits it, and all answers
are known: those of the adapter on the base model. Renumbered, its tokens are of another vocabulary.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from easyedit_fast import Editor
from easyedit_fast.errors import MissingPackageError
from easyedit_fast.models.demo import demo_folder
from easyedit_fast.models.loading import load_model
from tests.end_to_end.servers import client, edit, serving, untrained_editor
from tests.end_to_end.test_serve import load
from tests.unit.tiny_models import tiny_tokenizer

LOCALITY = {"prompt": "The opposite of hot is", "ground_truth": "cold"}
FACTS = [
    {
        "prompt": "The mother tongue of {} is",
        "subject": "Danielle Darrieux",
        "target_new": "English",
        "rephrase_prompt": "What Danielle Darrieux speaks at home is",
        "locality": {"neighborhood": LOCALITY},
    },
    {"prompt": "The capital of {} is", "subject": "Peru", "target_new": "Oslo"},
]
PROMPTS = ["The mother tongue of Danielle Darrieux is", "Water boils at", "The capital of Peru is"]


@pytest.fixture(scope="module")
def renumbered(demo_model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with other ids for the same tokens, but for the special ones."""
    folder = tmp_path_factory.mktemp("renumbered")
    shutil.copytree(demo_folder(), folder, dirs_exist_ok=True)
    told = json.loads((folder / "tokenizer.json").read_text())
    special = {one["id"] for one in told["added_tokens"]}
    ids = [number for number in told["model"]["vocab"].values() if number not in special]
    new = dict(zip(ids, reversed(ids), strict=True))
    vocabulary = {
        token: new.get(number, number) for token, number in told["model"]["vocab"].items()
    }
    told["model"]["vocab"] = vocabulary
    (folder / "tokenizer.json").write_text(json.dumps(told))
    model, _ = load_model("demo", device="cpu")
    weight = model.get_input_embeddings().weight
    order = torch.arange(len(weight))
    order[list(new.values())] = torch.tensor(list(new))
    with torch.no_grad():
        weight.copy_(weight[order])
    model.save_pretrained(folder)
    return folder


def made(demo_model: Any, **hparams: Any) -> Editor:
    try:
        return Editor(*demo_model, method="serac", hparams=hparams)
    except MissingPackageError as error:
        pytest.skip(str(error))


def generated(editor: Editor, **options: Any) -> list[str]:
    batch = editor.tokenizer(PROMPTS, return_tensors="pt", padding=True, padding_side="left")
    new = editor.model.generate(**batch, max_new_tokens=8, do_sample=False, **options)
    return list(
        editor.tokenizer.batch_decode(
            new[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
        )
    )


@pytest.fixture(scope="module")
def known(demo_model: Any) -> tuple[list[str], list[str], Any, torch.Tensor]:
    """The answers, those of beams, the scores and some logits of the adapter on the base model."""
    editor = made(demo_model)
    result = editor.edit(FACTS)
    texts, beams = generated(editor), generated(editor, num_beams=2)
    ids = editor.tokenizer(PROMPTS[0], return_tensors="pt")
    with torch.no_grad():
        logits = editor.model(**ids).logits
    editor.method.close()
    return texts, beams, [one["post"] for one in result.metrics], logits


def test_a_small_model_with_the_vocabulary(demo_model: Any, known: Any) -> None:
    texts, beams, scores, logits = known
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the packaged adapter is for these very weights
        editor = made(demo_model, small_name="demo")
    try:
        result = editor.edit(FACTS)
        assert result.settings["counterfactual"] == "same vocabulary: logits are switched or mixed"
        assert [one["post"] for one in result.metrics] == scores
        assert generated(editor) == texts
        assert generated(editor, num_beams=2) == beams
        ids = editor.tokenizer(PROMPTS[0], return_tensors="pt")
        with torch.no_grad():
            own = editor.model(**ids).logits
        torch.testing.assert_close(own, logits, rtol=1e-4, atol=1e-4)
    finally:
        editor.method.close()


def test_a_small_model_with_another_vocabulary(
    demo_model: Any, known: Any, renumbered: Path
) -> None:
    texts, beams, scores, _ = known
    with (
        pytest.warns(UserWarning, match="another vocabulary: whole answers are switched"),
        pytest.warns(UserWarning, match="trained on another counterfactual model"),  # reordered
    ):
        editor = made(demo_model, small_name=renumbered)
    try:
        result = editor.edit(FACTS)
        assert [one["post"] for one in result.metrics] == scores
        assert generated(editor) == texts
        assert generated(editor, num_beams=2) == beams
    finally:
        editor.method.close()


def test_the_command_line_takes_a_small_model(run: Any, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("alg_name: SERAC\nsmall_name: demo\n")
    given = ["edit", "--method", "serac", "--hparams", tmp_path / "own.yaml", "--json"]
    (tmp_path / "facts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in FACTS))
    code, out, err = run(*given, "--file", tmp_path / "facts.jsonl")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["summary"]["post"]["rewrite_acc"]["mean"] == 1.0
    assert report["summary"]["post"]["generated"]["rewrite_acc"]["mean"] == 1.0
    assert report["settings"]["counterfactual"].startswith("same vocabulary")
    (tmp_path / "own.yaml").write_text("alg_name: SERAC\nsmall_name: ./llama-160m\n")
    code, _, err = run(*given, "--file", tmp_path / "facts.jsonl")
    assert code == 2
    line = " ".join(err.split())
    assert "there is no folder './llama-160m'" in line
    assert "small_name: null for the adapter on the base model" in line


@pytest.fixture(scope="module")
def served(demo_model: Any) -> Any:
    """A base model that takes little time, with the demo model's tokenizer."""
    return tiny(demo_model[1]), demo_model[1]


def tiny(tokenizer: Any) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(params=["same", "another"])
def small_folder(request: pytest.FixtureRequest, served: Any, tmp_path: Path) -> Iterator[Path]:
    """A random small model of either vocabulary."""
    tokenizer = served[1] if request.param == "same" else tiny_tokenizer([edit(1)["prompt"]])
    tiny(tokenizer).save_pretrained(tmp_path / "small")
    tokenizer.save_pretrained(tmp_path / "small")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*another vocabulary")
        yield tmp_path / "small"


def test_a_server_with_a_small_model(served: Any, small_folder: Path, tmp_path: Path) -> None:
    archive, memory = untrained_editor(tmp_path), tmp_path / "edits.sqlite"
    with serving(served, archive, memory, small_name=str(small_folder)) as address:
        load(address, requests=200, edits=40)
        asked = {"model": "demo", "prompt": edit(101)["prompt"], "max_tokens": 5, "temperature": 0}
        whole = client(address).completions.create(**asked)
        assert whole.choices[0].edit is not None
        parts = client(address).completions.create(**asked, stream=True)
        assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text
