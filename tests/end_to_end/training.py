"""A small training run of ``easyedit-fast train``."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
SERAC_KEYS: dict[str, Any] = {
    "cls_rank": 4,
    "cntr_rank": 4,
    **{name: KEYS[name] for name in ("batch_size", "max_iters", "val_interval", "log_interval")},
    "cntr_batch_size": 3,
    "model_save_pt": 1,
    "lr": 1e-3,
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


def lines_of(folder: Path) -> int:
    """Of the log so far; its first line comes with what describes the run."""
    log = folder / "log.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


@contextlib.contextmanager
def process(
    given: list[str], out: Path, *launcher: str, ends: tuple[int, ...] = (0, -signal.SIGKILL)
) -> Iterator[subprocess.Popen[bytes]]:
    """The command in processes of its own, which have ended when this ends, in one of some ways."""
    command = [sys.executable, *(launcher or ("-m",)), "easyedit_fast", "train", *given]
    environment = {
        **os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""
    }  # fmt: skip
    log = out.with_suffix(".err")
    with log.open("wb") as errors, subprocess.Popen(
        [*command, "--out", str(out), "--no-plot", "--json"],
        env=environment, stderr=errors, stdout=errors,
    ) as run:  # fmt: skip
        try:
            yield run
        except BaseException:
            run.kill()
            raise
    assert run.returncode in ends, log.read_text()
