"""The command line, run in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from easyedit_fast.cli import main

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
