"""easyedit-fast: edit facts inside causal language models, one or thousands at a time.

Nothing heavy is imported before it is used: ``import easyedit_fast`` brings in neither torch nor
transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from easyedit_fast.data import (
        HubDataset,
        RequestList,
        RequestTokenizer,
        TextFiles,
        read_requests,
    )
    from easyedit_fast.editor import Editor
    from easyedit_fast.edits import Edit
    from easyedit_fast.mend.hparams import MENDHyperParams, MENDTrainingHparams
    from easyedit_fast.models.architectures import Architecture
    from easyedit_fast.moments import collect_statistics
    from easyedit_fast.requests import EditRequest, Probe
    from easyedit_fast.results import EditResult
    from easyedit_fast.rome.hparams import ROMEHyperParams
    from easyedit_fast.serac.hparams import SERACHparams, SERACTrainingHparams
    from easyedit_fast.sweeps import sweep
    from easyedit_fast.trainers import train_editor
    from easyedit_fast.version import __version__

_HOMES = {
    "Architecture": "easyedit_fast.models.architectures",
    "Edit": "easyedit_fast.edits",
    "EditRequest": "easyedit_fast.requests",
    "EditResult": "easyedit_fast.results",
    "Editor": "easyedit_fast.editor",
    "HubDataset": "easyedit_fast.data",
    "MENDHyperParams": "easyedit_fast.mend.hparams",
    "MENDTrainingHparams": "easyedit_fast.mend.hparams",
    "Probe": "easyedit_fast.requests",
    "ROMEHyperParams": "easyedit_fast.rome.hparams",
    "RequestList": "easyedit_fast.data",
    "RequestTokenizer": "easyedit_fast.data",
    "SERACHparams": "easyedit_fast.serac.hparams",
    "SERACTrainingHparams": "easyedit_fast.serac.hparams",
    "TextFiles": "easyedit_fast.data",
    "__version__": "easyedit_fast.version",
    "collect_statistics": "easyedit_fast.moments",
    "read_requests": "easyedit_fast.data",
    "sweep": "easyedit_fast.sweeps",
    "train_editor": "easyedit_fast.trainers",
}

__all__ = [
    "Architecture",
    "Edit",
    "EditRequest",
    "EditResult",
    "Editor",
    "HubDataset",
    "MENDHyperParams",
    "MENDTrainingHparams",
    "Probe",
    "ROMEHyperParams",
    "RequestList",
    "RequestTokenizer",
    "SERACHparams",
    "SERACTrainingHparams",
    "TextFiles",
    "__version__",
    "collect_statistics",
    "read_requests",
    "sweep",
    "train_editor",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'easyedit_fast' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
