"""An approximate index of embeddings: a graph of usearch, and the file that keeps it.

Hierarchical navigable small worlds (Malkov and Yashunin, arXiv 1603.09320): each embedding has
links to near ones, and a search walks along them. It looks at some thousand embeddings, however
many there are, and may miss the nearest.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from easyedit_fast.errors import DataFileError, MissingPackageError
from easyedit_fast.files import replacing

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from usearch.index import Index

_logger = logging.getLogger(__name__)
_LINKS = 32
_WIDTH_OF_ADDING = 256
WIDTH = 256
"""Embeddings that a search keeps in view; more miss less and take longer."""

GRAPH_FROM = 20_000
"""Embeddings from which on a search is quicker by a graph than by the product with all of them."""

_CHANGES = 1000
"""Changes, or a tenth of all embeddings, after which the file is written anew."""

_BLOCK = 8192
_FORMAT = "easyedit-fast.neighbour-graph"
_VERSION = 1
_SAME = 0.02
"""Part of its length by which an embedding differs from itself in bfloat16 or int8, at most."""


class NeighbourGraph:
    """Embeddings by their numbers, in bfloat16; a search gives the numbers of near ones."""

    def __init__(self, size: int) -> None:
        """An empty one.

        Args:
            size: Numbers of an embedding.

        Raises:
            MissingPackageError: The ``usearch`` package is not installed.
        """
        self._size = size
        self._index = _new_index(size)

    def __len__(self) -> int:
        return len(self._index)

    def __contains__(self, id_: int) -> bool:
        return bool(self._index.contains(id_))

    @property
    def gaps(self) -> int:
        """Places of what was removed and nothing has taken since; a search walks through them."""
        return int(self._index.level_stats(0).nodes) - len(self)

    @property
    def is_half_empty(self) -> bool:
        """Whether it is better made anew."""
        return self.gaps > max(_CHANGES, len(self))

    @property
    def ids(self) -> set[int]:
        """The numbers of the embeddings in it."""
        return set(np.asarray(self._index.keys).tolist())

    def add(self, ids: Sequence[int], rows: Tensor) -> None:
        """Adds embeddings.

        Args:
            ids: Their numbers, none of which is in it.
            rows: ``[len(ids), size]`` float32.
        """
        if ids:
            self._index.add(_keys(ids), rows.numpy(), threads=torch.get_num_threads())

    def remove(self, ids: Sequence[int]) -> None:
        """Takes embeddings out; their places are used again."""
        if ids:
            self._index.remove(_keys(ids))

    def nearest(self, queries: Tensor, count: int) -> Iterator[list[int]]:
        """The numbers of embeddings that are near to each query; fewer where it finds fewer.

        Args:
            queries: ``[q, size]`` float32.
            count: Of each query's; at most `WIDTH`.
        """
        if not len(self):  # usearch refuses to search nothing
            yield from ([] for _ in queries)
            return
        found: Any = self._index.search(queries.numpy(), count, threads=torch.get_num_threads())
        if len(queries) == 1:  # for which the answer has another form
            yield found.keys.tolist()
            return
        for keys, number in zip(found.keys, found.counts, strict=True):
            yield keys[:number].tolist()

    def holds(self, ids: Sequence[int], rows: Tensor) -> bool:
        """Whether the embeddings of some numbers in it are these, but for rounding.

        Args:
            ids: The numbers.
            rows: ``[len(ids), size]`` float32.
        """
        found: Any = self._index.get(_keys(ids), dtype="f32")
        own = torch.from_numpy(np.stack([np.asarray(row).reshape(-1) for row in found]))
        apart = (own - rows).square().sum(1)
        return bool((apart <= rows.square().sum(1) * _SAME**2).all())

    def write(self, path: Path, encoder: str) -> None:
        """Writes it, whole or not at all: a safetensors file with a digest.

        Args:
            path: The file.
            encoder: Fingerprint of what made the embeddings.

        Raises:
            OSError: The file cannot be written.
        """
        from safetensors.torch import save_file

        made = self._index.save()
        assert made is not None
        content = torch.frombuffer(bytearray(made), dtype=torch.uint8)
        told = json.dumps(self._told(encoder, content.numpy()))
        with replacing(path) as partial:
            save_file({"graph": content}, partial, metadata={"graph": told})

    @classmethod
    def read(cls, path: Path, size: int, encoder: str) -> NeighbourGraph:
        """Reads such a file. Nothing in it is run, and what is damaged is not looked into.

        Args:
            path: The file.
            size: Numbers of an embedding.
            encoder: Fingerprint of what made the embeddings.

        Raises:
            DataFileError: It is damaged, or of another encoder or version.
            MissingPackageError: The ``usearch`` package is not installed.
        """
        from safetensors import SafetensorError, safe_open

        made = cls(size)
        try:
            with safe_open(path, framework="pt") as file:
                told = json.loads((file.metadata() or {})["graph"])
                content = file.get_tensor("graph").numpy()
            is_own = told == made._told(encoder, content)
            if is_own:
                made._index.load(content)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise DataFileError(f"{path}: {error}") from None
        if not is_own:
            raise DataFileError(f"{path} is damaged, or of another encoder or version")
        return made

    def _told(self, encoder: str, content: NDArray[np.uint8]) -> dict[str, Any]:
        """What a file with this content must say to be read."""
        import usearch

        return {
            "format": _FORMAT,
            "format_version": _VERSION,
            "usearch": usearch.__version__,
            "encoder": encoder,
            "size": self._size,
            "links": _LINKS,
            "sha256": hashlib.sha256(content.data).hexdigest(),
        }


class KeptGraph:
    """A graph that follows a memory, and the file that keeps it from one start to the next."""

    def __init__(self, size: int, encoder: str, *, file: Path | None, least: int) -> None:
        """None yet: it is made, or read, when there is enough for it.

        Args:
            size: Numbers of an embedding.
            encoder: Fingerprint of what makes the embeddings.
            file: Keeps it; None: nothing does.
            least: Embeddings from which on it is worth having.

        Raises:
            MissingPackageError: The ``usearch`` package is not installed.
        """
        self._new = NeighbourGraph(size)
        self._graph: NeighbourGraph | None = None
        self._size, self._encoder = size, encoder
        self._file, self._least = file, least
        self._touched: set[int] = set()
        self._changes = 0  # since the file was written

    @property
    def is_there(self) -> bool:
        """Whether there is enough for it."""
        return self._graph is not None

    def touch(self, id_: int) -> None:
        """Notes that a number was added to those that are wanted, or taken from them."""
        self._touched.add(id_)

    def follow(
        self,
        wanted: AbstractSet[int],
        rows: Callable[[Sequence[int]], Tensor],
        *,
        anew: bool = True,
    ) -> None:
        """Takes out what is wanted no more, and adds what is new; a half empty one is made anew.

        Args:
            wanted: The numbers that it is to hold.
            rows: Gives the embeddings of some of them, ``[n, size]`` float32.
            anew: Whether a whole one may be made, or read, which takes long.
        """
        if self._graph is None:
            self._touched.clear()
            if not anew or len(wanted) < self._least:
                return
            self._graph = self._read(wanted, rows)
            self._touched |= self._graph.ids ^ wanted
        graph, changed = self._graph, sorted(self._touched)
        old = [id_ for id_ in changed if id_ not in wanted and id_ in graph]
        new = [id_ for id_ in changed if id_ in wanted and id_ not in graph]
        graph.remove(old)
        if anew and old and graph.is_half_empty:
            graph = self._graph = NeighbourGraph(self._size)
            new = sorted(wanted)
        for ids in _blocks(new):
            graph.add(ids, rows(ids))
        self._touched.clear()
        self._changes += len(old) + len(new)
        if self._changes >= max(_CHANGES, len(graph) // 10):
            self._write()

    def nearest(self, queries: Tensor, count: int) -> Iterator[list[int]]:
        """As `NeighbourGraph.nearest`."""
        assert self._graph is not None
        return self._graph.nearest(queries, count)

    def _read(
        self, wanted: AbstractSet[int], rows: Callable[[Sequence[int]], Tensor]
    ) -> NeighbourGraph:
        """That of the file; an empty one where it is of no use."""
        if self._file is not None and self._file.exists():
            try:
                graph = NeighbourGraph.read(self._file, self._size, self._encoder)
            except DataFileError as error:
                _logger.info("the index is made anew: %s", error)
            else:
                known = sorted(graph.ids & wanted)
                if not all(graph.holds(ids, rows(ids)) for ids in _blocks(known)):
                    _logger.info("the index is made anew: %s is of another memory", self._file)
                elif graph.is_half_empty:
                    _logger.info("the index is made anew: %s is half empty", self._file)
                else:
                    return graph
        return self._new

    def _write(self) -> None:
        assert self._graph is not None
        self._changes = 0
        if self._file is None:
            return
        try:
            self._graph.write(self._file, self._encoder)
        except OSError as error:
            warnings.warn(
                f"the index is not kept ({error}); the next start makes it again", stacklevel=2
            )
            self._file = None


def _keys(ids: Sequence[int]) -> NDArray[np.uint64]:
    return np.array(ids, dtype=np.uint64)


def _blocks(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    """The numbers in turn, few enough at once that their embeddings take little memory."""
    return (ids[first : first + _BLOCK] for first in range(0, len(ids), _BLOCK))


def _new_index(size: int) -> Index:
    try:
        from usearch.index import Index
    except ImportError:
        raise MissingPackageError(
            "an approximate index needs the package usearch; run: "
            'pip install "easyedit-fast[index]"'
        ) from None
    return Index(
        ndim=size,
        metric="l2sq",
        dtype="bf16",
        connectivity=_LINKS,
        expansion_add=_WIDTH_OF_ADDING,
        expansion_search=WIDTH,
    )
