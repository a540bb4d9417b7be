"""Versions: of the package, and of those that results depend on."""

from __future__ import annotations

import functools
import importlib.metadata

__version__ = importlib.metadata.version("easyedit-fast")


def installed_versions() -> dict[str, str]:
    """Versions of this package, of torch and of transformers."""
    return {name: _version(name) for name in ("easyedit-fast", "torch", "transformers")}


@functools.cache  # each is read from a file
def _version(name: str) -> str:
    return importlib.metadata.version(name)
