"""``easyedit-fast memory``: the edits of a memory's file, through the command line."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from easyedit_fast import Editor, EditRequest, read_requests
from easyedit_fast.serac import SqliteStore
from easyedit_fast.serac.scope import Scope
from tests.contract.test_methods import REQUESTS

PERU = EditRequest("The capital of Peru is", "Peru", "Oslo", ground_truth="Lima")


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    """A file of seven edits, two of which were removed; no encoder has made its embeddings."""
    path = tmp_path / "edits.sqlite"
    edits = [EditRequest(f"Land{n} [b]is[/b] near", f"Land{n}", f"Town{n}") for n in range(7)]
    with SqliteStore(path) as store:
        store.add(edits, torch.zeros(7, 4), "none")
        store.remove([2, 6])
    return path


def ids_in(path: Path) -> list[int]:
    with SqliteStore(path, read_only=True) as store:
        return [edit.id for edit in store.listed()]


def test_listing(run: Any, memory: Path) -> None:
    code, out, err = run("memory", "list", memory, "--limit", 2, "--after", 1, "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["memory"] == str(memory)
    assert (report["total"], report["has_more"]) == (5, True)
    assert [edit["id"] for edit in report["edits"]] == [3, 4]
    with SqliteStore(memory, read_only=True) as store:
        stored = list(store.added_after(2))[:2]
    for told, kept in zip(report["edits"], stored, strict=True):
        assert EditRequest.from_dict(told) == kept.request
        assert told["added"] == kept.added
    code, out, err = run("memory", "list", memory, "--limit", 3)
    assert (code, err) == (0, "")
    assert "Land0 [b]is[/b] near" in " ".join(out.split())
    assert "3 of 5 edits in" in out
    assert "the next ones: --after 4" in out
    code, out, err = run("memory", "list", memory, "--after", 4)
    assert (code, err) == (0, "")
    assert "the next ones" not in out


@pytest.mark.parametrize(
    "arguments", [["list"], ["remove", "1"], ["export", "out.jsonl"]], ids=lambda given: given[0]
)
def test_no_model_is_needed(arguments: list[str], memory: Path, tmp_path: Path) -> None:
    command, *rest = arguments
    script = (
        f"import sys; sys.argv = ['easyedit-fast', 'memory', {command!r}, {str(memory)!r}, "
        f"*{rest!r}]\n"
        "from easyedit_fast.cli import main\n"
        "try: main()\n"
        "finally: print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[]"


def test_removing(run: Any, memory: Path) -> None:
    code, out, err = run("memory", "remove", memory, 7, 3, 4, 3)
    assert (code, err) == (0, "")
    assert out.replace("\n", "") == f"removed: 3-4, 7; 2 left in {memory}"
    assert ids_in(memory) == [1, 5]
    for wrong, told in ((6, "edit 6 is not in"), (99, "edit 99 is not in"), ("x", "'ids'")):
        code, _, err = run("memory", "remove", memory, 1, wrong)
        assert code == 2
        assert told in err
        assert err.count("\n") == 1
        assert ids_in(memory) == [1, 5], "all or none"
    code, out, err = run("memory", "remove", memory, 1, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == {"memory": str(memory), "removed": [1], "total": 1}


def test_exporting(run: Any, memory: Path, tmp_path: Path) -> None:
    code, out, err = run("memory", "export", memory, tmp_path / "out.jsonl", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["total"] == 5
    with SqliteStore(memory, read_only=True) as store:
        kept = [edit.request for edit in store.listed()]
    assert list(read_requests(tmp_path / "out.jsonl")) == kept
    before = memory.read_bytes()
    for wrong, told in (
        (memory, "is there already; give a new file, or remove it"),
        (tmp_path / "out.jsonl", "is there already"),
        (tmp_path, "is a folder"),
        (tmp_path / "nowhere" / "out.jsonl", "there is no folder"),
    ):
        code, _, err = run("memory", "export", memory, wrong)
        assert code == 2
        assert told in err
    assert memory.read_bytes() == before


def test_importing_and_searching(run: Any, tmp_path: Path) -> None:
    """What is imported is what an editor would have added, and answers from it."""
    path, file = tmp_path / "edits.sqlite", tmp_path / "requests.jsonl"
    lines = [json.dumps(request.to_dict()) for request in [*REQUESTS, PERU]]
    file.write_text("\n".join([lines[0], '{"prompt": "No subject"}', *lines[1:]]))
    code, _, err = run("memory", "import", path, file)
    assert code == 2
    assert "record 1" in err
    assert not path.exists()
    code, out, err = run("memory", "import", path, file, "--skip-bad", "--json")
    assert code == 0
    assert "left out: record 1" in err
    added = list(range(1, len(REQUESTS) + 2))
    report = json.loads(out)
    assert report == {
        "memory": str(path), "added": added, "superseded": [], "total": len(added)
    }  # fmt: skip
    code, out, err = run("memory", "import", path, file, "--offset", len(lines))
    assert (code, err) == (0, "")
    told = out.replace("\n", "")
    assert told.startswith(f"added: {len(added) + 1}; {len(added) + 1} now in {path}")
    assert f"superseded: {len(added)}; of edits with the same prompt the newest holds" in told

    code, out, err = run("memory", "search", path, "Peru's capital is", "-n", 2, "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    first, second = report["edits"]
    assert report["answers"] == first["id"]
    assert (first["id"], first["target_new"]) == (len(added) + 1, "Oslo")  # the newest
    assert first["similarity"] > 0.5 > second["similarity"]
    code, out, err = run("memory", "search", path, REQUESTS[0].prompt)
    assert (code, err) == (0, "")
    assert "The nearest edits" in out
    assert "edit 1 answers it" in out
    code, out, err = run("memory", "search", path, REQUESTS[0].prompt, "--threshold", 1)
    assert (code, err) == (0, "")
    assert "no edit answers it" in out
    code, _, err = run("memory", "search", path, "Peru", "--threshold", 1.5)
    assert code == 2
    assert "--threshold" in err

    editor = Editor.from_pretrained("demo", method="serac", memory=path)
    (route,) = editor.method._router.routes(["Peru's capital is"])
    assert route.edit is not None
    assert (route.edit.id, route.similarity) == (first["id"], first["similarity"])
    found = editor.model.router.search("Peru's capital is", 2)
    told = [(one["id"], one["similarity"]) for one in (first, second)]
    assert [(edit.id, similarity) for edit, similarity in found] == told
    embedded = editor.method.memory.encoder.embed([PERU.prompt])[0]
    editor.method.close()
    with SqliteStore(path, read_only=True) as store:
        stored = list(store.added_after(0))[-1].embedding
    assert stored is not None
    torch.testing.assert_close(stored, embedded)


def test_what_is_no_memory_stays_as_it_is(run: Any, memory: Path, tmp_path: Path) -> None:
    requests = tmp_path / "requests.jsonl"
    requests.write_text(json.dumps(PERU.to_dict()))
    text, other, empty = (tmp_path / name for name in ("a.txt", "other.sqlite", "empty"))
    text.write_text("no database, but long enough to be taken for one" * 50)
    empty.touch()
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE own (a)")
    connection.close()
    files = (
        (text, "is no edit memory; give the file that edits were added to"),
        (other, "is no edit memory; give the file that edits were added to"),
        (empty, "is no edit memory; give the file that edits were added to"),
        (tmp_path / "nowhere.sqlite", "there is no file"),
        (tmp_path / "nowhere" / "edits.sqlite", "there is no folder"),
        (tmp_path, "is a folder"),
    )
    rest = {
        "list": [],
        "search": ["Peru's capital is"],
        "remove": [1],
        "export": [tmp_path / "out.jsonl"],
        "import": [requests],
    }
    for file, told in files:
        before = file.read_bytes() if file.is_file() else None
        for command, given in rest.items():
            if command == "import" and before is None and file.parent == tmp_path:
                continue  # it would be made
            code, _, err = run("memory", command, file, *given)
            assert code == 2, (command, file)
            assert told in err, (command, file)
            assert err.count("\n") == 1
        assert before is None or file.read_bytes() == before
    assert not (tmp_path / "out.jsonl").exists()


def test_a_memory_of_another_encoder(
    run: Any, memory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded: list[object] = []
    monkeypatch.setattr(Scope, "embed", lambda _, prompts: embedded.append(prompts))
    requests = tmp_path / "requests.jsonl"
    requests.write_text(json.dumps(PERU.to_dict()))
    for command, given in (("import", requests), ("search", "Peru")):
        code, _, err = run("memory", command, memory, given)
        assert code == 2
        assert "embedded by the encoder none" in err
        assert "export the requests (easyedit-fast memory export)" in err
        assert "name the trained editor of that encoder (--archive" in err
        assert err.count("\n") == 1
    assert not embedded, "it is refused before that"
    assert ids_in(memory) == [1, 3, 4, 5, 7]
    code, _, err = run("memory", "search", memory, " ")
    assert code == 2
    assert "the prompt is empty" in err
    code, _, err = run("memory", "search", memory, "Peru", "--archive", requests)
    assert code == 2
    assert "no safetensors file" in err
