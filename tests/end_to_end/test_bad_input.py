"""Bad input on the command line: one line on stderr, exit code 2, nothing on stdout."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import easyedit_fast
from easyedit_fast.data import loader_status
from easyedit_fast.edits import Edit
from easyedit_fast.models.architectures import LLAMA
from easyedit_fast.requests import EditRequest
from easyedit_fast.updates import LowRankUpdate

EDIT = ["--prompt", "The Eiffel Tower is located in the city of", "--subject", "Eiffel Tower"]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def saved_edit(folder: Path) -> Path:
    """A file as `Edit.save` writes it, of one rank-one update of the demo model's size."""
    factors = torch.ones(576, 1), torch.ones(1, 1536)
    edit = Edit(
        {"model.layers.5.mlp.down_proj.weight": LowRankUpdate(*factors, "out_in")},
        requests=[EditRequest(prompt="{} is in", subject="Oslo", target_new="Chile")],
        method="rome",
        model_fingerprint="0" * 64,
        architecture=LLAMA,
    )
    edit.save(folder / "edit.safetensors")
    return folder / "edit.safetensors"


def saved_moment(folder: Path) -> Path:
    """Statistics as EasyEdit saves them, compressed."""
    keys = np.random.default_rng(0).normal(size=(200, 100))
    values: dict[str, Any] = {"mom2.mom2": keys.T @ keys, "mom2.count": np.int64(200)}
    np.savez_compressed(folder / "c.npz", **values)
    return folder / "c.npz"


def two_requests(folder: Path) -> Path:
    records = [{"prompt": "{} is in", "subject": "Oslo", "target_new": t} for t in ("A", "B")]
    return write(folder / "requests.json", json.dumps(records))


