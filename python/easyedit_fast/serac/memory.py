"""The edit memory: edits in a store, and their scope embeddings as one matrix."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor

from easyedit_fast.errors import EditStateError
from easyedit_fast.files import write_whole
from easyedit_fast.requests import Requests, request_list
from easyedit_fast.serac.store import EditStore, StoredEdit

Precision = Literal["float32", "int8"]
_FIRST_ROWS = 64
_BLOCK = 8192
"""Rows of int8 that are multiplied at once: as float32 they stay in the cache."""

_QUERIES = 256
"""Queries whose distances from all edits are computed at once."""

_LEVELS = 127


@dataclasses.dataclass(frozen=True, eq=False)
class Nearest:
    """An edit that a search found.

    Attributes:
        edit: The edit.
        squared_distance: Of its embedding and the query, in that head where it is the least.
    """

    edit: StoredEdit
    squared_distance: float


class PromptEncoder(Protocol):
    """What makes embeddings of prompts.

    Attributes:
        size: Numbers of an embedding.
        heads: Equal parts of an embedding; two are as near as the nearest of their parts.
    """

    size: int
    heads: int

    @property
    def fingerprint(self) -> str:
        """Tells it from every other one; part of each row."""
        ...

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """``[prompts, size]`` float32, in one pass."""
        ...


class EditMemory:
    """Edits that can be searched by a prompt.

    An edit is embedded once, when it is added; a search takes one matrix product, whatever the
    memory holds. Other processes may add to the store: `refresh` takes in what is new.

    Attributes:
        encoder: Makes the embeddings.
    """

    def __init__(
        self, store: EditStore, encoder: PromptEncoder, *, precision: Precision = "float32"
    ) -> None:
        """Reads what the store holds.

        Args:
            store: Where the edits are kept.
            encoder: Makes the embeddings.
            precision: Of the matrix; ``int8`` takes a quarter of the memory, and keeps a scale a
                row.

        Raises:
            EditStateError: An edit was embedded by another encoder.
            DataFileError: The store is damaged.
        """
        self.encoder = encoder
        self._fingerprint = encoder.fingerprint
        self._store = store
        self._matrix = _Matrix(encoder.size, encoder.heads, precision)
        self._edits: list[StoredEdit] = []
        self._places: dict[int, int] = {}
        self._of_prompt: dict[str, list[int]] = {}  # rising ids
        self._last_id = 0
        self._last_removal = 0
        self._lock = threading.RLock()
        self.refresh()

    def __len__(self) -> int:
        return len(self._edits)

    def __contains__(self, id_: int) -> bool:
        with self._lock:
            return id_ in self._places

    def __iter__(self) -> Iterator[StoredEdit]:
        """The edits by rising ids."""
        with self._lock:
            return iter(sorted(self._edits, key=lambda edit: edit.id))

    def add(self, requests: Requests) -> list[int]:
        """Adds edits, all or none, and gives their ids; on return they outlive the process.

        Raises:
            RequestError: A request cannot be used.
            DataFileError: The store cannot be written.
        """
        asked = request_list(requests)
        embeddings = self.encoder.embed([request.prompt for request in asked])
        ids = self._store.add(asked, embeddings, self._fingerprint)
        self.refresh()
        return ids

    def remove(self, ids: int | Sequence[int]) -> None:
        """Takes edits out, all or none.

        Raises:
            EditStateError: An edit is not there.
        """
        self._store.remove([ids] if isinstance(ids, int) else ids)
        self.refresh()

    def get(self, id_: int) -> StoredEdit:
        """An edit by its id.

        Raises:
            EditStateError: It is not there.
        """
        with self._lock:
            place = self._places.get(id_)
            if place is None:
                raise EditStateError(
                    f"edit {id_} is not in the memory; it was never added or removed"
                )
            return self._edits[place]

    def refresh(self) -> None:
        """Takes in what was added and removed since, by whatever process."""
        with self._lock:
            for edit in self._store.added_after(self._last_id):
                self._take(edit)
            for number, id_ in self._store.removed_after(self._last_removal):
                self._last_removal = number
                self._drop(id_)

    def nearest(self, queries: Tensor, count: int = 1) -> list[list[Nearest]]:
        """The edits that are nearest to some queries, the nearest first.

        Of edits with the same prompt only the newest counts: it holds until it is removed.

        Args:
            queries: ``[q, d]`` float32, as the encoder makes them.
            count: Edits of each query; fewer where the memory holds fewer.
        """
        with self._lock:
            return [own for part in queries.split(_QUERIES) for own in self._nearest(part, count)]

    def _nearest(self, queries: Tensor, count: int) -> list[list[Nearest]]:
        found = self._matrix.squared_distances(queries)
        wanted, enough = count, min(count, len(self._of_prompt))
        while True:
            values, places = found.topk(min(wanted, len(self._edits)), dim=1, largest=False)
            pairs = zip(values.tolist(), places.tolist(), strict=True)
            made = [self._newest(zip(*pair, strict=True)) for pair in pairs]
            if all(len(own) >= enough for own in made):
                return [own[:count] for own in made]
            wanted *= 4

    def close(self) -> None:
        """Ends the use of the store."""
        self._store.close()

    def _newest(self, found: Iterable[tuple[float, int]]) -> list[Nearest]:
        """The edits at some distances and places, each prompt's newest in the place of all."""
        kept: dict[int, Nearest] = {}
        for distance, place in found:
            newest = self._of_prompt[_plain(self._edits[place])][-1]
            kept.setdefault(newest, Nearest(self._edits[self._places[newest]], distance))
        return list(kept.values())

    def search(self, prompt: str, count: int = 10) -> list[Nearest]:
        """The edits that are nearest to a prompt, the nearest first."""
        return self.nearest(self.encoder.embed([prompt]), count)[0]

    def export(self, path: str | os.PathLike[str]) -> None:
        """Writes the requests as JSONL, which `read_requests` reads, for `add`."""
        lines = [json.dumps(edit.request.to_dict(), ensure_ascii=False) for edit in self]
        write_whole(Path(path), "".join(f"{line}\n" for line in lines).encode())

    def _take(self, edit: StoredEdit) -> None:
        row = edit.embedding
        if edit.encoder != self._fingerprint or row is None or len(row) != self.encoder.size:
            raise EditStateError(
                f"edit {edit.id} was embedded by the encoder {edit.encoder}, and this one is "
                f"{self._fingerprint}; open the memory with that encoder, or export its "
                "requests (easyedit-fast memory export) and add them to a new file"
            )
        self._places[edit.id] = len(self._edits)
        self._edits.append(dataclasses.replace(edit, embedding=None))
        self._of_prompt.setdefault(_plain(edit), []).append(edit.id)
        self._matrix.append(row)
        self._last_id = edit.id

    def _drop(self, id_: int) -> None:
        """Puts the last row in the place of one that was removed, if it was ever taken in."""
        place = self._places.pop(id_, None)
        if place is None:
            return
        removed = _plain(self._edits[place])
        self._of_prompt[removed].remove(id_)
        if not self._of_prompt[removed]:
            del self._of_prompt[removed]
        last = self._edits.pop()
        self._matrix.move_last_to(place)
        if last.id != id_:
            self._edits[place] = last
            self._places[last.id] = place


