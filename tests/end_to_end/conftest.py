"""The command line, run in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from easyedit_fast.cli import main
from tests.end_to_end.training import KEYS, write_records

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


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of a small training run: records and hyperparameters; this process has a cache of its own."""
    cache = tmp_path / "cache"
    monkeypatch.setattr("easyedit_fast.training.trunk_cache.cache_folder", lambda: cache)
    (tmp_path / "keys.yaml").write_text(json.dumps(KEYS))
    return [
        "--file", str(write_records(tmp_path / "train.jsonl", 20)),
        "--validation", str(write_records(tmp_path / "val.jsonl", 5)),
        "--hparams", str(tmp_path / "keys.yaml"),
    ]  # fmt: skip
