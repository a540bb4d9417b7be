"""matplotlib, which draws every plot and which the extra ``plots`` brings."""

from __future__ import annotations

import importlib.util

from easyedit_fast.errors import MissingPackageError


def require_matplotlib() -> None:
    """Says how to get matplotlib where it is not there.

    Raises:
        MissingPackageError: It is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingPackageError(
            'a plot needs matplotlib; run: pip install "easyedit-fast[plots]"'
        )
