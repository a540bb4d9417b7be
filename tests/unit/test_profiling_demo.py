"""A profile of the demo model, and its steps against torch's own count of operations."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from easyedit_fast import Editor
from easyedit_fast.data import RequestTokenizer
from easyedit_fast.errors import MissingPackageError, RequestError
from easyedit_fast.models.tail import Tail
from easyedit_fast.models.tracing import frozen
from easyedit_fast.profiling import Profile, profile_edits
from easyedit_fast.profiling.charts import save_charts
from easyedit_fast.profiling.examples import example_requests
from easyedit_fast.profiling.steps import StepReader
from easyedit_fast.rome.optimise import optimise_values
from easyedit_fast.rome.rows import build_rows
from easyedit_fast.timings import Recorder, Span, recording
from tests.unit.test_profiling import check_trace

QUICK = {"layers": [5], "context_templates": ["{}"], "v_num_grad_steps": 3}
PHASES = ["templates", "tokenise", "trunk", "optimise", "solve", "update", "other", "whole edit"]


@pytest.fixture(scope="module")
def profile(demo_model: Any) -> Profile:
    """Two facts, edited together; the progress is checked on the way."""
    model, tokenizer = demo_model
    editor = Editor(model, tokenizer, hparams=QUICK)
    weights = {name: weight.clone() for name, weight in model.named_parameters()}
    told: list[tuple[int, int]] = []
    made = profile_edits(
        editor,
        example_requests()[:2],
        repeats=2,
        batch_sizes=[1, 2],
        evaluate=False,
        before=[Span("load", 0, 1.0, 3.5, {})],
        progress=lambda *counts: told.append(counts),
    )
    assert all(torch.equal(weights[name], weight) for name, weight in model.named_parameters())
    assert not hasattr(model.config, "easyedit_fast_edits")
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    # Warm-up, memory and 2 repeats of 2; memory and 2 batches of 1; memory and 2 batches of 2.
    assert told[-1] == (8 + 3 + 6, 17)
    return made


def test_the_rows_of_the_table_add_up(profile: Profile) -> None:
    rows = {phase.name: phase for phase in profile.phases}
    assert list(rows) == PHASES
    *parts, whole = profile.phases
    assert sum(phase.share for phase in parts) == pytest.approx(1.0)
    assert sum(phase.seconds.mean for phase in parts) == pytest.approx(whole.seconds.mean)
    assert whole.share == 1.0
    assert all(0 <= phase.seconds.p50 <= phase.seconds.p90 for phase in profile.phases)
    assert {phase.seconds.count for phase in profile.phases} == {2}
    assert rows["optimise"].share > rows["tokenise"].share
    assert profile.edits_per_second == pytest.approx(2 / whole.seconds.mean)
    assert profile.once["load"] == 2.5
    assert [(row.batch_size, row.seconds.count) for row in profile.batches] == [(1, 2), (2, 2)]
    for row in profile.batches:
        assert row.seconds_per_edit * row.edits_per_second == pytest.approx(1.0)
        assert row.seconds_per_edit == pytest.approx(row.seconds.mean / row.batch_size)
    json.dumps(profile.to_dict(), allow_nan=False)


def test_the_steps_lie_within_their_phase(profile: Profile) -> None:
    assert profile.steps is not None
    steps = profile.steps
    assert (steps.a_repeat, steps.seconds.count, len(steps.each)) == (3, 6, 3)
    assert steps.backward is not None
    assert steps.backward.count == 4  # the last step of a batch only looks at the loss
    assert steps.each[-1].backward == 0
    optimise = next(phase for phase in profile.phases if phase.name == "optimise")
    assert sum(step.seconds for step in steps.each) < optimise.seconds.mean
    for step in steps.each:
        assert 0 < step.forward + step.backward < step.seconds
        assert 0 < step.needed <= step.operations
    assert steps.operations == pytest.approx(sum(s.operations for s in steps.each) / 3)


def test_the_operations_of_all_steps_are_those_that_torch_counts(demo_model: Any) -> None:
    model, tokenizer = demo_model
    rome: Any = Editor(model, tokenizer, hparams=QUICK).method
    rows = build_rows(
        RequestTokenizer.from_transformers(tokenizer),
        [*example_requests()[:2], example_requests()[-2]],
        QUICK["context_templates"],
        "subject_last",
        model.device,
    )
    tail = Tail.capture(
        model, rome.architecture, 5, rows.input_ids, rows.attention_mask, rows.fact_position
    )
    values = tail.value[rows.bare_row]
    counter = FlopCounterMode(display=False)
    with frozen(model), recording(Recorder()) as recorder, counter:
        found = optimise_values(tail, rows, values, rome.hparams)
    steps = list(StepReader(model, rome.architecture).steps(recorder.spans))
    assert len(steps) == len(found.losses)
    total = sum(step.operations for step in steps)
    assert total == pytest.approx(counter.get_total_flops(), rel=0.02)
    with frozen(model):
        unrecorded = optimise_values(tail, rows, values, rome.hparams)
    torch.testing.assert_close(unrecorded.delta, found.delta, rtol=1e-4, atol=1e-4)


def test_the_files_of_a_real_profile(profile: Profile, tmp_path: Path) -> None:
    paths = profile.save(tmp_path / "new")
    assert json.loads(paths["profile"].read_text()) == json.loads(json.dumps(profile.to_dict()))
    trace = json.loads(paths["trace"].read_text())
    trace["traceEvents"] = [e for e in trace["traceEvents"] if e["name"] != "load"]
    events = check_trace(trace)
    assert [event["name"] for event in events].count("step") == 6
    assert {event["name"] for event in events} >= {"edit 1", "edit 2", "forward", "group", "head"}
    for name, path in save_charts(profile, tmp_path / "new").items():
        content = path.read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n", name
        width, height = struct.unpack(">II", content[16:24])
        assert width > 1500
        assert height > 500
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "batch_sizes.png", "phases.png", "profile.json", "trace.json",
    ]  # fmt: skip


def test_no_chart_without_matplotlib(
    profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(MissingPackageError, match=r'pip install "easyedit-fast\[plots\]"'):
        save_charts(profile, tmp_path)


def test_a_batch_larger_than_the_requests_is_refused(demo_model: Any) -> None:
    editor = Editor(*demo_model, hparams=QUICK)
    with pytest.raises(RequestError, match="a batch of 3 needs 3 requests, and there are 2"):
        profile_edits(editor, example_requests()[:2], batch_sizes=[1, 3])
