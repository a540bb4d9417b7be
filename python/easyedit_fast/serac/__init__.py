"""SERAC: an edit memory, a scope that routes prompts to its edits, a counterfactual model."""

from easyedit_fast.serac.edit import MemoryEdit
from easyedit_fast.serac.hparams import SERACHparams
from easyedit_fast.serac.memory import EditMemory, Nearest
from easyedit_fast.serac.serac import Serac
from easyedit_fast.serac.store import EditStore, SqliteStore, StoredEdit

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
