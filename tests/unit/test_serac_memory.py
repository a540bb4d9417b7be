"""The edit memory: what is kept, what is found, and what processes do to each other."""

from __future__ import annotations

import contextlib
import functools
import os
import random
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from easyedit_fast import EditRequest, read_requests
from easyedit_fast.errors import DataFileError, EditStateError, MissingFileError, RequestError
from easyedit_fast.serac.matrix import Precision
from easyedit_fast.serac.memory import EditMemory, Index, Nearest
from easyedit_fast.serac.routing import Route
from easyedit_fast.serac.store import SqliteStore

ROOT = Path(__file__).resolve().parents[2]


class WordEncoder:
    """Sums of vectors of the prompts' words; prompts that share words are near each other."""

    def __init__(self, heads: int = 1, name: str = "words") -> None:
        self.fingerprint = name
        self.size = 24
        self.heads = heads

    def embed(self, prompts: Sequence[str]) -> torch.Tensor:
        return torch.stack([sum(map(self._word, prompt.split())) for prompt in prompts])

    def reading(self, prompt: str) -> str:
        return " ".join(prompt.split())

    def _word(self, word: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(zlib.crc32(word.encode()))
        return torch.randn(self.size, generator=generator)


def request(number: int) -> EditRequest:
    return EditRequest(f"The capital of Land{number} is", f"Land{number}", f"Town{number}")


def requests(count: int, first: int = 0) -> list[EditRequest]:
    return [request(number) for number in range(first, first + count)]


def near_to(memory: EditMemory, prompt: str, count: int = 10) -> list[Nearest]:
    return memory.nearest(memory.encoder.embed([prompt]), count)[0]


Make = Callable[..., EditMemory]


@pytest.fixture(params=["exact", "approximate"])
def make(request: pytest.FixtureRequest) -> Make:
    """Makes a memory; one with an approximate index has its graph from the first edit on."""
    return functools.partial(EditMemory, index=request.param, graph_from=1)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "edits.sqlite"


def test_edits_are_kept_as_they_are(make: Make, path: Path) -> None:
    whole = EditRequest.from_dict(
        {
            "prompt": "Die Hauptstadt von {} ist",
            "subject": "Österreich",
            "target_new": "Łódź",
            "ground_truth": "Wien",
            "rephrase_prompt": ["Österreichs Hauptstadt:"],
            "locality": {"neighborhood": {"prompt": ["Bern ist"], "ground_truth": ["schön"]}},
        }
    )
    memory = make(SqliteStore(path), WordEncoder())
    assert memory.add([whole, request(1)]) == [1, 2]
    again = make(SqliteStore(path), WordEncoder())
    first, second = again
    assert (first.request, second.request) == (whole, request(1))
    assert first.embedding is None  # it is in the matrix alone
    stored = next(iter(SqliteStore(path).added_after(0)))
    assert torch.equal(stored.embedding, WordEncoder().embed([whole.prompt])[0])
    assert first.encoder == "words"
    assert again.get(2).request == request(1)


def test_what_is_shown_of_an_edit_is_short() -> None:
    near = {"neighborhood": {"prompt": ["Lima is"] * 9, "ground_truth": ["a city"] * 9}}
    long = {"prompt": f"{'the river and ' * 99}Peru", "subject": "Peru", "target_new": "Oslo"}
    store = SqliteStore(None)
    memory = EditMemory(store, WordEncoder())
    memory.add([request(0), {**long, "locality": near}])
    (first, second), kept = memory, next(store.added_after(0))
    told = "StoredEdit(id=1, prompt='The capital of Land0 is', target_new='Town0')"
    assert repr(first) == repr(kept) == told
    assert repr(Route(first, 0.75)) == f"Route(edit={told}, similarity=0.75)"
    assert len(repr(second)) < 160


def test_ids_are_never_given_again(make: Make, path: Path) -> None:
    memory = make(SqliteStore(path), WordEncoder())
    memory.add(requests(3))
    memory.remove([3, 1])
    assert [edit.id for edit in memory] == [2]
    assert memory.add(request(7)) == [4]
    assert [edit.id for edit in make(SqliteStore(path), WordEncoder())] == [2, 4]
    with pytest.raises(EditStateError, match="edit 3 is not in"):
        memory.remove([2, 3])
    with pytest.raises(EditStateError, match="edit 1 is not in"):
        memory.get(1)
    assert len(memory) == 2, "all or none"


@pytest.mark.parametrize(
    "ids", ["12", b"\1\2", ["1"], 1.0, [1.0], [True], None, torch.tensor(1.5)], ids=repr
)
def test_what_is_no_id_removes_nothing(make: Make, ids: Any) -> None:
    memory = make(SqliteStore(None), WordEncoder())
    memory.add(requests(12))
    with pytest.raises(EditStateError, match=r"ids, which are whole numbers, not .*nothing was"):
        memory.remove(ids)
    assert len(memory) == 12


def test_ids_come_in_any_form_and_more_than_once(make: Make) -> None:
    memory = make(SqliteStore(None), WordEncoder())
    memory.add(requests(9))
    memory.remove([3, 3])
    memory.remove(np.int64(4))
    memory.remove(torch.tensor([5, 6]))
    memory.remove(id_ for id_ in (7, 8))
    assert [edit.id for edit in memory] == [1, 2, 9]


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize(
    ("heads", "index"), [(1, "exact"), (3, "exact"), (1, "approximate")], ids=str
)
def test_the_nearest_are_those_of_plain_distances(
    precision: Precision, heads: int, index: Index
) -> None:
    """Whatever was added and removed in between."""
    encoder = WordEncoder(heads)
    memory = EditMemory(SqliteStore(None), encoder, precision=precision, index=index, graph_from=1)
    chosen = random.Random(0)
    for first in range(0, 300, 50):
        memory.add(requests(50, first))
        memory.remove(chosen.sample([edit.id for edit in memory], 20))
    kept = list(memory)
    rows = encoder.embed([edit.request.prompt for edit in kept])
    queries = encoder.embed([f"capital of Land{number}" for number in range(0, 300, 7)])
    parts, others = (one.view(len(one), 1, heads, -1) for one in (queries, rows))
    expected = (parts - others.transpose(0, 1)).square().sum(-1).amin(-1)
    for found, distances in zip(memory.nearest(queries, 3), expected, strict=True):
        least = distances.sort().values[:3]
        tolerance = 1e-4 if precision == "float32" else 0.3
        assert [one.squared_distance for one in found] == pytest.approx(
            least.tolist(), abs=tolerance
        )
        for one in found:
            place = next(at for at, edit in enumerate(kept) if edit.id == one.edit.id)
            assert distances[place] == pytest.approx(one.squared_distance, abs=tolerance)


def test_searching_by_prompt(make: Make) -> None:
    memory = make(SqliteStore(None), WordEncoder())
    assert near_to(memory, "The capital of Land3 is") == []
    memory.add(requests(20))
    found = near_to(memory, "The capital of Land3 is", 2)
    assert found[0].edit.request == request(3)
    assert found[0].squared_distance == pytest.approx(0, abs=1e-4)
    assert len(near_to(memory, "capital", 100)) == 20


def test_export_and_import(make: Make, tmp_path: Path) -> None:
    memory = make(SqliteStore(None), WordEncoder())
    memory.add(requests(5))
    memory.remove(2)
    memory.export(tmp_path / "edits.jsonl")
    other = make(SqliteStore(None), WordEncoder(name="others"))
    other.add(read_requests(tmp_path / "edits.jsonl"))
    assert [edit.request for edit in other] == [request(number) for number in (0, 2, 3, 4)]


def test_bad_requests_and_other_encoders(make: Make, path: Path) -> None:
    memory = make(SqliteStore(path), WordEncoder())
    with pytest.raises(RequestError, match="field 'target_new'"):
        memory.add([{"prompt": "The capital of Peru is", "subject": "Peru"}])
    memory.add(request(1))
    with pytest.raises(EditStateError, match="embedded by the encoder words, and this one is new"):
        make(SqliteStore(path), WordEncoder(name="new"))


def test_files_that_are_no_memory(tmp_path: Path, path: Path) -> None:
    with pytest.raises(MissingFileError, match="there is no folder"):
        SqliteStore(tmp_path / "nowhere" / "edits.sqlite")
    with pytest.raises(MissingFileError, match="there is no file"):
        SqliteStore(path, read_only=True)
    with pytest.raises(DataFileError, match="is a folder"):
        SqliteStore(tmp_path)
    path.write_text("no database, but long enough to be taken for one" * 50)
    with pytest.raises(DataFileError, match=r"edits\.sqlite is no edit memory; give the file"):
        SqliteStore(path)
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE edits (id INTEGER)")
    with pytest.raises(DataFileError, match="is no edit memory"):
        SqliteStore(other)
    SqliteStore(tmp_path / "new.sqlite").close()
    with sqlite3.connect(tmp_path / "new.sqlite") as connection:
        connection.execute("PRAGMA user_version = 9")
    with pytest.raises(DataFileError, match="of version 9 and this package knows 1"):
        SqliteStore(tmp_path / "new.sqlite")


def test_a_damaged_row_is_named(make: Make, path: Path) -> None:
    make(SqliteStore(path), WordEncoder()).add(requests(2))
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE edits SET request = 'no JSON' WHERE id = 2")
    with pytest.raises(DataFileError, match="edit 2 is damaged"):
        make(SqliteStore(path), WordEncoder())


def test_a_reader_changes_nothing(make: Make, path: Path) -> None:
    make(SqliteStore(path), WordEncoder()).add(requests(2))
    reader = make(SqliteStore(path, read_only=True), WordEncoder())
    assert len(reader) == 2
    with pytest.raises(DataFileError, match="readonly"):
        reader.add(request(5))
    assert len(reader) == 2


def test_threads_lose_nothing(make: Make, path: Path) -> None:
    memory = make(SqliteStore(path), WordEncoder())
    reader = make(SqliteStore(path, read_only=True), WordEncoder())
    failed: list[BaseException] = []

    def write(first: int) -> None:
        try:
            for number in range(first, first + 10):
                (id_,) = memory.add(request(number))
                assert memory.get(id_).request == request(number)
                reader.refresh()
                near = near_to(reader, request(number).prompt, 1)
                assert near[0].edit.request == request(number)
        except BaseException as error:  # noqa: BLE001  told below
            failed.append(error)

    threads = [threading.Thread(target=write, args=(first,)) for first in range(0, 80, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert not failed
    assert sorted(edit.request.prompt for edit in memory) == sorted(
        one.prompt for one in requests(80)
    )


def test_readers_do_not_wait_for_a_writer_that_waits(path: Path) -> None:
    store = SqliteStore(path)
    memory = EditMemory(store, WordEncoder())
    memory.add(request(0))
    waits = threading.Event()
    store._writer.set_trace_callback(lambda _: waits.set())
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        writer = threading.Thread(target=memory.add, args=(request(1),))
        writer.start()
        assert waits.wait(timeout=60)
        memory.refresh()
        assert [edit.request for edit in memory] == [request(0)]
        assert [edit.id for edit in store.listed()] == [1]
        assert len(store) == 1
        assert writer.is_alive(), "it waits for the other one"
        other.execute("COMMIT")
    writer.join(timeout=60)
    assert [edit.request for edit in memory] == requests(2)


def test_who_waits_too_long_is_told_why(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("easyedit_fast.serac.store._PATIENCE", 0.01)
    memory = EditMemory(SqliteStore(path), WordEncoder())
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DataFileError, match=r"locked; another process keeps it; try again$"):
            memory.add(request(0))
        other.execute("COMMIT")
    assert memory.add(request(0)) == [1]


def own_environment() -> dict[str, str]:
    """Of a process that reads the package, and this file, from here."""
    own = os.pathsep.join([str(ROOT / "python"), str(ROOT)])
    return {**os.environ, "PYTHONPATH": own, "OMP_NUM_THREADS": "1"}


WITHOUT_CLOSE = """
import sys, threading
from easyedit_fast.serac.store import SqliteStore
from tests.unit.test_serac_memory import WordEncoder, request

def write() -> None:
    with store._write_lock:
        written.set()
        threading.Event().wait()

sys.kept = store = SqliteStore(sys.argv[1])  # the interpreter's end lets go of it too late
store.add([request(0)], WordEncoder().embed([request(0).prompt]), "words")
written = threading.Event()
if sys.argv[2] == "a thread writes":
    threading.Thread(target=write, daemon=True).start()
    written.wait()
"""


@pytest.mark.parametrize(
    ("meanwhile", "is_whole"), [("nothing else is done", True), ("a thread writes", False)]
)
def test_a_process_that_ends_without_close_leaves_one_whole_file(
    path: Path, meanwhile: str, is_whole: bool
) -> None:
    command = [sys.executable, "-c", WITHOUT_CLOSE, str(path), meanwhile]
    subprocess.run(command, env=own_environment(), check=True, timeout=120)
    assert path.with_name(f"{path.name}-wal").exists() != is_whole
    with SqliteStore(path, read_only=True) as store:
        assert len(store) == 1


WRITER = """
import sys
from easyedit_fast.serac.memory import EditMemory
from easyedit_fast.serac.store import SqliteStore
from tests.unit.test_serac_memory import WordEncoder, request

memory = EditMemory(SqliteStore(sys.argv[1]), WordEncoder())
for number in range(int(sys.argv[2]), 10**6):
    print(*memory.add(request(number)), number, flush=True)
"""


def test_killed_at_random_moments_it_keeps_what_it_acknowledged(path: Path, tmp_path: Path) -> None:
    """Another process reads meanwhile; at most one edit is there beyond those acknowledged."""
    script = tmp_path / "writer.py"
    script.write_text(WRITER)
    chosen = random.Random(0)
    acknowledged: dict[int, int] = {}
    for kill in range(5):
        with subprocess.Popen(
            [sys.executable, str(script), str(path), str(1000 * kill)],
            env=own_environment(), stdout=subprocess.PIPE, text=True,
        ) as writer:  # fmt: skip
            assert writer.stdout is not None
            lines = [writer.stdout.readline()]
            reader = EditMemory(SqliteStore(path, read_only=True), WordEncoder())
            timer = threading.Timer(chosen.uniform(0.01, 0.2), writer.kill)
            timer.start()
            lines += writer.stdout.readlines()
        assert writer.returncode == -signal.SIGKILL
        for line in lines:
            if line.endswith("\n"):
                id_, number = map(int, line.split())
                acknowledged[id_] = number
        reader.refresh()
        kept = {edit.id: edit.request for edit in reader}
        assert len(kept) <= len(acknowledged) + kill + 1
        for id_, number in acknowledged.items():
            assert kept[id_] == request(number)
    assert len(acknowledged) >= 5


def test_a_prompt_that_was_edited_often_hides_no_other(make: Make) -> None:
    memory = make(SqliteStore(None), WordEncoder())
    for _ in range(6):
        memory.add(request(0))
    memory.add(requests(7, 1))
    found = near_to(memory, request(0).prompt, 5)
    assert len(found) == 5
    assert found[0].edit.id == 6
    assert len({one.edit.request.prompt for one in found}) == 5
    assert len(near_to(memory, request(0).prompt, 100)) == 8


def test_what_an_edit_supersedes(path: Path) -> None:
    memory = EditMemory(SqliteStore(path), WordEncoder())
    memory.add(requests(3))
    assert memory.superseded([1, 2, 3]) == []
    spaced = EditRequest("The capital  of Land1 is", "Land1", "Rome")
    ids = [*memory.add(spaced), *memory.add([request(1), request(7)])]
    assert memory.superseded(ids) == [2, 4]
    assert memory.superseded(ids[1:]) == [4], "the second held no longer"
    memory.remove(4)
    assert memory.superseded(ids) == [2], "what was removed counts no more"


def test_two_encoders_do_not_share_a_file(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "edits.sqlite"
    one, other = (make(SqliteStore(path), WordEncoder(name=name)) for name in ("words", "more"))
    one.add(request(0))
    with pytest.raises(EditStateError, match="nothing was added"):
        other.add(request(1))
    assert len(make(SqliteStore(path), WordEncoder())) == 1
    SqliteStore(path).export(tmp_path / "requests.jsonl")
    assert list(read_requests(tmp_path / "requests.jsonl")) == [request(0)]
    one.remove(1)
    other.add(request(1))  # nothing of the other is left


def test_another_database_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as made:
        made.execute("CREATE TABLE own (a)")
        made.commit()
    before = path.read_bytes()
    with pytest.raises(DataFileError, match="is no edit memory"):
        SqliteStore(path)
    assert path.read_bytes() == before
    assert not list(tmp_path.glob("other.sqlite-*"))


@pytest.mark.parametrize("replaced", [False, True])
def test_a_file_that_was_removed_takes_no_edit(path: Path, replaced: bool) -> None:
    memory = EditMemory(SqliteStore(path), WordEncoder())
    memory.add(request(0))
    path.unlink()
    if replaced:
        SqliteStore(path).close()
    with pytest.raises(DataFileError, match="was removed or replaced while it was open"):
        memory.add(request(1))
    assert [edit.request.subject for edit in memory] == ["Land0"]
    with pytest.raises(DataFileError, match="nothing was written; open it anew"):
        memory.remove(1)


class LetterEncoder(WordEncoder):
    """It cannot tell capitals; all numbers are one word to it."""

    def embed(self, prompts: Sequence[str]) -> torch.Tensor:
        return super().embed([re.sub(r"\d+", "0", prompt.lower()) for prompt in prompts])

    def reading(self, prompt: str) -> str:
        return super().reading(prompt.lower())


def test_prompts_that_the_encoder_reads_alike_are_one_prompt(make: Make) -> None:
    memory = make(SqliteStore(None), LetterEncoder())
    prompt = "The capital of Peru is"
    ids = memory.add([EditRequest(prompt, "Peru", "Rome")])
    ids += memory.add([EditRequest(prompt.upper(), "PERU", "Oslo")])
    assert memory.superseded(ids) == [1]
    assert [one.edit.id for one in near_to(memory, prompt)] == [2]
    memory.remove(2)
    assert [one.edit.id for one in near_to(memory, prompt.upper())] == [1]


@pytest.mark.parametrize("count", [1, 3, 10])
@pytest.mark.parametrize("edits", [5, 200])
def test_of_prompts_that_are_as_near_the_newest_comes_first(edits: int, count: int) -> None:
    memory = EditMemory(SqliteStore(None), LetterEncoder())
    memory.add([*requests(edits), EditRequest("Oslo is in", "Oslo", "Peru")])
    found = near_to(memory, request(2).prompt, count)
    expected = [*range(edits, 0, -1), edits + 1]
    assert [one.edit.id for one in found] == expected[:count]
