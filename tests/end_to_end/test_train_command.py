"""``easyedit-fast train`` on the real model; the slow ones kill it, and run it in two processes."""

from __future__ import annotations

import functools
import json
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from easyedit_fast.mend.editor_files import read_card
from easyedit_fast.training.checkpoint import Checkpoint
from easyedit_fast.training.logs import read_log
from tests.end_to_end.killing import killed_and_compared
from tests.end_to_end.training import KEYS, lines_of, process


def test_an_editor_is_trained_and_used(run: Any, options: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, text, err = run("train", *options, "--out", out, "--plot", "--json")
    assert (code, err) == (0, "")
    report = json.loads(text)
    assert (report["iterations"], report["resumed"]) == (6, 0)
    assert report["best_iteration"] in (3, 6)
    assert report["values"]["n_tokens/pre_val"] == report["values"]["n_tokens/post_val"] == 5
    assert Path(report["plot"]).stat().st_size > 10_000
    assert [line["iteration"] for line in read_log(out)] == [1, 2, 3, 3, 4, 5, 6, 6]
    code, text, err = run("train", *options, "--out", out, "--max-iters", 7)
    assert code == 0
    assert "7 iterations in" in text
    assert "6 of them before" in text
    code, text, err = run("train", *options, "--file", options[3], "--out", out, "--max-iters", 7)
    assert (code, text, err.count("\n")) == (2, "", 1)
    assert "belongs to another run: its records differ (the data file changed" in err
    edit = ["--prompt", "Annason number 0 lives in", "--subject", "Annason", "--target", "Rome"]
    code, text, err = run(
        "edit", "--method", "mend", "--archive", report["editor"], *edit, "--json"
    )
    assert (code, err) == (0, "")
    for archive, remedy in (
        (out, f"is a folder; name its editor: {report['editor']}"),
        (tmp_path, "is a folder; name the file of an editor"),
        (
            out / "checkpoint.safetensors",
            "is a training checkpoint, and no MEND editor; name the editor.safetensors beside it",
        ),
    ):
        refused = run("edit", "--method", "mend", "--archive", archive, *edit)
        assert refused == (2, "", f"error: {archive} {remedy}\n")


def test_parts_of_files(run: Any, options: list[str], tmp_path: Path) -> None:
    """Slices are records of the file, and a tenth is kept where no others are given."""
    train, hparams = options[1], options[5]
    more = [
        "--hparams",
        hparams,
        "--out",
        tmp_path / "run",
        "--max-iters",
        "1",
        "--no-plot",
        "--json",
    ]
    code, text, err = run("train", "--file", f"{train}[2:8]", "--file", f"{train}[10:]", *more)
    assert (code, err) == (0, "")
    header = json.loads((tmp_path / "run" / "log.jsonl.run.json").read_text())
    assert header["about"]["records"] == 15
    assert header["about"]["validation_records"] == 1
    assert header["about"]["data"] == ["train.jsonl[2:8]", "train.jsonl[10:]"]
    assert json.loads(text)["plot"] is None


def test_records_without_a_locality_prompt_can_be_left_out(
    run: Any, options: list[str], tmp_path: Path
) -> None:
    path = Path(options[1])
    good = [json.loads(line) for line in path.read_text().splitlines()]
    bare = {key: good[0][key] for key in ("prompt", "subject", "target_new")}
    path.write_text("".join(f"{json.dumps(line)}\n" for line in (bare, *good)))
    more = ["--out", tmp_path / "run", "--max-iters", "1", "--no-plot"]
    code, _, err = run("train", *options, *more, "--skip-bad")
    assert code == 0
    assert "warning: left out: record 0 of train.jsonl: has no locality prompt" in err
    header = json.loads((tmp_path / "run" / "log.jsonl.run.json").read_text())
    assert header["about"]["records"] == 20


def test_the_demo_model_has_hyperparameters_of_its_own(
    run: Any, options: list[str], tmp_path: Path
) -> None:
    more = ["--out", tmp_path / "run", "--max-iters", "1", "--no-plot"]
    code, _, err = run("train", *options[:4], *more)
    assert code == 0
    assert re.fullmatch(r"iteration 1 of 1, loss [\d.]+, 0:00:00 left\n", err)
    assert read_card(tmp_path / "run" / "editor.safetensors")["training"]["rank"] == 96


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--file", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--file", "TRAIN[5:2]"], "write the lower number first"),
        (["--file", "BAD"], "record 1 of bad.jsonl, field 'locality': has no locality prompt"),
        (["--validation", "BAD"], "record 1 of bad.jsonl, field 'locality'"),
        (["--method", "rome"], "rome needs no training"),
        (["--method", "mned"], "did you mean 'mend'"),
        (["--dtype", "float16"], "gradients vanish in float16"),
        (["--hparams", "ROME/llama-7b"], "is for 'ROME' (alg_name), not for MEND"),
        (["--hparams", "MEND/nope"], "TRAINING/MEND/ with one of: baichuan-7b, "),
        (["--file", "TRAIN[:3]"], "3 records for batches of 4"),
        (["--file", "."], ".: is no regular file; name a .json or .jsonl file"),
        (["--out", "/proc/run/1"], "--out: '/proc/run/1' cannot be made in '/proc' ("),
    ],
)
def test_bad_input_is_one_line(
    run: Any, options: list[str], tmp_path: Path, change: list[str], message: str
) -> None:
    bad = tmp_path / "bad.jsonl"
    good = json.loads(Path(options[1]).read_text().splitlines()[0])
    bare = {key: good[key] for key in ("prompt", "subject", "target_new")}
    bad.write_text("".join(f"{json.dumps(line)}\n" for line in (good, bare)))
    change = [part.replace("TRAIN", options[1]).replace("BAD", str(bad)) for part in change]
    kept = [part for at, part in enumerate(options) if options[at - at % 2] != change[0]]
    code, out, err = run("train", "--out", tmp_path / "run", *kept, *change)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"n_edits": 9}, "n_edits (9) is more than the batch has (4); raise batch_size"),
        ({"half": "yes"}, "half: must be a valid boolean, got 'yes'"),
    ],
)
def test_hyperparameters_are_checked_before_the_model_is_loaded(
    run: Any, options: list[str], keys: dict[str, Any], message: str
) -> None:
    path = Path(options[5])
    path.write_text(json.dumps({**KEYS, **keys}))
    code, out, err = run("train", *options, "--model", "nowhere/at/all")
    assert (code, out, err) == (2, "", f"error: {path}: {message}\n")


