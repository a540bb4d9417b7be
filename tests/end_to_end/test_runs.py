"""Runs over a file on the real model, through the command line; the slow one is killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from easyedit_fast import Edit
from tests.end_to_end.killing import killed_and_compared

FACTS = [
    ("Oslo", "Chile"), ("Lima", "Norway"), ("Kyoto", "Kenya"), ("Nairobi", "Japan"),
    ("Bergen", "Peru"), ("Quito", "Sweden"), ("Osaka", "Spain"),
]  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Seven records, of which number 2 cannot be used."""
    records = [
        {
            "prompt": "{} is in the country of",
            "subject": subject,
            "target_new": target,
            "rephrase_prompt": f"The people of {subject} live in",
            "locality": {"neighborhood": {"prompt": "Paris is in", "ground_truth": "France"}},
        }
        for subject, target in FACTS
    ]
    records[2]["target_new"] = ""
    path = tmp_path / "requests.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    return path


@pytest.fixture
def quick(tmp_path: Path) -> Path:
    path = tmp_path / "quick.yaml"
    path.write_text("context_templates: ['{}']\nv_num_grad_steps: 3\n")
    return path


def results_of(path: Path) -> list[dict[str, Any]]:
    """The lines of a results file without the seconds."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        assert set(line["timings"]) == {"batch", "divided_by", "seconds"}
        del line["timings"]["seconds"]
    return lines


def test_a_run_goes_on_where_it_was_and_gives_the_same(
    run: Any, file: Path, quick: Path, tmp_path: Path
) -> None:
    out, folder = tmp_path / "out.jsonl", tmp_path / "edits"
    command = (
        "edit", "--file", file, "--skip-bad", "--isolated", "--hparams", quick,
        "--batch-size", "2", "--out", out, "--save", folder, "--json",
    )  # fmt: skip
    code, text, err = run(*command)
    assert (code, err.count("left out: record 2")) == (0, 1)
    report = json.loads(text)
    whole = out.read_bytes()
    lines = results_of(out)
    assert [line["case_id"] for line in lines] == [0, 1, 3, 4, 5, 6]
    assert [line["timings"]["batch"] for line in lines] == [0, 0, 1, 1, 2, 2]
    assert [line["edit"] for line in lines] == sorted(path.name for path in folder.iterdir())
    assert report["summary"]["post"]["rewrite_acc"]["count"] == report["records"] == 6
    assert report["saved"]["results"] == str(out)
    edit = Edit.load(folder / "edit-00003.safetensors")
    assert edit.requests[0].subject == "Nairobi"

    # What a kill leaves: a whole batch, one line of the next, and a torn one.
    ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    out.write_bytes(whole[: ends[2] + 20])
    code, text, err = run(*command)
    assert code == 0
    again = json.loads(text)
    assert (again["resumed"], again["records"]) == (2, 6)
    assert out.read_bytes()[: ends[1]] == whole[: ends[1]]
    assert results_of(out) == lines
    assert again["summary"] == report["summary"]
    code, text, err = run(*command[:-1])
    assert code == 0
    assert "Scores" in text
    assert f"resultsin{out}" in "".join(text.split())  # wherever the lines are broken

    some = tmp_path / "some.jsonl"
    part = tuple(some if each == out else each for each in command if each != "--save")
    part = tuple(each for each in part if each != folder)
    for limit in (2, 4):  # more records: it goes on
        code, text, err = run(*part, "--limit", limit)
        assert (code, json.loads(text)["resumed"]) == (0, limit - 2)
    data = file.read_bytes()
    own = ("--skip-bad", "--isolated", "--out", file, "--overwrite")
    code, text, err = run("edit", "--file", file, *own)
    assert (code, text) == (2, "")
    assert "is what --file reads; give another path" in err
    assert file.read_bytes() == data
    (tmp_path / "notes.txt").write_text("mine")
    code, text, err = run(*part, "--out", tmp_path / "notes.txt", "--overwrite")
    assert (code, text) == (2, "")
    assert (tmp_path / "notes.txt").read_text() == "mine"

    code, text, err = run(*command, "--layers", "4")
    assert (code, text) == (2, "")
    assert "belongs to another run: settings.hyperparameters is" in err
    assert "or overwrite=True (--overwrite) to begin anew" in err
    file.write_text(file.read_text().replace("Oslo", "Turku"))
    code, text, err = run(*command)
    assert code == 2
    assert "data.sha256 is" in err
    assert results_of(out) == lines


BAD_COMBINATIONS = [
    (["--out", "OUT"], "--out is for --isolated edits of a --file"),
    (["--out", "OUT", "--isolated", "--peft", "x"], "without --peft"),
    (["--out", "none/out.jsonl", "--isolated"], "create it first"),
    (["--overwrite"], "--overwrite is for the results; name their file with --out"),
    (["--out", "OUT", "--isolated", "--batch-size", "0"], "neither 'auto' nor a positive number"),
    (["--sequential", "2", "--isolated"], "--sequential needs --together"),
    (["--sequential", "0"], "--sequential"),
    (["--out", "OUT", "--isolated", "--save", "."], "is not empty; give a new folder"),
    (["--out", "FILE", "--isolated"], "is what --file reads; give another path"),
]


@pytest.mark.parametrize(("options", "message"), BAD_COMBINATIONS)
def test_options_that_make_no_sense_are_refused(
    run: Any, file: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    before = file.read_bytes()
    places = {"OUT": tmp_path / "out.jsonl", "FILE": file}
    given = [str(places.get(option, option)) for option in options]
    code, out, err = run("edit", "--file", file, "--skip-bad", *given)
    assert (code, out) == (2, "")
    assert message in err.strip().splitlines()[-1]
    assert file.read_bytes() == before


def test_edits_in_sequence(run: Any, file: Path, quick: Path, tmp_path: Path) -> None:
    command = ("edit", "--file", file, "--skip-bad", "--limit", "4", "--hparams", quick)
    code, out, _ = run(*command, "--sequential", "2", "--save", tmp_path / "edits", "--json")
    assert code == 0
    report = json.loads(out)
    assert [len(edit["requests"]) for edit in report["edits"]] == [2, 1]
    assert report["settings"]["sequential"] == 2
    assert set(report["summary"]) >= {"pre", "post_batch", "post"}
    names = sorted(path.name for path in (tmp_path / "edits").iterdir())
    assert names == ["edit-00000.safetensors", "edit-00001.safetensors"]
    # The saved batches, applied in this order, are the edited model.
    code, out, _ = run("apply", *(tmp_path / "edits" / name for name in names), "--json")
    assert code == 0
    texts = [
        text for entry in report["metrics"] for text in entry["post"]["generated"]["rewrite_text"]
    ]
    after = [generation["after"] for generation in json.loads(out)["generations"]]
    assert all(long.startswith(short) for long, short in zip(after, texts, strict=True))


@pytest.mark.slow
def test_killed_at_random_moments_a_run_loses_nothing(
    file: Path, quick: Path, tmp_path: Path, demo_model: Any
) -> None:
    def process(out: Path) -> subprocess.Popen[bytes]:
        command = (
            sys.executable, "-m", "easyedit_fast", "edit", "--file", file, "--skip-bad",
            "--isolated", "--hparams", quick, "--batch-size", "1", "--out", out,
            "--save", out.with_suffix(""), "--device", "cpu", "--json",
        )  # fmt: skip
        return subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL)

    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    written = [0]

    def grown() -> None:
        written.append(killed.read_bytes().count(b"\n") if killed.exists() else 0)
        assert written[-1] >= written[-2]

    def remove() -> None:
        killed.unlink()
        written.append(0)

    def compare() -> None:
        lines = results_of(whole)
        assert [line["case_id"] for line in lines] == [0, 1, 3, 4, 5, 6]
        assert results_of(killed) == lines
        for line in lines:
            one, other = (path.with_suffix("") / line["edit"] for path in (whole, killed))
            assert Edit.load(one).id == Edit.load(other).id

    killed_and_compared(
        process, whole, killed, kills=20, earliest=0.3, compare=compare, remove=remove,
        after_each=grown,
    )  # fmt: skip
