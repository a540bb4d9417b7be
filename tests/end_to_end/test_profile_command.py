"""The profile command on the real model: its tables, its files, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

PHASES = {
    "load", "evaluate before", "templates", "tokenise", "trunk", "optimise", "solve", "update",
    "evaluate after",
}  # fmt: skip
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.slow
def test_tables_charts_and_a_trace_of_every_phase(run: Any, tmp_path: Path) -> None:
    quick, out = tmp_path / "quick.yaml", tmp_path / "profile"
    quick.write_text("context_templates: ['{}']\nv_num_grad_steps: 3\n")
    code, shown, err = run(
        "profile", "--model", "demo", "--hparams", quick, "--layers", "5", "--limit", "1",
        "--repeats", "1", "--batch-sizes", "1", "--out", out,
    )  # fmt: skip
    assert (code, err) == (0, "")
    for title in ("phase by phase", "Seconds of an optimisation step", "without evaluation"):
        assert title in shown
    table = shown[shown.index("phase by phase") : shown.index("edits a second")]
    assert all(f" {name} " in table for name in (PHASES - {"load"}) | {"other", "whole edit"})
    assert "once: load " in shown

    names = ["batch_sizes.png", "phases.png", "profile.json", "trace.json"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert all((out / name).read_bytes()[:8] == PNG for name in names[:2])
    report = json.loads((out / "profile.json").read_text())
    phases = {row["name"]: row for row in report["phases"]}
    whole = phases.pop("whole edit")
    assert set(phases) == (PHASES - {"load"}) | {"other"}
    assert sum(row["share"] for row in phases.values()) == pytest.approx(1.0)
    assert whole["seconds"]["count"] == 1
    assert report["steps"]["a_repeat"] == 3
    assert [row["batch_size"] for row in report["batches"]] == [1]

    events = json.loads((out / "trace.json").read_text())["traceEvents"]
    count = dict.fromkeys([*PHASES, "edit 1", "step", "forward", "backward"], 0)
    for event in events:
        if event["name"] in count:
            count[event["name"]] += 1
    steps = {"step": 3, "forward": 3, "backward": 2}  # the last one only looks at the loss
    assert count == {**dict.fromkeys([*PHASES, "edit 1"], 1), **steps}


def test_a_record_that_does_not_fit_is_named_by_its_number_in_the_file(
    run: Any, hparams: Path, tmp_path: Path
) -> None:
    good = {"prompt": "{} is in the country of", "subject": "Oslo", "target_new": "Chile"}
    long = {**good, "prompt": "yes " * 9000 + good["prompt"]}
    file = tmp_path / "requests.jsonl"
    file.write_text("\n".join(map(json.dumps, [good, {**good, "subject": "Lima"}, long])))
    code, out, err = run("profile", "--file", file, "--offset", "1", "--hparams", hparams)
    assert (code, out) == (2, "")
    assert err.startswith("error: record 2, field 'prompt'")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--batch-sizes", "1,8"), "--batch-sizes 8 needs as many requests, and there are 4"),
        (("--batch-sizes", "1,x"), "--batch-sizes '1,x' is no list of positive numbers"),
        (("--offset", "16"), "--offset 16 leaves none of the 16 examples"),
        (("--prompt", "{} is"), "--subject, --target missing"),
    ],
)
def test_what_cannot_be_profiled_is_refused_before_the_model_is_loaded(
    run: Any, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], expected: str
) -> None:
    monkeypatch.setattr("easyedit_fast.editor.load_model", lambda *_, **__: pytest.fail("loaded"))
    code, out, err = run("profile", *arguments)
    assert (code, out) == (2, "")
    assert expected in " ".join(err.split())
