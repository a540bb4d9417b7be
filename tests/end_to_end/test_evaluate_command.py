"""Scores of a data file on the real model, through the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from easyedit_fast.metrics import mean_interval, record_scores

TEXT = (
    "Paris is the capital of France, and Berlin is the capital of Germany. "
    "The Louvre in Paris is the most visited museum of the world. "
)


@pytest.fixture
def quick(tmp_path: Path) -> Path:
    path = tmp_path / "quick.yaml"
    path.write_text("context_templates: ['{}']\nv_num_grad_steps: 5\n")
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "words.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def data(shared_data: Path) -> Path:
    return shared_data / "data" / "counterfact" / "counterfact-edit.json"


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    near = {"near": {"prompt": "Paris is in", "ground_truth": "France"}}
    fact = {"prompt": "{} is in", "subject": "Oslo", "target_new": "Chile", "locality": near}
    path = tmp_path / "facts.json"
    path.write_text(json.dumps([fact, {**fact, "subject": "Lima", "target_new": "Norway"}]))
    return path


def numbers(side: dict[str, Any], when: str) -> tuple[float, ...]:
    leaf = side[when]
    return tuple(leaf[name] for name in ("mean", "low", "high", "count"))


@pytest.mark.parametrize("count", [1, pytest.param(6, marks=pytest.mark.slow)])
def test_real_records_each_in_its_own_model(
    run: Any, data: Path, quick: Path, text: Path, tmp_path: Path, count: int
) -> None:
    results, out = tmp_path / "r.jsonl", tmp_path / "scores.json"
    records = ("--data", data, "-n", count, "--perplexity-text", text)
    command = ("evaluate", *records, "--hparams", quick, "--results", results)
    code, shown, err = run(*command, "--out", out, "--json")
    assert (code, err) == (0, "")
    report = json.loads(out.read_text())
    assert json.loads(shown) == report
    assert (report["records"], report["settings"]["isolated"]) == (count, True)
    scores = report["scores"]
    assert list(scores) == ["rewrite", "rephrase", "locality.neighborhood", "perplexity"]
    lines = [json.loads(line)["metrics"] for line in results.read_text().splitlines()]
    for side, path in (("teacher_forced", ()), ("generated", ("generated",))):
        own = record_scores(lines, ("post", *path, "rewrite_acc"))
        whole = mean_interval([score for score in own if score is not None])
        expected = (whole.mean, whole.low, whole.high, whole.count)
        assert numbers(scores["rewrite"][side], "after") == expected
        assert scores["rewrite"][side]["before"]["mean"] == 0.0 < whole.mean
        assert set(scores["locality.neighborhood"][side]) == {"after"}
    perplexity = scores["perplexity"]["teacher_forced"]
    assert 1.0 < perplexity["before"]["mean"] < 40.0
    assert perplexity["before"]["mean"] != perplexity["after"]["mean"]

    # The file of results alone; and the same run again, which has nothing left to do.
    for again in (("evaluate", "--results", results), command):
        code, shown, _ = run(*again, "--json")
        assert code == 0
        assert json.loads(shown)["scores"] == scores


@pytest.mark.slow
def test_edits_are_saved_and_scored_later(
    run: Any, data: Path, quick: Path, tmp_path: Path
) -> None:
    edits, records = tmp_path / "edits", ("--file", data, "-n", "2")
    code, shown, _ = run("evaluate", *records, "--hparams", quick, "--json")
    assert code == 0
    scores = json.loads(shown)["scores"]
    saving = ("edit", "--file", data, "-n", "2", "--isolated", "--no-evaluate", "--json")
    assert run(*saving, "--hparams", quick, "--save", edits)[0] == 0
    code, shown, _ = run("evaluate", *records, "--edit", edits)
    assert code == 0
    rewrite = numbers(scores["rewrite"]["generated"], "after")
    for expected in ("isolated: True", "edits: 2", "neighborhood", f"{rewrite[1]:.2f}–"):
        assert expected in shown
    code, _, err = run("evaluate", "--file", data, "--offset", "5", "-n", "1", "--edit", edits)
    assert code == 2
    assert "error: record 5: " in err
    assert "holds no edits of" in err


@pytest.mark.slow
def test_records_in_one_model_and_the_model_as_it_is(
    run: Any, facts: Path, quick: Path, text: Path
) -> None:
    records = ("--file", facts, "--perplexity-text", text, "--perplexity-tokens", "20")
    sequence = ("--sequential", "1", "--hparams", quick, "--json")
    code, shown, err = run("evaluate", *records, *sequence)
    assert (code, err) == (0, "")
    report = json.loads(shown)
    assert report["settings"]["sequential"] == 1
    perplexity = report["scores"]["perplexity"]
    assert perplexity["counted"] == "tokens"
    assert perplexity["teacher_forced"]["after"]["count"] == 20
    assert report["scores"]["rewrite"]["generated"]["after_batch"]["count"] == 2
    assert "retention.rewrite" in report["scores"]
    code, shown, _ = run("evaluate", *records, "--no-edit", "--json")
    assert code == 0
    bare = json.loads(shown)["scores"]
    assert list(bare) == ["rewrite", "perplexity"]
    before = report["scores"]["rewrite"]["teacher_forced"]["before"]
    assert bare["rewrite"]["teacher_forced"] == {"before": before}
    assert bare["perplexity"]["teacher_forced"] == {
        "before": perplexity["teacher_forced"]["before"]
    }


@pytest.mark.slow
def test_fluency_together(run: Any, data: Path, quick: Path) -> None:
    command = ("evaluate", "--data", data, "-n", "3", "--together", "--fluency", "--json")
    code, shown, err = run(*command, "--hparams", quick)
    assert (code, err) == (0, "")
    fluency = json.loads(shown)["scores"]["fluency"]
    assert set(fluency) == {"counted", "generated"}
    for when in ("before", "after"):
        mean, low, high, count = numbers(fluency["generated"], when)
        assert 3.0 < mean < 7.0
        assert low < mean < high
        assert count == 3


BAD_COMBINATIONS = [
    ([], "give the records as --file, or --results alone"),
    (["--edit", "x", "--results", "R"], "give the records as --file, --edit needs one"),
    (["--file", "F", "--edit", "x", "--no-edit"], "give only one of --edit, --no-edit"),
    (["--file", "F", "--isolated", "--sequential", "2"], "only one of --sequential, --isolated"),
    (["--file", "F", "--no-edit", "--together"], "give only one of --no-edit, --together"),
    (["--file", "F", "--edit", "x", "--preset", "fast"], "--edit edits nothing; leave the method"),
    (["--file", "F", "--together", "--results", "R"], "--results is for records apart"),
    (["--file", "F", "--overwrite"], "name their file with --results"),
    (["--file", "F", "--out", "none/scores.json"], "--out: there is no folder 'none'"),
    (["--file", "F", "--edit", "none.safetensors"], "none.safetensors"),
    (["--file", "F", "--perplexity-text", "none.txt"], "there is no text file 'none.txt'"),
    (["--results", "none.jsonl"], "there is no file 'none.jsonl'; check the path"),
]


@pytest.mark.parametrize(("options", "message"), BAD_COMBINATIONS)
def test_options_that_make_no_sense_are_refused(
    run: Any, facts: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    places = {"F": facts, "R": tmp_path / "r.jsonl"}
    code, out, err = run("evaluate", *[places.get(option, option) for option in options])
    assert (code, out) == (2, "")
    assert message in err.strip().splitlines()[-1]


def test_help_shows_an_example(run: Any) -> None:
    code, out, _ = run("evaluate", "--help")
    assert code == 0
    assert "Example: easyedit-fast evaluate" in out
