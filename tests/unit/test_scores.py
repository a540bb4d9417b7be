"""Scores with their intervals, side by side, from records, results files and saved edits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from easyedit_fast import Edit, Editor, EditRequest
from easyedit_fast.cli.output import print_scores
from easyedit_fast.data import TextFiles
from easyedit_fast.errors import (
    DataFileError,
    EditStateError,
    MissingFileError,
    NonFiniteError,
    RequestError,
)
from easyedit_fast.evaluation import Evaluator, Perplexity, perplexity
from easyedit_fast.failures import Failures
from easyedit_fast.metrics import mean_interval
from easyedit_fast.models.architectures import architecture_of
from easyedit_fast.models.fingerprint import model_fingerprint
from easyedit_fast.runs import (
    MEASURED_MODELS,
    EditJob,
    PerplexityText,
    Records,
    SavedEdits,
    ScoreJob,
    Scores,
    saved_scores,
    score_apart,
    score_in_one_model,
    scores_of,
)
from easyedit_fast.updates import LowRankUpdate
from tests.unit.tiny_models import tiny_model, tiny_tokenizer

WEIGHT = "model.layers.1.mlp.down_proj.weight"
REQUESTS = [
    EditRequest(
        prompt="{} lies in",
        subject=subject,
        target_new=target,
        rephrase_prompt=f"Those of {subject} live in",
        locality={"near": {"prompt": "Paris lies in", "ground_truth": "France"}},
    )
    for subject, target in (("Oslo", "Chile"), ("Lima", "Norway"), ("Kyoto", "Kenya"))
]
TEXT = "The old bridge at Rodmel crosses the Tamar, and Ada Lind sings in Norse. " * 3


def entry(rewrite: float, near: list[float], entropy: float) -> dict[str, Any]:
    """One record's metrics, with more in `post` than in `pre`."""
    generated = {"rewrite_acc": [rewrite / 2], "rewrite_text": ["x"], "locality": {}}
    return {
        "pre": {
            "generated": {"rewrite_acc": [0.0]},
            "rewrite_acc": [0.25],
            "locality": {"near_output": [[1, 2]]},
            "portability": {"hop_acc": [0.5]},
        },
        "post": {
            "fluency": {"ngram_entropy": entropy},
            "rewrite_acc": [rewrite],
            "locality": {"near_output": [[1, 2]], "near_acc": near},
            "portability": {"hop_acc": [1.0]},
            "generated": generated,
        },
    }


def test_each_score_with_its_interval_and_count() -> None:
    failed = {"case_id": 2, "error": "record 2: too long"}
    metrics = [entry(1.0, [1.0, 0.5], 6.0), entry(0.5, [0.0], 5.0), failed]
    metrics[0]["retention"] = {"rewrite_acc": [1.0], "generated": {"rewrite_acc": [0.0]}}
    metrics[0]["post_batch"] = {"rewrite_acc": [1.0]}
    found = scores_of(metrics)
    assert list(found) == [
        "rewrite", "locality.near", "portability.hop", "fluency", "retention.rewrite",
    ]  # fmt: skip
    assert list(found["rewrite"]) == ["counted", "teacher_forced", "generated"]
    whole = mean_interval([1.0, 0.5])
    assert found["rewrite"]["teacher_forced"]["after"] == {
        "mean": 0.75, "low": whole.low, "high": whole.high, "count": 2,
    }  # fmt: skip
    assert found["rewrite"]["teacher_forced"]["before"]["mean"] == 0.25
    assert found["rewrite"]["teacher_forced"]["after_batch"]["count"] == 1
    assert found["rewrite"]["generated"]["after"]["mean"] == 0.375
    assert found["rewrite"]["generated"]["before"]["high"] == mean_interval([0.0, 0.0]).high
    # A record counts once, with the mean over its prompts.
    near = found["locality.near"]["teacher_forced"]
    assert (set(near), near["after"]["mean"]) == ({"after"}, 0.375)
    assert "teacher_forced" not in found["fluency"]
    assert found["fluency"]["generated"]["after"]["high"] == mean_interval([6.0, 5.0]).high
    assert found["retention.rewrite"]["generated"]["after"]["mean"] == 0.0
    assert found["retention.rewrite"]["teacher_forced"]["after"]["mean"] == 1.0


