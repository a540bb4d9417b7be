"""The command line on the real model: edit, apply, export, demo, doctor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from easyedit_fast.cli import main
from easyedit_fast.models.demo import demo_folder

EDIT = ["--prompt", "The Eiffel Tower is located in the city of", "--subject", "Eiffel Tower"]
TEMPLATES = "context_templates: ['{}', 'I think. {}']\nv_num_grad_steps: 20\n"


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], demo_model: Any
) -> Any:
    """Runs a command; gives exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["easyedit-fast", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture
def hparams(tmp_path: Path) -> Path:
    """Few templates, so that an edit takes seconds."""
    path = tmp_path / "quick.yaml"
    path.write_text(TEMPLATES)
    return path


def test_an_edit_is_made_saved_applied_and_exported(
    run: Any, hparams: Path, tmp_path: Path
) -> None:
    edit, adapter, model = (tmp_path / name for name in ("edit.safetensors", "adapter", "model"))
    code, out, err = run(
        "edit", "--model", "demo", "--method", "rome", *EDIT, "--target", "Rome",
        "--hparams", hparams, "--layers", "5",
        "--save", edit, "--peft", adapter, "--save-model", model, "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["summary"]["post"]["rewrite_acc"] == {"mean": 1.0, "count": 1}
    assert report["settings"]["mom2_adjustment"] is False
    assert report["settings"]["layers"] == [5]
    generated = report["metrics"][0]["post"]["generated"]
    assert generated["rewrite_acc"] == [1.0]
    assert "Rome" in generated["rewrite_text"][0]

    code, out, err = run("apply", edit, "--model", "demo", "--json")
    assert (code, err) == (0, "")
    (generation,) = json.loads(out)["generations"]
    assert "Paris" in generation["before"]
    assert "Rome" in generation["after"]

    code, out, err = run("apply", edit, "--model", model, "--json")
    assert code == 2
    assert "in the model already" in err

    code, out, err = run("export", edit, "--peft", tmp_path / "again", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["updates"]["model.layers.5.mlp.down_proj.weight"]["rank"] == 1
    for folder in (adapter, tmp_path / "again"):
        with safe_open(folder / "adapter_model.safetensors", "pt") as file:
            assert len(file.keys()) == 2
    assert AutoModelForCausalLM.from_pretrained(model).num_parameters() > 1e8


def test_a_file_of_edits_in_isolation(run: Any, hparams: Path, tmp_path: Path) -> None:
    requests = [
        {"prompt": "{} is in the country of", "subject": "Oslo", "target_new": target}
        for target in ("Chile", "Kenya")
    ]
    file = tmp_path / "requests.jsonl"
    file.write_text("\n".join(map(json.dumps, requests)))
    arguments = ("edit", "--file", file, "--hparams", hparams, "--json")
    code, out, err = run(*arguments, "--isolated", "--save", tmp_path / "edits")
    assert (code, err) == (0, "")
    assert json.loads(out)["summary"]["post"]["rewrite_acc"]["count"] == 2
    names = sorted(path.name for path in (tmp_path / "edits").iterdir())
    assert names == ["edit-00000.safetensors", "edit-00001.safetensors"]
    code, out, err = run(*arguments, "--together")
    assert (code, out) == (2, "")
    assert "requests 0 and 1 have the same prompt" in err


def test_the_tables_for_people(run: Any, hparams: Path) -> None:
    code, out, _ = run("edit", *EDIT, "--target", "Rome", "--hparams", hparams)
    assert code == 0
    for expected in ("mom2_adjustment: False", "Scores", "rewrite_acc", "optimise", "total"):
        assert expected in out


def test_the_demo_edits_three_facts(run: Any) -> None:
    code, out, err = run("demo", "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert set(report) >= {"model", "edits", "untouched", "metrics", "timings"}
    assert len(report["edits"]) == 3
    for edit in report["edits"]:
        assert set(edit) == {
            "method", "prompt", "subject", "target_new", "before", "after", "seconds",
        }  # fmt: skip
        assert edit["target_new"] not in edit["before"]
        assert edit["after"].strip().startswith(edit["target_new"])
    assert all(set(one) == {"prompt", "before", "after"} for one in report["untouched"])
    assert report["metrics"]["post"]["rewrite_acc"]["mean"] == 1.0


def test_doctor_says_what_is_there(run: Any) -> None:
    code, out, err = run("doctor", "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["loader"]["loaded"]
    assert report["kernels"]["loaded"]
    assert report["packages"]["torch"]
    code, out, _ = run("doctor")
    assert code == 0
    assert "kernels: cuda_built" in out


def test_every_command_helps_with_an_example(run: Any) -> None:
    for command in ("edit", "apply", "export", "demo", "doctor"):
        code, out, _ = run(command, "--help")
        assert code == 0
        assert f"Example: easyedit-fast {command}" in out


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


BAD_INPUTS: dict[str, tuple[Any, str]] = {
    "subject not in prompt": (
        lambda tmp: ["edit", "--prompt", "It is in", "--subject", "Oslo", "--target", "Chile"],
        "subject 'Oslo' is not in the prompt",
    ),
    "empty target": (
        lambda tmp: ["edit", "--prompt", "{} is in", "--subject", "Oslo", "--target", " "],
        "field 'target_new': is empty",
    ),
    "unknown layer": (
        lambda tmp: ["edit", *EDIT, "--target", "Rome", "--layers", "40"],
        "40 is not in this model of 30 layers",
    ),
    "wrong type in YAML": (
        lambda tmp: [
            "edit", *EDIT, "--target", "Rome", "--hparams", write(tmp / "a.yaml", "v_lr: fast\n"),
        ],
        "v_lr: must be a valid number",
    ),
    "truncated JSON": (
        lambda tmp: ["edit", "--file", write(tmp / "a.json", '[{"prompt": "{} is", "subj')],
        "a.json",
    ),
    "missing file": (
        lambda tmp: ["edit", "--file", tmp / "none.json"],
        "none.json",
    ),
    "missing field": (
        lambda tmp: [
            "edit", "--file", write(tmp / "a.json", '[{"prompt": "{} is", "subject": "Oslo"}]'),
        ],
        "record 0, field 'target_new'",
    ),
    "empty file": (
        lambda tmp: ["edit", "--file", write(tmp / "a.json", "[]")],
        "holds no record",
    ),
    "no causal model": (
        lambda tmp: [
            "edit", *EDIT, "--target", "Rome", "--model",
            write(tmp / "config.json", '{"model_type": "t5"}').parent,
        ],
        "no causal language model",
    ),
    "missing model folder": (
        lambda tmp: ["edit", *EDIT, "--target", "Rome", "--model", tmp / "none"],
        "there is no folder",
    ),
    "unknown method": (
        lambda tmp: ["edit", *EDIT, "--target", "Rome", "--method", "roma"],
        "did you mean 'rome'",
    ),
    "missing hparams": (
        lambda tmp: ["edit", *EDIT, "--target", "Rome", "--hparams", "ROME/llama-7c"],
        "llama-7b",
    ),
    "damaged edit": (
        lambda tmp: ["apply", write(tmp / "edit.safetensors", b"\x08" * 40)],
        "edit.safetensors is damaged",
    ),
    "edit of nothing": (
        lambda tmp: ["export", tmp / "none.safetensors"],
        "there is no edit file",
    ),
    "damaged statistics": (
        lambda tmp: [
            "edit", *EDIT, "--target", "Rome", "--second-moment", write(tmp / "c.npz", b"PK"),
        ],
        "c.npz is damaged",
    ),
    "missing statistics": (
        lambda tmp: ["edit", *EDIT, "--target", "Rome", "--second-moment", tmp / "none.npz"],
        "no second-moment file",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_one_line_and_exit_code_2(case: str, run: Any, tmp_path: Path) -> None:
    arguments, message = BAD_INPUTS[case]
    code, out, err = run(*arguments(tmp_path))
    assert (code, out) == (2, "")
    (line,) = err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_an_unknown_key_only_warns(run: Any, tmp_path: Path) -> None:
    hparams = write(tmp_path / "typo.yaml", TEMPLATES + "v_lrr: 0.5\n")
    code, out, err = run("edit", *EDIT, "--target", "Rome", "--hparams", hparams, "--json")
    assert code == 0
    assert json.loads(out)["summary"]
    (line,) = err.strip().splitlines()
    assert line.startswith("warning: ")
    assert "v_lrr" in line


def test_an_incomplete_command_says_what_is_missing(run: Any) -> None:
    code, _, err = run("edit", "--prompt", "{} is in", "--subject", "Oslo")
    assert code == 2
    assert "--target missing" in err


def test_the_demo_models_folder_is_not_touched(demo_model: Any) -> None:
    names = {path.name for path in demo_folder().iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