def truncated(path: Path) -> Path:
    """The file without its last third, as an interrupted copy leaves it."""
    return write(path, path.read_bytes()[: -path.stat().st_size // 3])


def overwritten(path: Path, start: int) -> Path:
    """The file with 16 bytes of another value from `start` on."""
    content = path.read_bytes()
    flipped = bytes(byte ^ 0xFF for byte in content[start : start + 16])
    return write(path, content[:start] + flipped + content[start + 16 :])


BAD_INPUTS: dict[str, tuple[Any, str]] = {
    "subject not in prompt": (
        lambda tmp: ["edit", "--prompt", "It is in", "--subject", "Oslo", "--target", "Chile"],
        "subject 'Oslo' is not in the prompt",
    ),
    "no number": (
        lambda tmp: ["edit", *EDIT, "--target", "Rome", "--layers", "five"],
        "--layers 'five' is no list of numbers; see 'easyedit-fast edit --help'",
    ),
    "unknown command": (lambda tmp: ["edti"], "No such command 'edti'"),
    "option without a value": (
        lambda tmp: ["edit", "--prompt"],
        "Option '--prompt' requires an argument; see 'easyedit-fast",
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
    "YAML of another method": (
        lambda tmp: ["edit", *EDIT, "--target", "Rome", "--hparams", "MEND/llama-7b"],
        "MEND/llama-7b: is for 'MEND' (alg_name), not for ROME; give a file of your own for ROME",
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
    "truncated edit": (
        lambda tmp: ["apply", truncated(saved_edit(tmp))],
        "edit.safetensors is damaged",
    ),
    "edit with a damaged header": (
        lambda tmp: ["apply", overwritten(saved_edit(tmp), 300)],
        "edit.safetensors is damaged",
    ),
    "edit of nothing": (
        lambda tmp: ["export", tmp / "none.safetensors"],
        "there is no edit file",
    ),
    "truncated statistics": (
        lambda tmp: [
            "edit", *EDIT, "--target", "Rome", "--second-moment", truncated(saved_moment(tmp)),
        ],
        "c.npz is damaged",
    ),
    "damaged statistics": (
        lambda tmp: [
            "edit", *EDIT, "--target", "Rome", "--second-moment",
            overwritten(saved_moment(tmp), 20_000),
        ],
        "c.npz is damaged",
    ),
    "wrong type in YAML, a layer given": (
        lambda tmp: [
            "edit", *EDIT, "--target", "Rome", "--layers", "5",
            "--hparams", write(tmp / "a.yaml", "v_lr: fast\n"),
        ],
        "a.yaml; given: layers: v_lr: must be a valid number",
    ),
    "model of the hyperparameters": (
        lambda tmp: [
            "edit", *EDIT, "--target", "Rome",
            "--hparams", write(tmp / "a.yaml", "model_name: ./nowhere\n"),
        ],
        "there is no folder './nowhere'",
    ),
    "a system error": (
        lambda tmp: ["export", saved_edit(tmp), "--peft", tmp / ("x" * 300)],
        "File name too long",
    ),
    "missing statistics": (
        lambda tmp: ["edit", *EDIT, "--target", "Rome", "--second-moment", tmp / "none.npz"],
        "no second-moment file",
    ),
}  # fmt: skip


UNKNOWN_MODEL = ["--model", "./nowhere"]  # its error would come first, were the model loaded
BAD_DESTINATIONS: dict[str, tuple[Any, str]] = {
    "edit onto a folder": (
        lambda tmp: ["edit", *EDIT, "--target", "Rome", *UNKNOWN_MODEL, "--save", tmp],
        "is a folder; give the name of a file",
    ),
    "edit into a missing folder": (
        lambda tmp: [
            "edit", *EDIT, "--target", "Rome", *UNKNOWN_MODEL, "--save", tmp / "no" / "edit",
        ],
        "create it first",
    ),
    "isolated edits onto a file": (
        lambda tmp: [
            "edit", "--file", two_requests(tmp), "--isolated", *UNKNOWN_MODEL,
            "--save", write(tmp / "edits", ""),
        ],
        "--save: ",
    ),
    "adapter onto a file": (
        lambda tmp: [
            "edit", *EDIT, "--target", "Rome", *UNKNOWN_MODEL, "--peft", write(tmp / "a", ""),
        ],
        "--peft: ",
    ),
    "adapter under a file": (
        lambda tmp: ["export", saved_edit(tmp), "--peft", write(tmp / "a", "") / "adapter"],
        "is a file; give the name of a folder",
    ),
    "model onto a file": (
        lambda tmp: [
            "edit", *EDIT, "--target", "Rome", *UNKNOWN_MODEL,
            "--save-model", write(tmp / "a", ""),
        ],
        "--save-model: ",
    ),
    "applied model onto a file": (
        lambda tmp: [
            "apply", saved_edit(tmp), *UNKNOWN_MODEL, "--save-model", write(tmp / "a", ""),
        ],
        "--save-model: ",
    ),
}  # fmt: skip
BAD_INPUTS.update(BAD_DESTINATIONS)


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_is_one_line_and_exit_code_2(case: str, run: Any, tmp_path: Path) -> None:
    arguments, message = BAD_INPUTS[case]
    code, out, err = run(*arguments(tmp_path))
    assert (code, out) == (2, "")
    (line,) = err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line


@pytest.mark.filterwarnings("default")
def test_an_unknown_key_only_warns(run: Any, tmp_path: Path) -> None:
    hparams = tmp_path / "typo.yaml"
    hparams.write_text("context_templates: ['{}']\nv_num_grad_steps: 20\nv_lrr: 0.5\n")
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


def test_an_unknown_choice_of_kernels(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EASYEDIT_FAST_KERNELS", "foo")
    code, out, err = run("doctor")
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("error: EASYEDIT_FAST_KERNELS must be one of auto, native, reference")


def test_a_loader_without_a_version_is_said(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(easyedit_fast, "_loader", ModuleType("easyedit_fast._loader"))
    monkeypatch.setitem(sys.modules, "easyedit_fast._loader", easyedit_fast._loader)
    loader_status.cache_clear()
    try:
        code, out, _ = run("doctor", "--json")
        loader = json.loads(out)["loader"]
    finally:
        loader_status.cache_clear()
    assert code == 0
    assert (loader["loaded"], loader["version"]) == (False, None)
    assert "the module has no version" in loader["reason"]


def test_an_interruption_is_quiet(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Edit, "load", interrupted)
    assert run("export", tmp_path / "edit.safetensors") == (130, "", "")