def test_one_value_beyond_0_and_1_has_no_interval() -> None:
    leaf = scores_of([entry(1.0, [1.0], 6.0)])["fluency"]["generated"]["after"]
    assert leaf == {"mean": 6.0, "low": None, "high": None, "count": 1}


def test_the_table_fits_a_terminal_and_shows_what_json_holds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    measured = {"before": Perplexity(19.25, 999, 2.9575, 18.5, 20.0)}
    metrics = [entry(1.0, [1.0], 6.0), entry(0.5, [1.0], 5.0)]
    scores = Scores(
        {}, {}, metrics, {}, perplexity={**measured, "after": Perplexity(21.5, 999, 3.0681)}
    )
    report = scores.to_dict()
    print_scores(json.loads(json.dumps(report))["scores"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]
    after = report["scores"]["rewrite"]["teacher_forced"]["after"]
    assert ["rewrite", "0.250", "0.750", "0.000", "0.375", "2"] in cells
    assert f"{after['low']:.2f}–{after['high']:.2f}" in cells[cells.index(
        ["rewrite", "0.250", "0.750", "0.000", "0.375", "2"]
    ) + 1]  # fmt: skip
    assert ["near", "", "0.34–1.00", "", "", "records"] in cells
    assert ["perplexity", "19.250", "21.500", "", "", "999"] in cells
    assert ["", "18.50–20.00", "", "", "", "tokens"] in cells


def edits_for(model: Any, requests: list[EditRequest], **changes: Any) -> list[Edit]:
    """An edit a request, each with another random update."""
    known = {
        "method": "rome",
        "model_fingerprint": model_fingerprint(model, architecture_of(model)),
        "architecture": architecture_of(model),
        **changes,
    }
    generator = torch.Generator().manual_seed(0)

    def update() -> LowRankUpdate:
        return LowRankUpdate(
            torch.randn(32, 1, generator=generator), torch.randn(1, 48, generator=generator)
        )

    return [Edit({WEIGHT: update()}, requests=[request], **known) for request in requests]


@pytest.fixture
def tiny() -> Evaluator:
    texts = [TEXT, *(f"{request.prompt} {request.target_new}" for request in REQUESTS)]
    return Evaluator(tiny_model(), tiny_tokenizer(texts))


@pytest.fixture
def text(tmp_path: Path) -> PerplexityText:
    (tmp_path / "text.txt").write_text(TEXT)
    return PerplexityText(TextFiles.of(tmp_path / "text.txt"), 60)


@pytest.fixture
def folder(tiny: Evaluator, tmp_path: Path) -> Path:
    """A folder of edits, in another order than the records."""
    folder = tmp_path / "edits"
    folder.mkdir()
    for place, edit in enumerate(reversed(edits_for(tiny.model, REQUESTS))):
        edit.save(folder / f"edit-{place:05d}.safetensors")
    return folder


@pytest.fixture
def records(tmp_path: Path) -> Records:
    path = tmp_path / "records.json"
    path.write_text(json.dumps([request.to_dict() for request in REQUESTS]))
    return Records.read(path)


def test_each_record_is_scored_with_its_own_saved_edit(
    tiny: Evaluator, folder: Path, records: Records, text: PerplexityText, tmp_path: Path
) -> None:
    job = ScoreJob(tiny, SavedEdits.load(folder), text=text, batch_size=2)
    scored = score_apart(job, records, tmp_path / "out.jsonl")
    own = [edit.updates for edit in edits_for(tiny.model, REQUESTS)]
    expected = tiny.score(REQUESTS, updates=own)
    for place, (one, wanted) in enumerate(zip(scored.metrics, expected, strict=True)):
        assert one["post"]["generated"]["rewrite_text"] == wanted["generated"]["rewrite_text"]
        assert one["post"]["locality"]["near_output"] == wanted["locality"]["near_output"]
        measured = perplexity(
            tiny.model, tiny.tokenizer, text.corpus, updates=own[place], max_tokens=60
        )
        assert one["post"]["perplexity"] == measured.perplexity != one["pre"]["perplexity"]
    report = scored.to_dict()
    leaf = report["scores"]["perplexity"]["teacher_forced"]["after"]
    values = [one["post"]["perplexity"] for one in scored.metrics]
    assert leaf["mean"] == pytest.approx(sum(values) / 3)
    assert leaf["count"] == report["records"] == 3

    again = score_apart(job, records, tmp_path / "out.jsonl").to_dict()
    assert (again["scores"], again["settings"]) == (report["scores"], report["settings"])
    saved = saved_scores(tmp_path / "out.jsonl").to_dict()
    assert {**saved, "timings": {}} == {**again, "timings": {}}


def test_saved_edits_in_one_model(
    tiny: Evaluator, folder: Path, records: Records, text: PerplexityText
) -> None:
    before = tiny.model.get_parameter(WEIGHT).detach().clone()
    job = ScoreJob(tiny, SavedEdits.load(folder, isolated=False), generate=False, text=text)
    scored = score_apart(job, records)
    assert torch.equal(tiny.model.get_parameter(WEIGHT), before)
    bare, edited = scored.perplexity["before"], scored.perplexity["after"]
    assert bare == perplexity(tiny.model, tiny.tokenizer, text.corpus, max_tokens=60)
    with torch.no_grad():
        for edit in edits_for(tiny.model, REQUESTS):
            tiny.model.get_parameter(WEIGHT).add_(edit.updates[WEIGHT].dense())
    expected = perplexity(tiny.model, tiny.tokenizer, text.corpus, max_tokens=60)
    assert edited.nll == pytest.approx(expected.nll, rel=1e-4)
    outputs = [one["post"]["locality"]["near_output"] for one in scored.metrics]
    wanted = tiny.score(REQUESTS, generate=False)
    assert outputs == [one["locality"]["near_output"] for one in wanted]
    row = scored.scores["perplexity"]
    assert (row["counted"], row["teacher_forced"]["after"]["count"]) == ("tokens", 60)


def test_records_edited_in_one_model(
    tiny: Evaluator, records: Records, text: PerplexityText
) -> None:
    before = tiny.model.get_parameter(WEIGHT).detach().clone()
    hparams = {"layers": [1], "v_num_grad_steps": 3, "context_templates": ["{}"]}
    editor = Editor(tiny.model, tiny.tokenizer, hparams=hparams)
    scored = score_in_one_model(editor, records, sequential=2, fluency=True, text=text)
    assert torch.equal(tiny.model.get_parameter(WEIGHT), before)
    assert scored.perplexity["before"] == text.measure(tiny)
    with editor.editing(REQUESTS, sequential=2) as result:
        assert scored.perplexity["after"] == text.measure(tiny)
        [final] = tiny.score(REQUESTS[:1], fluency=True)
    assert scored.metrics[0]["post"]["fluency"] == final["fluency"]
    assert scored.settings == result.settings
    assert set(scored.timings) >= {"perplexity before", "perplexity after", "optimise"}
    found = scored.scores
    assert {"fluency", "perplexity"} < set(found)
    assert set(found["rewrite"]["generated"]) == {"before", "after_batch", "after"}


def test_a_record_that_fails_is_named_by_its_number_in_the_file(
    tiny: Evaluator, tmp_path: Path
) -> None:
    path = tmp_path / "records.json"
    long = {**REQUESTS[1].to_dict(), "rephrase_prompt": "far " * 100}
    path.write_text(json.dumps([REQUESTS[0].to_dict(), REQUESTS[2].to_dict(), long]))
    editor = Editor(tiny.model, tiny.tokenizer, hparams={"context_templates": ["{}"]})
    with pytest.raises(RequestError, match="record 2, field 'rephrase_prompt'"):
        score_in_one_model(editor, Records.read(path, offset=1))
    skipped: dict[str, Any] = {"on_error": "skip", "fluency": True}
    some = score_in_one_model(editor, Records.read(path, offset=1), **skipped)
    again = score_apart(EditJob(editor, **skipped), Records.read(path, offset=1))
    bare = score_apart(ScoreJob(tiny, **skipped), Records.read(path, offset=1))
    for scored in (some, again, bare):
        report = scored.to_dict()
        assert report["records"] == report["scores"]["fluency"]["generated"]["before"]["count"] == 1
        [error] = report["failures"]
        assert error.startswith("record 2, field 'rephrase_prompt'")


def test_the_model_as_it_is(tiny: Evaluator, records: Records, text: PerplexityText) -> None:
    scored = score_apart(ScoreJob(tiny, text=text), records)
    assert all(set(one) == {"pre", "case_id"} for one in scored.metrics)
    assert set(scored.perplexity) == set(scored.scores["rewrite"]["generated"]) == {"before"}


def test_the_first_models_alone_are_measured(tiny: Evaluator, text: PerplexityText) -> None:
    edits = edits_for(tiny.model, REQUESTS[:2])
    empty: list[dict[str, Any]] = [{"pre": {}, "post": {}} for _ in edits]
    first = MEASURED_MODELS - 1
    own = {place: edit.updates for place, edit in enumerate(edits)}
    added = text.of_each(tiny, empty, own, first=first, on_error="raise")
    assert ["perplexity" in one["post"] for one in added] == [True, False]
    assert text.of_each(tiny, empty, own, first=MEASURED_MODELS + 5, on_error="raise") == empty
    edits[1].updates[WEIGHT].output_factor.fill_(torch.inf)
    with pytest.raises(NonFiniteError, match="record 1: the model predicts NaN or infinity"):
        text.of_each(tiny, empty, own, first=0, on_error="raise")
    added = text.of_each(tiny, empty, own, first=0, on_error="skip")
    assert ["perplexity" in one["post"] for one in added] == [True, False]
    with torch.no_grad():
        tiny.model.get_output_embeddings().weight.mul_(1e6)
    with pytest.raises(NonFiniteError, match="the perplexity is infinite"):
        text.measure(tiny)


def test_edits_that_do_not_fit_are_refused_by_name(
    tiny: Evaluator, folder: Path, tmp_path: Path
) -> None:
    edits = SavedEdits.load(folder)
    unknown = EditRequest(prompt="{} lies in", subject="Quito", target_new="Peru")
    with pytest.raises(RequestError, match=r"record 1: .*edits' holds no edits of 'Quito lies in"):
        edits.of_each([REQUESTS[0], unknown], Failures())
    failures = Failures("skip")
    found = edits.of_each([unknown, REQUESTS[0]], failures)
    assert (list(found or {}), list(failures)) == ([1], [0])
    edits.edits.append(edits.edits[0])  # of a record that is there twice
    assert list(edits.of_each(REQUESTS, Failures()) or {}) == list(range(len(REQUESTS)))
    edits.edits.extend(edits_for(tiny.model, [REQUESTS[1], REQUESTS[2]])[1:])
    with pytest.raises(RequestError, match=r"record 2: .* holds 2 edits of 'Kyoto lies in'"):
        edits.of_each(REQUESTS, Failures())
    other = SavedEdits(folder, edits_for(tiny.model, REQUESTS, model_fingerprint="0" * 64), False)
    with pytest.raises(EditStateError, match="computed for another model"):
        ScoreJob(tiny, other)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataFileError, match="holds no edit"):
        SavedEdits.load(tmp_path / "empty")
    with pytest.raises(MissingFileError):
        SavedEdits.load(tmp_path / "nowhere.safetensors")


