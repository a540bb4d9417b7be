"""``easyedit-fast train`` in two processes: their losses, their end, and what ends them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from easyedit_fast.training.logs import read_log
from tests.end_to_end.training import KEYS, SERAC_KEYS, lines_of, process

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")

# Steps where a record of the second process alone has activations that are NaN.
NAN_JOB = """
import sys
from pathlib import Path

import torch

from easyedit_fast.errors import NonFiniteError
from easyedit_fast.models.loading import load_model
from easyedit_fast.processes import rank_and_ranks
from tests.unit.test_mend_training import trainee

rank, _ = rank_and_ranks()
folder = Path(sys.argv[1])
learner = trainee(load_model("demo", device="cpu"), folder, n_edits=2, vary_n_edits=False)
learner.step(learner.prepare(0, [0, 1, 2, 3]))
batch = learner.prepare(1, [5, 4, 3, 1])
if rank == 1:
    batch.edits.tail.entering[0] = torch.nan
try:
    learner.step(batch)
except NonFiniteError as error:
    (folder / f"{rank}.txt").write_text(f"{batch.places}: {error}")
"""

pytestmark = pytest.mark.slow


METHODS = {"mend": KEYS, "serac": SERAC_KEYS}


def choose(options: list[str], method: str, **changes: Any) -> None:
    """Has a run of a method, with other hyperparameters than its small ones."""
    path = Path(options[options.index("--hparams") + 1])
    path.write_text(json.dumps({**METHODS[method], **changes}))
    options += ["--method", method]


@pytest.mark.parametrize(("method", "accumulate"), [("mend", 1), ("mend", 2), ("serac", 2)])
def test_they_give_one_process_losses(
    options: list[str], tmp_path: Path, demo_model: Any, method: str, accumulate: int
) -> None:
    choose(options, method, accumulate_bs=accumulate, val_interval=2, model_save_pt=2)
    with process(options, tmp_path / "one"):
        pass
    with process(options, tmp_path / "two", *LAUNCHER, "-m"):
        pass
    one, two = (read_log(tmp_path / name) for name in ("one", "two"))
    assert len(one) == len(two) == 9
    for wanted, got in zip(one, two, strict=True):
        assert wanted.keys() == got.keys()
        for name in wanted:
            if name != "seconds" and not name.startswith("time/"):
                assert got[name] == pytest.approx(wanted[name], rel=1e-3, abs=1e-5), name
    first, second = (load_file(tmp_path / name / "editor.safetensors") for name in ("one", "two"))
    for key in first:
        # Adam divides by the size of a gradient: where that is all rounding, single numbers differ.
        assert (first[key] - second[key]).abs().sum() <= 1e-2 * first[key].abs().sum() + 1e-6, key


@pytest.mark.parametrize(("method", "iterations"), [("mend", 30), ("serac", 12)])
def test_they_go_on_where_one_was_killed(
    options: list[str], tmp_path: Path, demo_model: Any, method: str, iterations: int
) -> None:
    """The other one ends too; the next run goes on, to the same editor bit for bit."""
    choose(options, method, max_iters=iterations, val_interval=iterations // 3)
    with process(options, tmp_path / "whole", *LAUNCHER, "-m"):
        pass
    folder = tmp_path / "killed"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [launched(rank, port, options, folder) for rank in (0, 1)]
    try:
        deadline = time.monotonic() + 240
        while lines_of(folder) < 3:
            assert time.monotonic() < deadline
            assert [one.poll() for one in both] == [None, None]
            time.sleep(0.05)
        both[1].kill()
        _, errors = both[0].communicate(timeout=120)
        assert both[0].returncode not in (0, None), errors
    finally:
        for one in both:
            one.kill()
            one.communicate()
    assert lines_of(folder) < iterations
    with process(options, folder, *LAUNCHER, "-m"):
        pass
    told = folder.with_suffix(".err").read_text()
    report = json.loads(told[told.index("{\n") :])
    assert 2 <= report["resumed"] < iterations
    for name in ("editor.safetensors", "checkpoint.safetensors"):
        one, other = (load_file(tmp_path / part / name) for part in ("whole", "killed"))
        assert all(torch.equal(one[key], other[key]) for key in one)


def launched(rank: int, port: int, options: list[str], out: Path) -> subprocess.Popen[str]:
    """One of two processes, without a launcher that would end the other."""
    return subprocess.Popen(
        [sys.executable, "-m", "easyedit_fast", "train", *options, "--out", str(out), "--no-plot"],
        env={
            **os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        },
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_both_name_the_record_that_is_not_finite_in_one(tmp_path: Path, demo_model: Any) -> None:
    script = tmp_path / "job.py"
    script.write_text(NAN_JOB)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *LAUNCHER, str(script), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = ((tmp_path / f"{rank}.txt").read_text() for rank in (0, 1))
    assert first.startswith("[5, 4]: record 3: its activations")
    assert second.startswith("[3, 1]: record 3: its activations")
