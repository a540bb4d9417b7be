"""The end of an idle ``easyedit-fast serve``, as people see it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch

from easyedit_fast import EditRequest
from easyedit_fast.cli.serve import _close, _last_words
from easyedit_fast.serac.store import SqliteStore
from tests.end_to_end.servers import edit, untrained_editor

pytestmark = pytest.mark.usefixtures("demo_model")  # says what is missing


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server without ``--json``, and its address."""
    archive = untrained_editor(folder)
    command = [sys.executable, "-m", "easyedit_fast", "serve", "--port", "0",
               "--archive", archive.name, "--memory", "edits.sqlite"]  # fmt: skip
    with subprocess.Popen(
        command, cwd=folder, env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            first = process.stdout.readline()
            found = re.fullmatch(r"serving demo with 0 edits on (\S+); Ctrl-C stops it\n", first)
            assert found, first
            yield process, found[1]
            process.wait(120)
        finally:
            process.kill()


def test_it_says_where_the_edits_are(tmp_path: Path) -> None:
    """Though a client keeps its connection."""
    with serving(tmp_path) as (process, url), httpx.Client(base_url=url, timeout=60) as http:
        assert http.post("/v1/edits", json=[edit(0), edit(1)]).is_success
        assert http.delete("/v1/edits/1").is_success
        process.send_signal(signal.SIGTERM)
        rest, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (0, "")
    assert rest == "stopped; 1 edit is in edits.sqlite\n"
    assert not list(tmp_path.glob("edits.sqlite-*")), "the file is whole by itself"
    assert [one.id for one in SqliteStore(tmp_path / "edits.sqlite").listed()] == [2]


def test_nobody_has_to_hear_it(tmp_path: Path) -> None:
    with serving(tmp_path) as (process, _):
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_the_last_words_are_what_the_file_tells(tmp_path: Path) -> None:
    assert _last_words(None) == "stopped; the edits are gone, for no --memory named a file"
    file = tmp_path / "edits.sqlite"
    assert re.fullmatch(r"stopped; there is no .*edits\.sqlite.*", _last_words(file))
    with SqliteStore(file) as store:
        store.add([EditRequest(**edit(n)) for n in range(2)], torch.ones(2, 3), "some")
        assert _last_words(file) == f"stopped; 2 edits are in {file}"


def test_an_edit_that_waits_for_another_process_does_not_hold_the_end_up(tmp_path: Path) -> None:
    file = tmp_path / "edits.sqlite"
    store = SqliteStore(file)
    requests = [EditRequest(**edit(0))]
    adding = threading.Thread(target=store.add, args=(requests, torch.ones(1, 3), "some"))
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        adding.start()
        while store._write_lock.acquire(blocking=False):  # it has not come that far
            store._write_lock.release()
        _close(store)
        assert adding.is_alive(), "it waits yet"
        other.execute("COMMIT")
    adding.join(60)
    with SqliteStore(file) as again:
        assert len(again) == 1
