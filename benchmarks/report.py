"""What every benchmark writes down: the machine, the versions and one table, as Markdown."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


def machine() -> str:
    """CPU (and GPU), threads and versions, in one line."""
    cpu = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.is_file():
        names = [line for line in information.read_text().splitlines() if "model name" in line]
        cpu = names[0].split(":", 1)[1].strip() if names else cpu
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("easyedit-fast", "torch", "transformers")
    )
    threads = torch.get_num_threads()
    return f"{cpu}{gpu}, {torch.backends.cpu.get_cpu_capability()}, {threads} threads, {versions}"


def write(
    name: str,
    title: str,
    command: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str] = (),
) -> None:
    """Writes ``results/<name>.md`` and prints it."""
    lines = [
        f"# {title}",
        "",
        f"`{command}`, {dt.datetime.now(dt.timezone.utc):%Y-%m-%d}",
        "",
        machine(),
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        *notes,
    ]
    text = "\n".join(lines).rstrip() + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text)
    print(text)
