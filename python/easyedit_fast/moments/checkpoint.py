"""Where a pass over a corpus can go on after it was ended."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from easyedit_fast.errors import DataFileError
from easyedit_fast.files import replacing
from easyedit_fast.moments.collect import Sums

_FORMAT = "easyedit-fast.statistics-checkpoint"


class Checkpoint:
    """A file that holds the sums so far, written whole or not at all.

    Attributes:
        path: The file.
        description: What the sums depend on; a file with another one is refused.
        seconds: Time between two writes at least.
    """

    def __init__(self, path: Path, description: Mapping[str, Any], *, seconds: float) -> None:
        self.path = path
        self.description = json.dumps(description, sort_keys=True)
        self.seconds = seconds
        self._last = time.monotonic()

    def read(self, sums: Sums) -> Sums:
        """The sums of the file, or `sums` where there is none.

        Args:
            sums: Sums of nothing, of layers that the file has; they are overwritten.

        Raises:
            DataFileError: The file is damaged, or belongs to another pass.
        """
        if not self.path.is_file():
            return sums
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, framework="pt") as file:
                header = file.metadata() or {}
                if header.get("format") != _FORMAT or header.get("description") != self.description:
                    raise DataFileError(
                        f"{self.path} is the checkpoint of another run; remove it to begin anew"
                    )
                for layer, total in sums.totals.items():
                    total.copy_(file.get_tensor(str(layer)))
        except (SafetensorError, OSError) as error:
            raise DataFileError(f"{self.path} is damaged ({error}); remove it") from None
        return Sums(sums.totals, chunks=int(header["chunks"]), tokens=int(header["tokens"]))

    def write_sometimes(self, sums: Sums) -> None:
        """Writes the file where the last write is long enough ago.

        Raises:
            DataFileError: It cannot be written; the one before is as it was.
        """
        if time.monotonic() - self._last < self.seconds:
            return
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        tensors = {str(layer): total.cpu() for layer, total in sums.totals.items()}
        header = {
            "format": _FORMAT,
            "description": self.description,
            "chunks": str(sums.chunks),
            "tokens": str(sums.tokens),
        }
        try:
            with replacing(self.path) as partial:
                save_file(tensors, partial, metadata=header)
        except SafetensorError as error:
            raise DataFileError(
                f"the checkpoint {self.path} cannot be written ({error}); make room, and give the "
                "same command again"
            ) from None
        self._last = time.monotonic()

    def remove(self) -> None:
        """Removes the file."""
        self.path.unlink(missing_ok=True)
