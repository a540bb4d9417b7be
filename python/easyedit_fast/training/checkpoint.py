"""All that a training run needs to go on, in one file."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from easyedit_fast.errors import DataFileError
from easyedit_fast.tensor_files import TensorFile

EDITOR, CHECKPOINT = "editor.safetensors", "checkpoint.safetensors"
"""Names of the files in a run's folder."""

_FILE = TensorFile("training checkpoint", written_by="a training run")
_TRAINED, _ADAM = "trained.", "adam."


@dataclasses.dataclass(frozen=True, eq=False)
class Checkpoint:
    """Where a run stands.

    Attributes:
        trained: What is trained, by name.
        optimizer: The state of each parameter, by its number and the name of its part, such as
            ``0.exp_avg``.
        told: The rest, as plain JSON values.
    """

    trained: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    told: dict[str, Any]

    def write(self, path: Path) -> None:
        """Writes the file, whole or not at all."""
        tensors = {
            **{f"{_TRAINED}{name}": tensor for name, tensor in self.trained.items()},
            **{f"{_ADAM}{name}": tensor for name, tensor in self.optimizer.items()},
        }
        _FILE.write(path, tensors, self.told)

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Reads a file.

        Raises:
            DataFileError: It is damaged.
        """
        try:
            tensors, told = _FILE.read(path)
        except DataFileError as error:
            raise DataFileError(
                f"{error}; remove it to begin anew, or get it from a copy"
            ) from None
        trained, optimizer = (
            {
                name.removeprefix(prefix): tensor
                for name, tensor in tensors.items()
                if name.startswith(prefix)
            }
            for prefix in (_TRAINED, _ADAM)
        )
        return cls(trained, optimizer, told)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimiser, as `Checkpoint` keeps it."""
    return {
        f"{number}.{part}": tensor
        for number, parts in optimizer.state_dict()["state"].items()
        for part, tensor in parts.items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Puts such a state back."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, _, part = name.partition(".")
        state.setdefault(int(number), {})[part] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
