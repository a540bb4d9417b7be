"""SERAC: an edit memory, a scope that routes prompts to its edits, a counterfactual model.

Nothing is imported before it is used: a memory's file is listed without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from easyedit_fast.serac.edit import MemoryEdit
    from easyedit_fast.serac.hparams import SERACHparams
    from easyedit_fast.serac.memory import EditMemory, Nearest
    from easyedit_fast.serac.serac import Serac
    from easyedit_fast.serac.store import EditStore, SqliteStore, StoredEdit

_HOMES = {
    "EditMemory": "memory",
    "EditStore": "store",
    "MemoryEdit": "edit",
    "Nearest": "memory",
    "SERACHparams": "hparams",
    "Serac": "serac",
    "SqliteStore": "store",
    "StoredEdit": "store",
}

__all__ = [
    "EditMemory",
    "EditStore",
    "MemoryEdit",
    "Nearest",
    "SERACHparams",
    "Serac",
    "SqliteStore",
    "StoredEdit",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'easyedit_fast.serac' has no attribute {name!r}")
    return getattr(importlib.import_module(f"easyedit_fast.serac.{home}"), name)
