"""Corpora: texts from files or from a dataset of the hub, as full blocks of tokens."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from easyedit_fast.data import native
from easyedit_fast.errors import (
    DataFileError,
    MissingFileError,
    MissingPackageError,
    RequestError,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from easyedit_fast.data.tokenizer import RequestTokenizer

_HASHED_BYTES = 1 << 20
_TEXTS_AT_ONCE = 256
# EasyEdit's short names (layer_stats.py), with what they stand for on the hub.
_KNOWN_DATASETS = {
    "wikipedia": ("wikimedia/wikipedia", "20231101.en"),
    "wikitext": ("Salesforce/wikitext", "wikitext-103-raw-v1"),
    "wikitext2": ("Salesforce/wikitext", "wikitext-2-raw-v1"),
}


class Corpus(Protocol):
    """Texts in a fixed order."""

    @property
    def name(self) -> str:
        """A short name, for files and for people."""
        ...

    def identity(self) -> dict[str, Any]:
        """What tells this corpus from another, as plain JSON values."""
        ...

    def blocks(
        self, tokenizer: RequestTokenizer, *, block_length: int, rows: int
    ) -> Iterator[NDArray[np.int64]]:
        """The tokens of all texts, in blocks that are full.

        A text goes on in the next block, and the next text follows it in the same block. Every
        block begins with the tokenizer's BOS where it has one.

        Args:
            tokenizer: The model's tokenizer.
            block_length: Tokens in a block.
            rows: Blocks in an array.

        Yields:
            Arrays ``[rows, block_length]``; near the end one with fewer rows, and last the tokens
            that fill no block, ``[1, t]``.
        """
        ...


@dataclasses.dataclass(frozen=True)
class TextFiles:
    """Files of texts: ``.txt``, ``.jsonl``, or either compressed (``.gz``).

    A ``.txt`` file is one text. A line of a ``.jsonl`` file is a text: an object's `field`, or a
    string.

    Attributes:
        paths: The files, in order.
        field: Name of the field that holds the text of a JSON record.
    """

    paths: tuple[Path, ...]
    field: str = "text"

    @classmethod
    def of(cls, *paths: str | os.PathLike[str], field: str = "text") -> TextFiles:
        """Names the files.

        Raises:
            MissingFileError: A file is not there.
            DataFileError: There is none.
        """
        files = tuple(Path(path) for path in paths)
        if not files:
            raise DataFileError("a corpus needs a file; name at least one")
        for path in files:
            if path.is_dir():
                raise DataFileError(f"{str(path)!r} is a folder; name its text files")
            if not path.is_file():
                raise MissingFileError(f"there is no text file {str(path)!r}; check the path")
        return cls(files, field)

    @property
    def name(self) -> str:
        """The first file's name without its endings."""
        return self.paths[0].name.split(".")[0] or "text"

    def identity(self) -> dict[str, Any]:
        """Names, sizes and digests of the files (SHA-256 of their first and last MiB)."""
        return {"field": self.field, "files": [_identity(path) for path in self.paths]}

    def blocks(
        self, tokenizer: RequestTokenizer, *, block_length: int, rows: int
    ) -> Iterator[NDArray[np.int64]]:
        """See `Corpus.blocks`; a thread of the Rust module reads and tokenises ahead.

        Raises:
            DataFileError: A file is damaged or of an unknown kind.
            RequestError: A JSON record has no text; it names the record, the field and the file.
        """
        return native.open_corpus(
            self.paths, tokenizer.native, block_length=block_length, rows=rows, field=self.field
        )


@dataclasses.dataclass(frozen=True)
class HubDataset:
    """A dataset as the ``datasets`` library loads it: of the hub, or in a folder; it is streamed.

    Attributes:
        dataset: Its name, or one of EasyEdit's: ``wikipedia``, ``wikitext``, ``wikitext2``.
        config: Its configuration, or None.
        split: Its split.
        field: Name of the column that holds the text.
    """

    dataset: str
    config: str | None = None
    split: str = "train"
    field: str = "text"

    @property
    def name(self) -> str:
        """The last part of the dataset's name."""
        return self.dataset.rstrip("/").split("/")[-1]

    def identity(self) -> dict[str, Any]:
        """Name, configuration, split and column; of a folder its files too, as in `TextFiles`."""
        known = dataclasses.asdict(self)
        folder = Path(self.dataset)
        if self.dataset not in _KNOWN_DATASETS and folder.is_dir():
            known["files"] = [
                _identity(path) for path in sorted(folder.rglob("*")) if path.is_file()
            ]
        return known

    def blocks(
        self, tokenizer: RequestTokenizer, *, block_length: int, rows: int
    ) -> Iterator[NDArray[np.int64]]:
        """See `Corpus.blocks`.

        Raises:
            MissingPackageError: The ``datasets`` package is not installed.
            DataFileError: The dataset cannot be loaded, or has no such column.
            RequestError: A row has no text; it names the row and the column.
        """
        packer = native.open_packer(tokenizer.native, block_length=block_length)
        for texts in _batches(self._texts()):
            packer.push(texts)
            while packer.full_blocks >= rows:
                yield from _present(packer.take(rows))
        yield from _present(packer.take(rows))
        yield from _present(packer.take_rest())

    def _texts(self) -> Iterator[str]:
        for number, row in enumerate(self._rows()):
            if self.field not in row:
                raise DataFileError(
                    f"dataset {self.dataset!r} has no column {self.field!r}; name the one that "
                    "holds the text"
                )
            text = row[self.field]
            if not isinstance(text, str):
                reason = f"must be a text, not {type(text).__name__} (in dataset {self.dataset!r})"
                raise RequestError(reason, record=number, field=self.field)
            yield text

    def _rows(self) -> Iterator[dict[str, Any]]:
        try:
            from datasets import load_dataset
        except ImportError:
            raise MissingPackageError(
                "a dataset needs the 'datasets' package; pip install 'easyedit-fast[datasets]', or "
                "give text files"
            ) from None
        dataset, config = _KNOWN_DATASETS.get(self.dataset, (self.dataset, None))
        try:
            yield from load_dataset(
                dataset, self.config or config, split=self.split, streaming=True
            )
        except (OSError, ValueError, RuntimeError, LookupError) as error:
            reason = str(error).strip().split("\n")[0]
            raise DataFileError(
                f"dataset {self.dataset!r} cannot be loaded: {reason}; check its name, "
                "configuration and split, and the connection"
            ) from error


def _present(
    blocks: NDArray[np.int64] | None,
) -> Sequence[NDArray[np.int64]]:
    return () if blocks is None else (blocks,)


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == _TEXTS_AT_ONCE:
            yield batch
            batch = []
    yield batch


def _identity(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(_HASHED_BYTES))
        if size > _HASHED_BYTES:
            file.seek(max(_HASHED_BYTES, size - _HASHED_BYTES))
            digest.update(file.read(_HASHED_BYTES))
    return {"name": path.name, "bytes": size, "sha256": digest.hexdigest()}