LINE = {"case_id": 0, "metrics": {"post": {"rewrite_acc": [1.0]}}, "timings": {"seconds": {}}}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({}, "has no scores; give the results of a run that evaluates"),
        ({"metrics": 3, "timings": {"seconds": {}}}, "its scores are damaged"),
        ({**LINE, "timings": None}, "its scores are damaged"),
        ({**LINE, "metrics": {"post": {"rewrite_acc": [float("nan")]}}}, "scores are damaged"),
    ],
)
def test_damaged_results_are_refused(
    tiny: Evaluator, records: Records, tmp_path: Path, line: dict[str, Any], message: str
) -> None:
    out = tmp_path / "out.jsonl"
    score_apart(ScoreJob(tiny, generate=False), records, out)
    out.write_text(f"{json.dumps(LINE)}\ntorn")
    assert saved_scores(out).scores["rewrite"]["teacher_forced"]["after"]["mean"] == 1.0
    out.write_text(f"{json.dumps(line)}\n")
    with pytest.raises(DataFileError, match=message):
        saved_scores(out)
    (tmp_path / "out.jsonl.run.json").write_text("[]")
    with pytest.raises(DataFileError, match="is no header of results"):
        saved_scores(out)
    (tmp_path / "out.jsonl.run.json").unlink()
    with pytest.raises(MissingFileError, match=r"there is no file .*out\.jsonl\.run\.json"):
        saved_scores(out)
