"""Files of results: torn lines, other runs, one writer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from easyedit_fast.errors import DataFileError, MissingFileError
from easyedit_fast.result_files import ResultsFile, header_path, open_results

RUN: dict[str, Any] = {"method": "rome", "hparams": {"v_lr": 0.5, "layers": [5]}, "limit": None}
LINES = [{"case_id": number, "text": "ä\u2028ö \n ü"} for number in range(4)]


def opened(
    path: Path, run: dict[str, Any] = RUN, **options: Any
) -> AbstractContextManager[ResultsFile]:
    settled = options.pop("settled", {"batch_size": 4})
    return open_results(path, run, about={"file": "a.json"}, settled=settled, **options)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "results.jsonl"


def test_a_run_goes_on_with_what_it_settled(path: Path) -> None:
    with opened(path) as results:
        assert (results.lines, results.settled) == ([], {"batch_size": 4})
        results.append(LINES[:3])
        # On the disk already, as another process would read them.
        assert [json.loads(line) for line in path.read_bytes().splitlines()] == LINES[:3]
    with opened(path, settled={"batch_size": 7}) as results:
        assert (results.lines, results.settled) == (LINES[:3], {"batch_size": 4})
        results.append(LINES[3:])
        assert results.lines == LINES
    with opened(path) as results:
        assert results.lines == LINES
        results.cut(1)
        results.append(LINES[1:2])
    with opened(path) as results:
        assert results.lines == LINES[:2]
    header = json.loads(header_path(path).read_text())
    assert header["description"] == RUN
    assert header["about"] == {"file": "a.json"}


def test_a_torn_last_line_is_cut_off_wherever_it_ends(path: Path) -> None:
    with opened(path) as results:
        results.append(LINES[:2])
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with opened(path) as results:
            assert results.lines == LINES[: 1 if end >= first else 0]
            results.append(LINES[len(results.lines) : 2])
        assert path.read_bytes() == whole


@pytest.mark.parametrize("line", [b"{]\n", b"7\n", b"\n", b"\x00\x00\n", b"\xff\n"])
def test_a_damaged_line_among_whole_ones_is_refused(path: Path, line: bytes) -> None:
    with opened(path) as results:
        results.append(LINES[:2])
    content = path.read_bytes()
    path.write_bytes(line + content)
    with pytest.raises(DataFileError, match=r"line 1 is damaged; cut the file before that line"):
        opened(path).__enter__()
    assert path.read_bytes() == line + content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "mend"}, "method is 'rome' there and 'mend' here; give another path, or"),
        ({"hparams": {"v_lr": 0.1, "layers": [5]}}, "hparams.v_lr is 0.5 there and 0.1 here"),
        ({"hparams": {"v_lr": 0.5}}, r"hparams.layers is \[5\] there and missing here"),
        ({"seed": 1}, "seed is missing there and 1 here"),
        ({"limit": 3, "method": "x"}, r"method is .* \(and 1 more\); give another path"),
    ],
)
def test_another_run_is_refused_and_says_what_differs(
    path: Path, change: dict[str, Any], message: str
) -> None:
    with opened(path) as results:
        results.append(LINES)
    content = path.read_bytes()
    with pytest.raises(DataFileError, match=message):
        opened(path, {**RUN, **change}).__enter__()
    assert path.read_bytes() == content
    with opened(path, {**RUN, **change}, overwrite=True) as results:
        assert results.lines == []
        results.append(LINES[:1])
    # The same command again goes on, instead of beginning anew.
    with opened(path, {**RUN, **change}, overwrite=True) as results:
        assert results.lines == LINES[:1]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (None, "has no header results.jsonl.run.json"),
        ("{", "is no header of results"),
        ("[]", "is no header of results"),
        ("{}", "is no header of results"),
        ('{"description": {}, "format": "x"}', "another version"),
    ],
)
def test_a_file_without_a_good_header_is_not_touched(
    path: Path, header: str | None, message: str
) -> None:
    path.write_text("precious\n")
    if header is not None:
        header_path(path).write_text(header)
    with pytest.raises(DataFileError, match=message):
        opened(path).__enter__()
    assert path.read_text() == "precious\n"
    if header is None:  # somebody else's file
        with pytest.raises(DataFileError, match=message):
            opened(path, overwrite=True).__enter__()
        assert path.read_text() == "precious\n"
        return
    with opened(path, overwrite=True) as results:
        assert results.lines == []


def test_there_is_one_writer_also_after_a_kill(path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from easyedit_fast.result_files import *\n"
        f"with open_results(Path(sys.argv[1]), {RUN!r}, about={{}}, settled={{}}) as results:\n"
        "    results.append([{'case_id': 0}])\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(600)\n"
    )
    command = [sys.executable, "-c", script, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        for overwrite in (False, True):
            with pytest.raises(DataFileError, match="is being written by another process"):
                opened(path, overwrite=overwrite).__enter__()
        os.kill(other.pid, signal.SIGKILL)
    with opened(path) as results:
        assert results.lines == [{"case_id": 0}]
        with pytest.raises(DataFileError, match="is being written"):
            opened(path).__enter__()


def test_nan_is_not_written(path: Path) -> None:
    with opened(path) as results:
        with pytest.raises(ValueError, match="not JSON compliant"):
            results.append([{"score": 1.0}, {"score": float("nan")}])
        assert results.lines == []
    assert path.read_bytes() == b""


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="there is no folder"):
        opened(tmp_path / "none" / "results.jsonl").__enter__()