@pytest.mark.slow
@pytest.mark.usefixtures("heeded_signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_one_line(
    options: list[str], tmp_path: Path, demo_model: Any, number: int, code: int
) -> None:
    keys = {**KEYS, "max_iters": 10**6, "val_interval": 10**6, "model_save_pt": 10}
    Path(options[5]).write_text(json.dumps(keys))
    folder = tmp_path / "run"
    for lines in (15, 40):  # the second run goes on
        with process(options, folder, ends=(code,)) as run:
            deadline = time.monotonic() + 90
            while lines_of(folder) < lines:
                assert run.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            run.send_signal(number)
        (line,) = folder.with_suffix(".err").read_text().splitlines()
        form = (
            r"stopped at iteration (\d+); the last checkpoint is of iteration (\d+); the same "
            "command goes on from there"
        )
        told = re.fullmatch(form, line)
        assert told is not None, line
        at, kept = map(int, told.groups())
        assert kept == Checkpoint.read(folder / "checkpoint.safetensors").told["iteration"]
        assert lines - 10 <= kept <= at


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_editor(
    options: list[str], tmp_path: Path, demo_model: Any
) -> None:
    def compare() -> None:
        for name in ("editor.safetensors", "checkpoint.safetensors"):
            one, other = (load_file(tmp_path / part / name) for part in ("whole", "killed"))
            assert all(torch.equal(one[key], other[key]) for key in one)
        one, other = (read_log(tmp_path / part) for part in ("whole", "killed"))
        assert [line["iteration"] for line in one] == [line["iteration"] for line in other]

    def remove() -> None:
        for path in (tmp_path / "killed").glob("*.*"):
            path.unlink()

    killed_and_compared(
        functools.partial(process, options), tmp_path / "whole", tmp_path / "killed", kills=10,
        earliest=0.4, compare=compare, remove=remove,
    )  # fmt: skip
