"""``easyedit-fast stats`` on the real model; the slow one kills it."""

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

from easyedit_fast.moments import read_second_moment
from tests.end_to_end.killing import killed_and_compared

LINE = "The river runs past the old town, and nobody knows how deep it is.\n"
JOB = """
import sys
from easyedit_fast.data import TextFiles
from easyedit_fast.models.loading import load_model
from easyedit_fast.moments import collect, collect_statistics

collect._CHUNK_TOKENS = 512
model, tokenizer = load_model("demo", device="cpu")
text, folder = sys.argv[1:]
collect_statistics(
    model, tokenizer, TextFiles.of(text), [1, 2], tokens=12 * 512, block_length=128,
    folder=folder, checkpoint_seconds=0,
)
"""


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "river.txt"
    path.write_text("".join(f"{number}. {LINE}" for number in range(2000)))
    return path


def test_statistics_are_collected_and_told(run: Any, text: Path, tmp_path: Path) -> None:
    arguments = ("stats", "--model", "demo", "--text", text, text, "--layers", "1-2",
                 "--tokens", "1024", "--out", tmp_path)  # fmt: skip
    code, out, err = run(*arguments, "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert [row["layer"] for row in report["statistics"]] == [1, 2]
    for row in report["statistics"]:
        assert read_second_moment(row["file"]).count == row["tokens"] == 1024
    code, out, err = run(*arguments)
    assert code == 0
    assert "Second moments" in out
    code, out, err = run("edit", "--prompt", "The Eiffel Tower is in", "--subject", "Eiffel Tower",
                         "--target", "Rome", "--second-moment", report["statistics"][1]["file"],
                         "--layers", "1")  # fmt: skip
    assert (code, out) == (2, "")
    assert "was collected for model.layers.2.mlp.down_proj" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give text files"),
        (["--text", "nowhere.txt"], "there is no text file 'nowhere.txt'"),
        (["--text", "TEXT", "--dataset", "wikitext"], "give text files"),
        (["--text", "TEXT", "--layers", "x"], "no list of numbers"),
        (["--text", "TEXT", "--layers", "77"], "77"),
        (["--text", "TEXT", "--layers", "3-1"], "names no layer"),
        (["--text", "TEXT", "--block-length", "1"], "block-length"),
    ],
)
def test_bad_input_is_one_line(
    run: Any, text: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    given = [str(text) if part == "TEXT" else part for part in arguments]
    code, out, err = run("stats", "--out", tmp_path / "out", *given)
    assert (code, out) == (2, "")
    assert message in err
    assert not list(tmp_path.rglob("*.npz"))


@contextlib.contextmanager
def job(text: Path, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The job in a process of its own, which has ended when this ends."""
    script, log = text.with_name("job.py"), text.with_name("job.log")
    script.write_text(JOB)
    command = [sys.executable, str(script), str(text), str(folder)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("w") as errors, subprocess.Popen(command, env=environment, stderr=errors) as run:
        yield run
    assert run.returncode in (0, -signal.SIGKILL), log.read_text()


def compare(one: Path, other: Path) -> None:
    """Holds the statistics of two folders, two files each, to each other."""
    pairs = list(zip(sorted(one.rglob("*.npz")), sorted(other.rglob("*.npz")), strict=True))
    assert len(pairs) == 2
    for first, second in pairs:
        wanted, got = (read_second_moment(path).matrix for path in (first, second))
        assert torch.equal(got, wanted)


@pytest.mark.slow
def test_killed_at_random_moments_it_loses_nothing(
    text: Path, tmp_path: Path, demo_model: Any
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def remove() -> None:
        for path in killed.rglob("*.npz"):
            path.unlink()

    killed_and_compared(
        functools.partial(job, text), whole, killed, kills=20, earliest=0.2,
        compare=lambda: compare(whole, killed), remove=remove,
    )  # fmt: skip
