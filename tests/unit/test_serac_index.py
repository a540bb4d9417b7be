"""The approximate index of a memory: what it finds, and the file that keeps it."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from easyedit_fast import read_requests
from easyedit_fast.errors import EditStateError, HparamsError, MissingPackageError
from easyedit_fast.serac import graph
from easyedit_fast.serac.hparams import SERACHparams
from easyedit_fast.serac.memory import EditMemory
from easyedit_fast.serac.store import SqliteStore
from easyedit_fast.serac.trained import trained_scope
from tests.unit.test_serac_memory import WordEncoder, near_to, requests

NUMBERS = st.lists(st.integers(0, 60), min_size=1, max_size=40)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), NUMBERS),
        st.tuples(st.just("remove"), NUMBERS),
        st.tuples(st.just("by another"), NUMBERS),
    ),
    min_size=1,
    max_size=8,
)


def approximate(path: Path | None, encoder: WordEncoder | None = None, **more: Any) -> EditMemory:
    store = SqliteStore(path)
    return EditMemory(
        store, encoder or WordEncoder(), index="approximate",
        index_file=store.index_file, graph_from=1, **more,
    )  # fmt: skip


def distances(memory: EditMemory, queries: torch.Tensor, count: int) -> list[list[float]]:
    return [
        [one.squared_distance for one in own] for own in memory.nearest(queries, count)
    ]  # ids may differ: prompts of the same words are equally near


@settings(max_examples=25, deadline=None)
@given(steps=STEPS, count=st.integers(1, 12))
def test_it_finds_what_the_exact_memory_finds(
    steps: list[tuple[str, list[int]]], count: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In sets that a search looks at whole, whatever was added and removed, by whomever."""
    path = tmp_path_factory.mktemp("memory") / "edits.sqlite"
    memory, exact = approximate(path), EditMemory(SqliteStore(path), WordEncoder())
    prompts = [f"capital of Land{number} is" for number in range(0, 60, 3)]
    queries = memory.encoder.embed(prompts)
    for kind, numbers in steps:
        if kind == "remove":
            ids = [edit.id for edit in memory]
            gone = {ids[number % len(ids)] for number in numbers} if ids else set()
            memory.remove(sorted(gone))
        else:
            writer = memory if kind == "add" else exact
            writer.add([one for number in numbers for one in requests(1, number)])
        memory.refresh()
        exact.refresh()
        for row, expected in zip(
            distances(memory, queries, count), distances(exact, queries, count), strict=True
        ):
            assert row == pytest.approx(expected, abs=1e-4)
        newest = {edit.request.prompt: edit.id for edit in exact}
        for found in memory.nearest(queries, count):
            assert [one.edit.id for one in found] == [
                newest[one.edit.request.prompt] for one in found
            ]
    memory.close()
    exact.close()


def test_many_of_one_prompt_hide_no_other() -> None:
    memory = approximate(None)
    memory.add(requests(1) * 500)
    memory.add(requests(40, 1))
    memory.remove([1, 2, 500])
    found = near_to(memory, "The capital of Land0 is", 30)
    assert found[0].edit.id == 499
    assert len({one.edit.request.prompt for one in found}) == 30
    memory.remove([edit.id for edit in memory][:-40])
    assert len(near_to(memory, "The capital of Land0 is", 100)) == 40
    memory.remove([edit.id for edit in memory])
    assert near_to(memory, "The capital of Land0 is") == []


def test_more_than_a_search_looks_at_are_found_by_the_product() -> None:
    memory = approximate(None)
    memory.add(requests(graph.WIDTH + 50))
    assert len(near_to(memory, "The capital of Land0 is", graph.WIDTH + 40)) == graph.WIDTH + 40


def test_a_small_memory_has_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = EditMemory(SqliteStore(None), WordEncoder(), index="approximate", graph_from=10)
    monkeypatch.setattr(graph.NeighbourGraph, "add", None)
    memory.add([*requests(9), *requests(5)])
    assert near_to(memory, "The capital of Land3 is")[0].edit.id == 13
    with pytest.raises(TypeError):
        memory.add(requests(1, 9))
    monkeypatch.undo()
    memory.refresh()  # what failed is done again
    assert near_to(memory, "The capital of Land9 is")[0].edit.id == 15


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ids that went into graphs, as these were made and caught up."""
    seen: list[int] = []
    original = graph.NeighbourGraph.add

    def add(self: graph.NeighbourGraph, ids: Any, rows: torch.Tensor) -> None:
        seen.extend(ids)
        original(self, ids, rows)

    monkeypatch.setattr(graph.NeighbourGraph, "add", add)
    return seen


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A memory of 1,200 edits, whose index is kept beside it."""
    path = tmp_path / "edits.sqlite"
    approximate(path).add(requests(1200))
    assert (tmp_path / "edits.sqlite.index").exists()
    return path


def same_as_exact(memory: EditMemory, path: Path) -> None:
    exact = EditMemory(SqliteStore(path), WordEncoder())
    queries = memory.encoder.embed([f"capital of Land{n}" for n in range(0, 1300, 13)])
    pairs = zip(distances(memory, queries, 1), distances(exact, queries, 1), strict=True)
    same = [own == pytest.approx(expected, abs=1e-4) for own, expected in pairs]
    assert sum(same) >= 0.99 * len(same)


