"""The memory of a server: nobody waits long for what others ask."""

from __future__ import annotations

import datetime as dt
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from easyedit_fast.serac.cross_encoder import CrossEncoder
from easyedit_fast.serac.graph import NeighbourGraph
from easyedit_fast.serac.hparams import SERACHparams
from easyedit_fast.serac.memory import EditMemory, Nearest
from easyedit_fast.serac.routing import Router
from easyedit_fast.serac.scope import Scope
from easyedit_fast.serac.store import SqliteStore, StoredEdit
from easyedit_fast.serving.memory import SharedMemory
from tests.unit.test_serac_memory import WordEncoder
from tests.unit.test_serac_memory import request as edit

EDITS = 90
ASKED = "The capital of Land7 is"


class NoContext:
    """An adapter whose edits take no tokens."""

    def context(self, _: Any) -> list[int]:
        return []

    def refuse_too_long(self, _: Any) -> None:
        pass


class WordScope(WordEncoder):
    """One that tells similarities of words."""

    candidates = 1

    def similarities(self, _: Any, found: Sequence[Sequence[Nearest]]) -> list[list[float]]:
        return [[1 / (1 + one.squared_distance) for one in own] for own in found]


def shared(scope: Any, edits: int) -> SharedMemory:
    memory: Any = SharedMemory(
        Router(scope, EditMemory(SqliteStore(None), scope)), NoContext(), edit_tokens=8
    )
    memory.add([edit(number).to_dict() for number in range(edits)])
    return memory


@pytest.fixture(scope="module")
def pairs(sentence_encoder: Path) -> CrossEncoder:
    own = {"cls_name": str(sentence_encoder), "cross_attend": True, "cross_candidates": 8}
    return CrossEncoder(SERACHparams(**own))


