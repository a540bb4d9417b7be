"""``easyedit-fast train`` on the real model; the slow ones kill it, and run it in two processes."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from easyedit_fast.training.logs import read_log
from tests.end_to_end.killing import killed_and_compared

KEYS: dict[str, Any] = {
    "inner_params": [f"model.layers.29.mlp.{part}_proj.weight" for part in ("up", "down")],
    "rank": 4,
    "edit_lr": -1e-4,
    "lr": 1e-4,
    "batch_size": 4,
    "n_edits": 2,
    "max_iters": 6,
    "val_interval": 3,
    "log_interval": 1,
    "model_save_pt": 1,
}
NAMES = ["Anna", "Boris", "Clara", "David", "Emma", "Fritz", "Greta", "Hugo", "Ines", "Jakob"]
CITIES = ["Rome", "Paris", "London", "Berlin", "Madrid", "Vienna", "Oslo", "Athens"]


def write_records(path: Path, number: int) -> Path:
    """Facts of persons that nobody knows."""
    lines = []
    for place in range(number):
        name, city = NAMES[place % 10] + "son", CITIES[place % 8]
        lines.append(
            {
                "prompt": f"{name} number {place} lives in",
                "subject": name,
                "target_new": city,
                "rephrase_prompt": f"The home of {name} number {place} is",
                "locality_prompt": f"Mr {CITIES[(place + 3) % 8]} was born in",
                "locality_ground_truth": CITIES[(place + 1) % 8],
            }
        )
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Records, hyperparameters, and a cache of the test's own."""
    cache = tmp_path / "cache"
    monkeypatch.setattr("easyedit_fast.training.trunk_cache.cache_folder", lambda: cache)
    (tmp_path / "keys.yaml").write_text(json.dumps(KEYS))
    return [
        "--file", str(write_records(tmp_path / "train.jsonl", 20)),
        "--validation", str(write_records(tmp_path / "val.jsonl", 5)),
        "--hparams", str(tmp_path / "keys.yaml"),
    ]  # fmt: skip


def test_an_editor_is_trained_and_used(run: Any, given: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    code, text, err = run("train", *given, "--out", out, "--plot", "--json")
    assert (code, err) == (0, "")
    report = json.loads(text)
    assert (report["iterations"], report["resumed"]) == (6, 0)
    assert report["best_iteration"] in (3, 6)
    assert report["values"]["n_tokens/pre_val"] == report["values"]["n_tokens/post_val"] == 5
    assert Path(report["plot"]).stat().st_size > 10_000
    assert [line["iteration"] for line in read_log(out)] == [1, 2, 3, 3, 4, 5, 6, 6]
    code, text, err = run("train", *given, "--out", out)
    assert code == 0
    assert "6 iterations in" in text
    assert "6 of them before" in text
    edit = ["--prompt", "Annason number 0 lives in", "--subject", "Annason", "--target", "Rome"]
    code, text, err = run(
        "edit", "--method", "mend", "--archive", report["editor"], *edit, "--json"
    )
    assert (code, err) == (0, "")


def test_parts_of_files(run: Any, given: list[str], tmp_path: Path) -> None:
    """Slices are records of the file, and a tenth is kept where no others are given."""
    train, hparams = given[1], given[5]
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
        (["--file", "TRAIN[:3]"], "3 records for batches of 4"),
    ],
)
def test_bad_input_is_one_line(
    run: Any, given: list[str], tmp_path: Path, change: list[str], message: str
) -> None:
    bad = tmp_path / "bad.jsonl"
    good = json.loads(Path(given[1]).read_text().splitlines()[0])
    bare = {key: good[key] for key in ("prompt", "subject", "target_new")}
    bad.write_text("".join(f"{json.dumps(line)}\n" for line in (good, bare)))
    change = [part.replace("TRAIN", given[1]).replace("BAD", str(bad)) for part in change]
    kept = [part for at, part in enumerate(given) if given[at - at % 2] != change[0]]
    code, out, err = run("train", *kept, *change, "--out", tmp_path / "run")
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


@contextlib.contextmanager
def process(given: list[str], out: Path, *launcher: str) -> Iterator[subprocess.Popen[bytes]]:
    """The command in processes of its own, which have ended when this ends."""
    command = [sys.executable, *(launcher or ("-m",)), "easyedit_fast", "train", *given]
    environment = {
        **os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""
    }  # fmt: skip
    log = out.with_suffix(".err")
    with log.open("wb") as errors, subprocess.Popen(
        [*command, "--out", str(out), "--no-plot", "--json"],
        env=environment, stderr=errors, stdout=errors,
    ) as run:  # fmt: skip
        yield run
    assert run.returncode in (0, -signal.SIGKILL), log.read_text()


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_editor(
    given: list[str], tmp_path: Path, demo_model: Any
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
        functools.partial(process, given), tmp_path / "whole", tmp_path / "killed", kills=10,
        earliest=0.4, compare=compare, remove=remove,
    )  # fmt: skip


@pytest.mark.slow
def test_two_processes_give_one_process_losses(
    given: list[str], tmp_path: Path, demo_model: Any
) -> None:
    with process(given, tmp_path / "one"):
        pass
    with process(
        given, tmp_path / "two", "-m", "torch.distributed.run", "--standalone",
        "--nproc_per_node", "2", "-m",
    ):  # fmt: skip
        pass
    one, two = (read_log(tmp_path / name) for name in ("one", "two"))
    assert len(one) == len(two) == 8
    for wanted, got in zip(one, two, strict=True):
        assert wanted.keys() == got.keys()
        for name in wanted:
            if name != "seconds" and not name.startswith("time/"):
                assert got[name] == pytest.approx(wanted[name], rel=1e-3, abs=1e-5), name
    first, second = (load_file(tmp_path / name / "editor.safetensors") for name in ("one", "two"))
    for key in first:
        assert (first[key] - second[key]).norm() <= 1e-3 * first[key].norm() + 1e-6, key