def test_the_kept_index_is_caught_up(kept: Path, added: list[int]) -> None:
    assert added == []
    same_as_exact(approximate(kept), kept)
    assert added == []
    exact = EditMemory(SqliteStore(kept), WordEncoder())
    exact.add(requests(100, 1200))
    exact.add(requests(10))  # of known prompts
    exact.remove([*range(1, 6), *range(700, 900), 1250])
    memory = approximate(kept)
    assert sorted(added) == [*range(1201, 1250), *range(1251, 1301), *range(1301, 1306)]
    same_as_exact(memory, kept)
    assert near_to(memory, "The capital of Land0 is", 1)[0].edit.id == 1301


def test_an_index_that_is_half_empty_is_made_again(kept: Path, added: list[int]) -> None:
    memory = approximate(kept)
    memory.add(requests(1200, 1200))
    file = kept.with_name("edits.sqlite.index")
    size = file.stat().st_size
    added.clear()
    memory.remove(list(range(1, 1201)))
    assert added == []
    memory.remove(list(range(1201, 1211)))
    assert added == list(range(1211, 2401))
    same_as_exact(memory, kept)
    assert file.stat().st_size < 0.6 * size


def test_a_damaged_index_is_made_again(kept: Path, added: list[int]) -> None:
    file = kept.with_name("edits.sqlite.index")
    whole = file.read_bytes()
    chosen = random.Random(0)
    flipped = [bytearray(whole) for _ in range(6)]
    for one in flipped:
        one[chosen.randrange(len(one))] ^= 1 << chosen.randrange(8)
    for content in (b"", b"no index", whole[:-1], whole[: len(whole) // 2], *flipped):
        file.write_bytes(content)
        added.clear()
        same_as_exact(approximate(kept), kept)
        assert len(added) == 1200
        assert len(file.read_bytes()) > 1200 * 24 * 2, "it is kept again"
        added.clear()
        approximate(kept)
        assert added == []


def test_the_index_of_another_memory_is_made_again(kept: Path, added: list[int]) -> None:
    """One whose ids are the same, beside a file that was left; or that of another encoder."""
    kept.unlink()
    EditMemory(SqliteStore(kept), WordEncoder()).add(requests(1200, 5000))
    memory = approximate(kept)
    assert len(added) == 1200
    assert near_to(memory, "The capital of Land5003 is", 1)[0].edit.request == requests(1, 5003)[0]
    kept.unlink()
    other = WordEncoder(name="others")
    EditMemory(SqliteStore(kept), other).add(requests(1200, 5000))
    added.clear()
    approximate(kept, other)
    assert len(added) == 1200


def test_precisions_share_an_index(kept: Path, added: list[int]) -> None:
    approximate(kept, precision="int8")
    assert added == []


def test_where_the_index_cannot_be_kept_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = approximate(tmp_path / "edits.sqlite")

    def refuse(*_: object) -> None:
        raise PermissionError("not allowed")

    monkeypatch.setattr(graph.NeighbourGraph, "write", refuse)
    with pytest.warns(UserWarning, match=r"the index is not kept \(not allowed\); the next start"):
        memory.add(requests(1200))
    memory.add(requests(1200, 1200))  # told once
    assert near_to(memory, "The capital of Land7 is")[0].edit.id == 8


def test_a_reader_keeps_no_index(kept: Path, tmp_path: Path) -> None:
    kept.with_name("edits.sqlite.index").unlink()
    store = SqliteStore(kept, read_only=True)
    assert store.index_file is SqliteStore(None).index_file is None
    same_as_exact(
        EditMemory(store, WordEncoder(), index="approximate", graph_from=1), kept
    )  # made, and not kept
    assert not list(tmp_path.glob("*.index"))


def test_what_does_not_go_together_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EditStateError, match=r"3 heads .* leave the index 'exact'"):
        approximate(None, WordEncoder(heads=3))
    with pytest.raises(HparamsError, match=r"dist_heads .* leave memory_index"):
        SERACHparams(memory_index="approximate", dist_heads=2)
    with pytest.raises(HparamsError, match="memory_index"):
        SERACHparams(memory_index="some")
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    with pytest.raises(MissingPackageError, match=r'pip install "easyedit-fast\[index\]"'):
        approximate(None)
    EditMemory(SqliteStore(None), WordEncoder())


def test_real_prompts(shared_data: Path) -> None:
    """A rephrased prompt goes to the edit that the exact memory finds, with the same similarity."""
    records = list(
        read_requests(shared_data / "data" / "counterfact" / "counterfact-val.json", limit=400)
    )
    scope = trained_scope()
    store = SqliteStore(None)
    store.add(records, scope.embed([one.prompt for one in records]), scope.fingerprint)
    queries = scope.embed([one.rephrase_prompt[0] for one in records])
    memories = [
        EditMemory(store, scope, index=index, graph_from=1) for index in ("exact", "approximate")
    ]
    exact, own = ([found[0] for found in memory.nearest(queries)] for memory in memories)
    same = [a.edit.id == b.edit.id for a, b in zip(exact, own, strict=True)]
    assert sum(same) >= 399
    for a, b, is_same in zip(exact, own, same, strict=True):
        assert not is_same or a.squared_distance == pytest.approx(b.squared_distance, abs=1e-5)
