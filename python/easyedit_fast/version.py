"""Versions: of the package, and of those that results depend on."""

from __future__ import annotations

import importlib.metadata

__version__ = importlib.metadata.version("easyedit-fast")


def installed_versions() -> dict[str, str]:
    """Versions of this package, of torch and of transformers."""
    names = ("easyedit-fast", "torch", "transformers")
    return {name: importlib.metadata.version(name) for name in names}
