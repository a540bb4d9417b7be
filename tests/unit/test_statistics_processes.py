"""Collecting second moments in two processes: one process's sums, whoever has which files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from easyedit_fast.moments import read_second_moment

ROOT = Path(__file__).resolve().parents[2]
JOB = """
import json, sys
from pathlib import Path
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from easyedit_fast.moments import collect, collect_statistics
from easyedit_fast.processes import rank_and_ranks
from tests.unit.test_statistics import RandomCorpus
from tests.unit.tiny_models import tiny_model

collect._CHUNK_TOKENS = 48
words = Tokenizer(WordLevel({"a": 5, "</s>": 2}, unk_token="a"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>")
rank, ranks = rank_and_ranks()
folder = Path(sys.argv[1]) / str(rank)

def collect_layers(layers):
    collect_statistics(
        tiny_model(), tokenizer, RandomCorpus(235), layers, tokens=235, block_length=24,
        folder=folder,
    )

collect_layers([1])
# As on machines without a common folder, only the first process has the file of layer 1.
collect_layers([1, 2])
(folder.parent / f"{rank}.json").write_text(json.dumps([rank, ranks]))
"""


def run(folder: Path, *launcher: str) -> None:
    folder.mkdir()
    script = folder / "job.py"
    script.write_text(JOB)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *launcher, str(script), str(folder)],
        env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_processes_give_the_sums_of_one(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    run(one)
    run(two, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    assert [json.loads((two / f"{rank}.json").read_text()) for rank in (0, 1)] == [[0, 2], [1, 2]]
    files = sorted(one.rglob("*.npz"))
    assert len(files) == 2
    for path in files:
        wanted, got = (read_second_moment(at) for at in (path, two / path.relative_to(one)))
        assert got.count == wanted.count == 235
        assert (got.matrix - wanted.matrix).norm() <= 1e-14 * wanted.matrix.norm()
    assert not list((two / "1").rglob("*.npz")), "the first process writes"
    assert not list(two.rglob("*.checkpoint"))
