"""The folder for what the package computes once and keeps."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """The user's cache folder of this package; it need not exist yet.

    ``$EASYEDIT_FAST_CACHE`` where it is set, else ``easyedit-fast`` in ``$XDG_CACHE_HOME`` or in
    ``~/.cache``.
    """
    chosen = os.environ.get("EASYEDIT_FAST_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path.home() / ".cache") / "easyedit-fast"