@pytest.fixture
def read(pairs: CrossEncoder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pairs were read at a time."""
    sizes: list[int] = []
    original = pairs.similarities

    def similarities(queries: Sequence[str], found: Any) -> list[list[float]]:
        sizes.append(sum(map(len, found)))
        return original(queries, found)

    monkeypatch.setattr(pairs, "similarities", similarities)
    return sizes


def test_a_search_reads_the_first_pairs_alone(pairs: CrossEncoder, read: list[int]) -> None:
    memory = shared(pairs, EDITS)
    found = memory.search(ASKED, 1000)
    assert sum(read) == 64
    assert sorted(edit.id for edit, _ in found) == list(range(1, EDITS + 1))
    values = [value for _, value in found]
    assert None not in values[:64]
    assert set(values[64:]) == {None}
    assert values[:8] == sorted(values[:8], reverse=True)  # type: ignore[type-var]
    rows = pairs.embed([ASKED, *(one.request.prompt for one, _ in found)])
    distances = (rows[1:] - rows[0]).norm(dim=1)[8:]
    assert distances.tolist() == pytest.approx(distances.sort().values.tolist(), abs=1e-5)
    assert memory.search(ASKED, 20) == found[:20]
    (route,) = memory.routes([ASKED])
    assert route.similarity == pytest.approx(values[0], abs=1e-5)


def test_a_scope_of_embeddings_has_all_similarities(sentence_encoder: Path) -> None:
    memory = shared(Scope(SERACHparams(cls_name=str(sentence_encoder))), EDITS)
    assert None not in [value for _, value in memory.search(ASKED, 1000)]


@pytest.mark.parametrize("what", ["routes", "search"])
def test_others_are_routed_between_the_pairs(
    pairs: CrossEncoder, read: list[int], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One prompt waits for a portion of the pairs of others, not for all of them."""
    memory = shared(pairs, EDITS)
    whole, embed = [f"Prompt {number}" for number in range(16)], pairs.embed
    before: list[int] = []
    first = threading.Event()
    turns: Any = memory._router.scope._turns  # type: ignore[attr-defined]

    def embedded(prompts: Sequence[str]) -> Any:
        if list(prompts) == [ASKED]:
            before.append(len(read))
        return embed(prompts)

    def other() -> None:
        first.wait(30)
        memory.routes([ASKED])

    similarities = pairs.similarities

    def seen(queries: Sequence[str], found: Any) -> list[list[float]]:
        if not first.is_set():
            first.set()
            last = time.monotonic() + 30
            while not turns._next.locked():  # the other one waits for its turn
                assert time.monotonic() < last, "the other one did not come"
                time.sleep(0.001)
        return similarities(queries, found)

    monkeypatch.setattr(pairs, "embed", embedded)
    monkeypatch.setattr(pairs, "similarities", seen)
    thread = threading.Thread(target=other)
    thread.start()
    if what == "routes":
        memory.routes(whole)
    else:
        memory.search("Prompt", 64)
    thread.join(30)
    assert before == [1]
    assert len(read) > 4, "there were more portions"


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ids that went into graphs."""
    seen: list[int] = []
    original = NeighbourGraph.add

    def add(self: NeighbourGraph, ids: Any, rows: Any) -> None:
        seen.extend(ids)
        original(self, ids, rows)

    monkeypatch.setattr(NeighbourGraph, "add", add)
    return seen


def opened(scope: Any, path: Path, least: int) -> SharedMemory:
    store = SqliteStore(path)
    memory = EditMemory(
        store, scope, index="approximate", index_file=store.index_file, graph_from=least
    )
    adapter: Any = NoContext()
    return SharedMemory(Router(scope, memory), adapter, edit_tokens=8)


def test_nobody_waits_for_a_graph(tmp_path: Path, added: list[int]) -> None:
    """It is made at the start alone; then it follows."""
    scope: Any = WordScope()
    path = tmp_path / "edits.sqlite"
    memory = opened(scope, path, least=1100)
    memory.add([edit(number).to_dict() for number in range(1200)])
    assert memory.search(ASKED, 1)[0][0].id == 8
    assert added == []
    memory = opened(scope, path, least=1100)
    assert sorted(added) == list(range(1, 1201))
    memory.add([edit(1200).to_dict()])
    assert added[1200:] == [1201]
    for gone in range(20, 1100):
        memory.remove(gone)
    assert len(added) == 1201
    assert memory.search(ASKED, 1)[0][0].id == 8
    memory = opened(scope, path, least=100)
    assert sorted(added[1201:]) == [*range(1, 20), *range(1100, 1202)], "it was half empty"
    assert memory.search(ASKED, 1)[0][0].id == 8


class HastyStore(SqliteStore):
    """A store whose first edit of several is removed by another one at once."""

    def add(self, *given: Any) -> list[int]:
        ids = super().add(*given)
        self.remove(ids[:1])
        return ids


def test_what_was_added_is_told_though_it_was_removed_at_once() -> None:
    scope, adapter = (cast("Any", one) for one in (WordScope(), NoContext()))
    memory = SharedMemory(Router(scope, EditMemory(HastyStore(None), scope)), adapter, 8)
    gone, kept = memory.add([edit(0).to_dict(), edit(1).to_dict()])
    assert [gone.id, kept.id] == [1, 2]
    assert [gone.request, kept.request] == [edit(0), edit(1)]
    assert dt.datetime.fromisoformat(gone.added) >= dt.datetime.fromisoformat(kept.added)
    assert [one.id for one in memory.after(0)] == [2]


class SeenEdits(list[StoredEdit]):
    """Edits that tell how many of them were looked at."""

    seen = 0

    def __getitem__(self, place: Any) -> Any:
        self.seen += 1
        return super().__getitem__(place)

    def __iter__(self) -> Iterator[StoredEdit]:
        self.seen += len(self)
        return super().__iter__()


def test_a_page_looks_at_its_own_edits() -> None:
    """Others are routed under the same lock, so a page is not to cost as much as the memory."""
    memory = shared(WordScope(), 200)
    for gone in (3, 150, 151, 200):  # the last one goes into the place of each
        memory.remove(gone)
    inner: Any = memory._router.memory
    inner._edits = edits = SeenEdits(inner._edits)
    assert [one.id for one in memory.after(147, 4)] == [148, 149, 152, 153]
    assert edits.seen == 4
    ids = [number for number in range(1, 200) if number not in (3, 150, 151)]
    assert [one.id for one in memory.after(0)] == ids
    assert [one.id for one in inner] == ids
    assert memory.after(199) == memory.after(10**9, 5) == []
