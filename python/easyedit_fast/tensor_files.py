"""Tensors with all that is told of them, in one safetensors file with a digest."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from easyedit_fast.errors import DataFileError, MissingFileError
from easyedit_fast.files import write_whole


@dataclasses.dataclass(frozen=True)
class TensorFile:
    """A kind of file.

    Attributes:
        what: What it holds, for messages, e.g. ``edit``.
        written_by: What writes it, for messages too.
        version: Of its format; others are refused.
        mistaken: The remedy by the ``what`` of another kind that may be given in its place.
    """

    what: str
    written_by: str
    version: int = 1
    mistaken: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def format(self) -> str:
        """The file's ``format``, e.g. ``easyedit-fast.edit``."""
        return f"easyedit-fast.{self.what.replace(' ', '-')}"

    @property
    def _key(self) -> str:
        return self.what.rpartition(" ")[2]

    def write(
        self, path: Path, tensors: Mapping[str, torch.Tensor], told: Mapping[str, Any]
    ) -> None:
        """Writes a file whole or not at all.

        The file's metadata holds ``format``, ``format_version``, ``told`` as JSON under the last
        word of `what`, and ``sha256`` (see `_digest`).

        Raises:
            MissingFileError: The folder of `path` is not there.
        """
        from safetensors.torch import save

        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        text = json.dumps(told, ensure_ascii=False)
        header = {
            "format": self.format,
            "format_version": str(self.version),
            self._key: text,
            "sha256": _digest(text, plain),
        }
        write_whole(path, save(plain, metadata=header))

    def read(self, path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """The tensors, and what is told of them, of a file of this kind.

        Raises:
            MissingFileError: There is no such file.
            DataFileError: The file is damaged, or of another kind.
        """
        with self._opened(path) as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self._check_header(path, header)
        if header.get("sha256") != _digest(header.get(self._key, ""), tensors):
            raise DataFileError(
                f"{path} is damaged (its contents do not match its digest); get or make it again"
            )
        return tensors, self._told(path, header)

    def told(self, path: Path) -> dict[str, Any]:
        """What is told of a file's tensors, which are not read and so not checked.

        Raises:
            MissingFileError: There is no such file.
            DataFileError: The file is damaged, or of another kind.
        """
        with self._opened(path) as file:
            header = file.metadata() or {}
        self._check_header(path, header)
        return self._told(path, header)

    @contextlib.contextmanager
    def _opened(self, path: Path) -> Iterator[Any]:
        from safetensors import SafetensorError, safe_open

        if not path.is_file():
            raise MissingFileError(f"there is no {self.what} file {str(path)!r}; check the path")
        try:
            with safe_open(path, framework="pt") as file:
                yield file
        except (SafetensorError, OSError, ValueError) as error:
            raise DataFileError(
                f"{path} is damaged or no safetensors file ({error}); {self._again}"
            ) from None

    def _told(self, path: Path, header: Mapping[str, str]) -> dict[str, Any]:
        try:
            told = json.loads(header.get(self._key, ""))
        except (ValueError, RecursionError) as error:
            raise DataFileError(f"{path}: its header is damaged ({error}); save it again") from None
        if not isinstance(told, dict):
            raise DataFileError(f"{path}: its header is damaged; {self._again}")
        return told

    @property
    def _again(self) -> str:
        return f"save the {self.what} again"

    def _check_header(self, path: Path, header: Mapping[str, str]) -> None:
        if header.get("format") != self.format:
            for what, remedy in self.mistaken.items():
                if header.get("format") == TensorFile(what, "").format:
                    raise DataFileError(f"{path} is a {what}, and no {self.what}; {remedy}")
            raise DataFileError(
                f"{path} is a safetensors file, but no {self.what} of easyedit-fast; name one that "
                f"{self.written_by} wrote"
            )
        if header.get("format_version") != str(self.version):
            raise DataFileError(
                f"{path} is of format version {header.get('format_version')}, this package reads "
                f"{self.version}; install the version that wrote it"
            )


def _digest(told: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """Hexadecimal SHA-256 over all that a file says, however safetensors lays it out.

    It is taken over the metadata (JSON, as it stands in the file), then, in the order of the
    names, over name, dtype, shape and values of each tensor. Each text is preceded by its length.
    """
    digest = hashlib.sha256()

    def add_text(text: str) -> None:
        encoded = text.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)

    add_text(told)
    for name, tensor in sorted(tensors.items()):
        add_text(f"{name} {tensor.dtype} {list(tensor.shape)}")
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
