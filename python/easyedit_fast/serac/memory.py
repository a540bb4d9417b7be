"""The edit memory: edits in a store, and their scope embeddings as one matrix."""

from __future__ import annotations

import bisect
import dataclasses
import operator
import os
import reprlib
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor

from easyedit_fast.errors import EditStateError
from easyedit_fast.requests import Requests, request_list
from easyedit_fast.serac.graph import GRAPH_FROM, WIDTH, KeptGraph
from easyedit_fast.serac.matrix import EmbeddingMatrix, Precision
from easyedit_fast.serac.store import ENCODER_REMEDY, EditStore, StoredEdit, write_requests

Index = Literal["exact", "approximate"]
_QUERIES = 256
"""Queries whose distances from all edits are computed at once."""

_SPARE = 16
"""Candidates beyond those asked for: of some that are as near the newest comes first, and in the
graph's precision two may stand the wrong way round."""


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

    def reading(self, prompt: str) -> str:
        """What it reads of a prompt; those with the same reading are one prompt to it."""
        ...


class EditMemory:
    """Edits that can be searched by a prompt.

    An edit is embedded once, when it is added; a search takes one matrix product, whatever the
    memory holds. With an approximate index a large memory asks a graph for candidates, and only
    they are compared: distances are the same, but the nearest edit may be missed. Other processes
    may add to the store: `refresh` takes in what is new.

    Attributes:
        encoder: Makes the embeddings.
        may_make_graph: Whether a change may have the graph made, for which all wait; False: one
            that is there follows, and without one all edits are compared, until a memory is made
            of the same store.
    """

    def __init__(
        self,
        store: EditStore,
        encoder: PromptEncoder,
        *,
        precision: Precision = "float32",
        index: Index = "exact",
        index_file: Path | None = None,
        graph_from: int = GRAPH_FROM,
    ) -> None:
        """Reads what the store holds.

        Args:
            store: Where the edits are kept.
            encoder: Makes the embeddings.
            precision: Of the matrix; ``int8`` takes a quarter of the memory, and keeps a scale a
                row.
            index: ``exact``, or ``approximate``: a large memory is searched by a graph.
            index_file: Keeps that graph, which takes long to make; where it is damaged, or of
                another memory, it is made again. None: it is made at each start.
            graph_from: Different prompts from which on a memory is large.

        Raises:
            EditStateError: An edit was embedded by another encoder, or an approximate index is
                asked for and the encoder has several heads.
            DataFileError: The store is damaged.
            MissingPackageError: The package of the approximate index is not installed.
        """
        self._graph: KeptGraph | None = None
        if index == "approximate":
            if encoder.heads > 1:
                raise EditStateError(
                    f"an approximate index compares whole embeddings, and those of this encoder "
                    f"have {encoder.heads} heads (dist_heads); leave the index 'exact'"
                )
            self._graph = KeptGraph(
                encoder.size, encoder.fingerprint, file=index_file, least=graph_from
            )
        self.encoder = encoder
        self.may_make_graph = True
        self._fingerprint = encoder.fingerprint
        self._store = store
        self._matrix = EmbeddingMatrix(encoder.size, encoder.heads, precision)
        self._edits: list[StoredEdit] = []
        self._readings: list[str] = []  # of the edits' prompts
        self._places: dict[int, int] = {}
        self._of_prompt: dict[str, list[int]] = {}  # rising ids
        self._oldest: set[int] = set()  # of each prompt, for the graph
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
        return iter(self.after(0))

    def after(self, id_: int, count: int | None = None) -> list[StoredEdit]:
        """The first edits with a higher id, by rising ids; all of them without a count."""
        with self._lock:
            ids = list(self._places)  # rising: an edit that moves to another place stays here
            first = bisect.bisect_right(ids, id_)
            last = None if count is None else first + count
            return [self._edits[self._places[found]] for found in ids[first:last]]

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

    def remove(self, ids: int | Iterable[int]) -> None:
        """Takes edits out, all or none; one that is named twice goes once.

        Raises:
            EditStateError: An edit is not there, or an id is no whole number.
        """
        given: Any = ids  # a text's characters, and the bytes of bytes, would be taken for ids
        if isinstance(given, str | bytes) or not isinstance(given, Iterable):
            given = [given]
        try:
            numbers = list(dict.fromkeys(map(_whole_number, given)))
        except TypeError:
            raise EditStateError(
                "edits are removed by their ids, which are whole numbers, not "
                f"{reprlib.repr(ids)}; nothing was removed"
            ) from None
        self._store.remove(numbers)
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

    def holder(self, id_: int) -> int:
        """The edit that holds for the prompt of one: itself, or the newest of the same prompt."""
        with self._lock:
            place = self._places.get(id_)
            return id_ if place is None else self._of_prompt[self._readings[place]][-1]

    def superseded(self, ids: Iterable[int]) -> list[int]:
        """The edits that held until those with some ids were added, for the same prompts.

        Of several that were added together the earlier ones are among them.
        """
        found: list[int] = []
        with self._lock:
            for place in (self._places[id_] for id_ in ids if id_ in self._places):
                alike = self._of_prompt[self._readings[place]]
                before = bisect.bisect_left(alike, self._edits[place].id)
                found += alike[:before][-1:]
        return sorted(found)

    def refresh(self) -> None:
        """Takes in what was added and removed since, by whatever process."""
        with self._lock:
            for edit in self._store.added_after(self._last_id):
                self._take(edit)
            for number, id_ in self._store.removed_after(self._last_removal):
                self._last_removal = number
                self._drop(id_)
            if self._graph is not None:
                self._graph.follow(self._oldest, self._rows, anew=self.may_make_graph)

    def nearest(self, queries: Tensor, count: int = 1) -> list[list[Nearest]]:
        """The edits that are nearest to some queries, the nearest first, of equals the newest.

        Of edits whose prompts are the same to the encoder only the newest counts: it holds until
        it is removed.

        Args:
            queries: ``[q, d]`` float32, as the encoder makes them.
            count: Edits of each query; fewer where the memory holds fewer.
        """
        with self._lock:
            by_graph = self._graph is not None and self._graph.is_there and count <= WIDTH - _SPARE
            find = self._near if by_graph else self._nearest
            return [own for part in queries.split(_QUERIES) for own in find(part, count)]

    def _near(self, queries: Tensor, count: int) -> list[list[Nearest]]:
        """As `_nearest`, among those that the graph finds."""
        assert self._graph is not None
        candidates = self._graph.nearest(queries, count + _SPARE)
        rows = queries.split(1)
        found = [self._among(*pair, count) for pair in zip(rows, candidates, strict=True)]
        return [own or self._nearest(row, count)[0] for row, own in zip(rows, found, strict=True)]

    def _among(self, query: Tensor, ids: Sequence[int], count: int) -> list[Nearest]:
        """The nearest to a query ``[1, d]`` among the edits that have the prompts of some.

        No edit at all where these are too few to say.
        """
        known = [self._places[id_] for id_ in ids if id_ in self._places]
        prompts = [self._readings[place] for place in known]
        places = [self._places[id_] for prompt in prompts for id_ in self._of_prompt[prompt]]
        values, order = self._matrix.squared_distances(query, places)[0].sort()
        ordered = [places[at] for at in order.tolist()]
        own = self._newest(zip(values.tolist(), ordered, strict=True))
        return own[:count] if places and self._is_sure(own, count, float(values[-1])) else []

    def _rows(self, ids: Sequence[int]) -> Tensor:
        """The embeddings of some edits, ``[edits, d]`` float32."""
        return self._matrix.rows([self._places[id_] for id_ in ids])

    def _nearest(self, queries: Tensor, count: int) -> list[list[Nearest]]:
        found = self._matrix.squared_distances(queries)
        wanted = count + _SPARE
        while True:
            looked_at = min(wanted, len(self._edits))
            values, places = found.topk(looked_at, dim=1, largest=False)
            pairs = [*zip(values.tolist(), places.tolist(), strict=True)]
            made = [self._newest(zip(*pair, strict=True)) for pair in pairs]
            if looked_at == len(self._edits) or all(
                self._is_sure(own, count, distances[-1])
                for own, (distances, _) in zip(made, pairs, strict=True)
            ):
                return [own[:count] for own in made]
            wanted *= 4

    def _is_sure(self, own: Sequence[Nearest], count: int, farthest: float) -> bool:
        """Whether no edit that is as far as the farthest looked at, or more, could come first."""
        enough = min(count, len(self._of_prompt))
        return len(own) >= enough and own[enough - 1].squared_distance < farthest

    def close(self) -> None:
        """Ends the use of the store."""
        self._store.close()

    def _newest(self, found: Iterable[tuple[float, int]]) -> list[Nearest]:
        """The edits at rising distances and places, each prompt's newest in the place of all."""
        kept: dict[int, Nearest] = {}
        for distance, place in found:
            newest = self._of_prompt[self._readings[place]][-1]
            kept.setdefault(newest, Nearest(self._edits[self._places[newest]], distance))
        return sorted(kept.values(), key=lambda one: (one.squared_distance, -one.edit.id))

    def export(self, path: str | os.PathLike[str]) -> None:
        """Writes the requests as JSONL, which `read_requests` reads, for `add`."""
        write_requests(path, (edit.request for edit in self))

    def _take(self, edit: StoredEdit) -> None:
        row = edit.embedding
        if edit.encoder != self._fingerprint or row is None or len(row) != self.encoder.size:
            raise EditStateError(
                f"edit {edit.id} was embedded by the encoder {edit.encoder[:12]}, and this one is "
                f"{self._fingerprint[:12]}; {ENCODER_REMEDY}"
            )
        self._places[edit.id] = len(self._edits)
        self._edits.append(dataclasses.replace(edit, embedding=None))
        self._readings.append(self.encoder.reading(edit.request.prompt))
        alike = self._of_prompt.setdefault(self._readings[-1], [])
        alike.append(edit.id)
        self._settle_oldest(alike[0])
        self._matrix.append(row)
        self._last_id = edit.id

    def _drop(self, id_: int) -> None:
        """Puts the last row in the place of one that was removed, if it was ever taken in."""
        place = self._places.pop(id_, None)
        if place is None:
            return
        removed = self._readings[place]
        alike = self._of_prompt[removed]
        alike.remove(id_)
        self._settle_oldest(id_, is_oldest=False)
        if alike:
            self._settle_oldest(alike[0])
        else:
            del self._of_prompt[removed]
        last, reading = self._edits.pop(), self._readings.pop()
        self._matrix.move_last_to(place)
        if last.id != id_:
            self._edits[place], self._readings[place] = last, reading
            self._places[last.id] = place

    def _settle_oldest(self, id_: int, *, is_oldest: bool = True) -> None:
        """Notes that an edit is the oldest of its prompt, or is not any more."""
        if self._graph is not None and (id_ in self._oldest) != is_oldest:
            (self._oldest.add if is_oldest else self._oldest.remove)(id_)
            self._graph.touch(id_)


def _whole_number(given: Any) -> int:
    """An id; a truth value is none, though it has an index.

    Raises:
        TypeError: It is no id.
    """
    if isinstance(given, bool):
        raise TypeError(given)
    return operator.index(given)