class _Matrix:
    """Embeddings in rows, with room for more."""

    def __init__(self, size: int, heads: int, precision: Precision) -> None:
        self._heads = heads
        dtype = torch.int8 if precision == "int8" else torch.float32
        self._rows = torch.empty(_FIRST_ROWS, size, dtype=dtype)
        self._scales = torch.ones(_FIRST_ROWS) if precision == "int8" else None
        self._norms = torch.empty(_FIRST_ROWS, heads)  # squared
        self._count = 0

    def append(self, row: Tensor) -> None:
        """Adds an embedding ``[d]``."""
        at = self._count
        if at == len(self._rows):
            self._rows, self._norms = (_doubled(one) for one in (self._rows, self._norms))
            self._scales = None if self._scales is None else _doubled(self._scales)
        kept = row
        if self._scales is None:
            self._rows[at] = row
        else:
            scale = row.abs().max().clamp_min(1e-12) / _LEVELS
            self._scales[at] = scale
            self._rows[at] = (row / scale).round()
            kept = self._rows[at] * scale
        self._norms[at] = kept.view(self._heads, -1).square().sum(-1)
        self._count += 1

    def move_last_to(self, place: int) -> None:
        """Overwrites a row by the last one, which is there no longer."""
        self._count -= 1
        for one in (self._rows, self._norms, self._scales):
            if one is not None:
                one[place] = one[self._count]

    def squared_distances(self, queries: Tensor) -> Tensor:
        """``[q, rows]`` float32, in the nearest head."""
        parts = queries.float().view(len(queries), self._heads, -1).transpose(0, 1)  # [h, q, d/h]
        found = [
            parts.square().sum(-1)[..., None] + norms.T[:, None] - 2 * parts @ rows.permute(1, 2, 0)
            for rows, norms in self._blocks()
        ]
        joined = torch.cat(found, dim=2) if found else parts.new_empty(self._heads, len(queries), 0)
        return joined.amin(0).clamp_min(0)

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows ``[n, h, d/h]`` float32 and their squared norms ``[n, h]``."""
        step = max(1, self._count) if self._scales is None else _BLOCK
        for first in range(0, self._count, step):
            last = min(first + step, self._count)
            rows = self._rows[first:last]
            if self._scales is not None:
                rows = rows * self._scales[first:last, None]
            yield rows.view(last - first, self._heads, -1), self._norms[first:last]


def _plain(edit: StoredEdit) -> str:
    """The prompt with runs of white space as one space."""
    return " ".join(edit.request.prompt.split())


def _doubled(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, torch.empty_like(tensor)])
