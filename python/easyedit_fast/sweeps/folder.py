"""The folder of a sweep: its results, and from where it goes on after it was ended."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic
from torch import Tensor

from easyedit_fast.errors import DataFileError
from easyedit_fast.files import replacing, write_whole
from easyedit_fast.rome.values import LayerValues
from easyedit_fast.sweeps.rows import Records, SweepRow, csv_text

_FORMAT = "easyedit-fast.sweep"
_TENSORS = ("bare_keys", "mean_keys", "deltas")


class SweepFolder:
    """Rows as they are finished, and optimised values that no row has used yet.

    ``sweep.json`` holds the settings, the rows and every record's scores; ``sweep.csv`` the rows.
    Both are written whole after each row.

    Attributes:
        path: The folder.
        settings: What all rows depend on, as plain JSON values.
        unedited: Scores of the records before any edit; empty until they are known.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, overwrite: bool) -> None:
        """Opens a folder, makes a new one, or empties one.

        Args:
            path: The folder.
            settings: What all rows depend on.
            overwrite: Begin anew where there is a sweep already.

        Raises:
            DataFileError: It holds another sweep, or a damaged file.
        """
        self.path = path
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        self.unedited: Records = {}
        self._rows: dict[tuple[int, str], SweepRow] = {}
        self._results = path / "sweep.json"
        self._values = path / ".values"
        if self._results.is_file() and not overwrite:
            self._read()
        else:
            self.forget_values()
        path.mkdir(parents=True, exist_ok=True)
        self.write()

    @property
    def rows(self) -> list[SweepRow]:
        """The finished rows, by layer and mode."""
        return [self._rows[key] for key in sorted(self._rows)]

    def has(self, layer: int, mode: str, second_moment_digest: str | None) -> bool:
        """Whether a row is finished, with the same statistics."""
        row = self._rows.get((layer, mode))
        return row is not None and row.second_moment_digest == second_moment_digest

    def add(self, row: SweepRow) -> None:
        """Keeps a finished row."""
        self._rows[row.layer, row.mode] = row
        self.write()

    def write(self) -> None:
        """Writes both files."""
        content = {
            "format": _FORMAT,
            "settings": self.settings,
            "unedited": self.unedited,
            "rows": [{**row.to_dict(), **dataclasses.asdict(row)} for row in self.rows],
        }
        text = json.dumps(content, ensure_ascii=False, allow_nan=False)
        write_whole(self._results, f"{text}\n".encode())
        write_whole(self.path / "sweep.csv", csv_text(self.rows).encode())

    def values(self, part: int) -> dict[int, LayerValues]:
        """The values of a part of the records, by layer, as far as they are there."""
        path = self._part(part)
        if not path.is_file():
            return {}
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                header = json.loads((file.metadata() or {})["layers"])
                return {
                    int(layer): LayerValues(
                        **{name: file.get_tensor(f"{layer}.{name}") for name in _TENSORS}, **rest
                    )
                    for layer, rest in header.items()
                }
        except (SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
            raise DataFileError(f"{path} is damaged ({error}); remove it") from None

    def keep_values(self, part: int, values: Mapping[int, LayerValues]) -> None:
        """Keeps the values of a part of the records until the sweep is finished."""
        from safetensors.torch import save_file

        self._values.mkdir(exist_ok=True)
        tensors: dict[str, Tensor] = {
            f"{layer}.{name}": getattr(found, name).cpu().contiguous()
            for layer, found in values.items()
            for name in _TENSORS
        }
        rest = {
            layer: {"losses": found.losses, "seconds": found.seconds}
            for layer, found in values.items()
        }
        with replacing(self._part(part)) as partial:
            save_file(tensors, partial, metadata={"layers": json.dumps(rest)})

    def forget_values(self) -> None:
        """Removes all values; every row that needs them is finished."""
        shutil.rmtree(self._values, ignore_errors=True)

    def _part(self, part: int) -> Path:
        return self._values / f"{part:05d}.safetensors"

    def _read(self) -> None:
        try:
            content = json.loads(self._results.read_text(encoding="utf-8"))
            known = content["format"] == _FORMAT
            settings, unedited = content["settings"], content["unedited"]
            rows = [SweepRow(**_fields_of(row)) for row in content["rows"]]
        except (OSError, ValueError, LookupError, TypeError, pydantic.ValidationError) as error:
            cause = str(error).splitlines()[0]
            raise DataFileError(f"{self._results} is damaged ({cause}); remove it") from None
        other = sorted(
            name
            for name in {**settings, **self.settings}
            if settings.get(name) != self.settings.get(name)
        )
        if other or not known:
            raise DataFileError(
                f"{self._results} is of another sweep ({', '.join(other) or 'its format'} differs)"
                "; give a new folder, or overwrite it (--overwrite)"
            )
        self.unedited = unedited
        self._rows = {(row.layer, row.mode): row for row in rows}


def _fields_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row is made of; all else in it follows from that."""
    return {name: row[name] for name in SweepRow.__dataclass_fields__}
