"""Sweeps on a small model: against single edits, after a kill, and what their files hold."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from easyedit_fast import Editor, EditRequest, TextFiles, sweep
from easyedit_fast.errors import DataFileError, HparamsError, ModelError, RequestError
from easyedit_fast.metrics import mean_interval
from easyedit_fast.rome import Rome
from easyedit_fast.sweeps import run as sweep_run
from easyedit_fast.sweeps.rows import records_of
from tests.unit.tiny_models import WORDS, tiny_model, word_tokenizer

HPARAMS = {
    "layers": [1],
    "context_templates": ["{}", "I think {}"],
    "v_num_grad_steps": 8,
    "clamp_norm_factor": 50.0,
}
REQUESTS = [
    EditRequest.from_dict(
        {
            "prompt": prompt,
            "subject": subject,
            "target_new": target,
            "rephrase_prompt": f"I think {subject} is",
            "locality": {"neighborhood": {"prompt": "the city Lima is in", "ground_truth": "Peru"}},
            "portability": {
                "one_hop": {"prompt": f"people in {subject} speak", "ground_truth": "north"}
            },
        }
    )
    for prompt, subject, target in (
        ("the capital of {} is", "Peru", "Oslo"),
        ("I think the city {} is in the", "Bergen", "country north"),
        ("the people of {} speak", "Lima", "Bergen"),
    )
]
LAYERS = [0, 2]


@pytest.fixture(scope="module")
def editor() -> Editor:
    return Editor(tiny_model(), word_tokenizer(WORDS), hparams=HPARAMS)


@pytest.fixture
def statistics(tmp_path: Path) -> str:
    """Second moments of no unit scale, another one a layer."""
    for layer in range(4):
        keys = np.random.default_rng(layer).normal(size=(96, 48)) * np.linspace(0.2, 3, 48)
        moment = {"mom2.mom2": (keys.T @ keys).astype(np.float32), "mom2.count": np.array(96)}
        np.savez(tmp_path / f"stats-{layer}.npz", **moment)
    return str(tmp_path / "stats-{}.npz")


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[int]]]:
    """Records and layers of each call that optimises values."""
    calls: list[tuple[int, list[int]]] = []
    original = Rome.values

    def values(self: Rome, requests: Any, layers: Any, **options: Any) -> Any:
        calls.append((REQUESTS.index(requests[0]), list(layers)))
        return original(self, requests, layers, **options)

    monkeypatch.setattr(Rome, "values", values)
    monkeypatch.setattr(sweep_run, "_PART", 2)
    return calls


def plain(rows: Any) -> list[dict[str, Any]]:
    """Rows without what a clock gave."""
    return [
        {**row.to_dict(), "records": row.records, "seconds": None, "second_moment": None}
        for row in rows
    ]


@pytest.mark.parametrize("preset", ["default", "exact"])
def test_equals_isolated_edits_at_each_layer(statistics: str, preset: str) -> None:
    model, tokenizer = tiny_model(), word_tokenizer(WORDS)
    editor = Editor(model, tokenizer, hparams=HPARAMS, preset=preset)
    result = sweep(editor, REQUESTS, LAYERS, second_moment=statistics)
    assert [(row.layer, row.mode) for row in result.rows] == [
        (layer, mode) for layer in LAYERS for mode in ("full", "simplified")
    ]
    for row in result.rows:
        full = row.mode == "full"
        given = {"layers": [row.layer], "mom2_adjustment": full}
        given |= {"second_moment": statistics} if full else {}
        alone = Editor(model, tokenizer, hparams={**HPARAMS, **given}, preset=preset)
        edited = alone.edit(REQUESTS, isolated=True)
        assert row.records == records_of([entry["post"] for entry in edited.metrics])
        norms = [update.norm() for edit in edited.edits for update in edit.updates.values()]
        assert row.update_norm == pytest.approx(sum(norms) / len(norms), rel=1e-6)
        steps = [detail["layers"][row.layer]["steps"] for detail in edited.details]
        assert row.steps == sum(steps) / len(steps)
        assert row.second_moment == (statistics.replace("{}", str(row.layer)) if full else None)
        before = {name: leaf.mean for name, leaf in result.unedited.items()}
        pre = edited.summary["pre"]
        assert before["rewrite"] == pytest.approx(pre["rewrite_acc"]["mean"])
        assert before["portability"] == pytest.approx(pre["portability"]["one_hop_acc"]["mean"])
    one, other = (row.update_norm for row in result.rows[:2])
    assert abs(one - other) > 1e-3 * one  # the modes are not the same thing twice


def test_every_record_has_its_scores_and_the_files_say_them(
    editor: Editor, statistics: str, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    result = sweep(editor, REQUESTS, LAYERS, second_moment=statistics, folder=folder)
    names = [f"{kind}{name}" for kind in ("", "generated_")
             for name in ("rewrite", "rephrase", "locality", "portability")]  # fmt: skip
    with (folder / "sweep.csv").open() as file:
        lines = list(csv.DictReader(file))
    stored = json.loads((folder / "sweep.json").read_text())
    for row, line, kept in zip(result.rows, lines, stored["rows"], strict=True):
        assert list(row.records) == names
        assert (int(line["layer"]), line["mode"], int(line["count"])) == (row.layer, row.mode, 3)
        for name in names:
            wanted = mean_interval(row.records[name])
            found = [float(line[f"{name}{part}"]) for part in ("", "_low", "_high", "_count")]
            assert found == [wanted.mean, wanted.low, wanted.high, wanted.count]
        assert kept["records"] == row.records
    for layer, scores in result.differences.items():
        full, simplified = (row for row in result.rows if row.layer == layer)
        gap = full.scores["locality"].mean - simplified.scores["locality"].mean
        assert scores["locality"].mean == pytest.approx(gap)
    assert not (folder / ".values").exists()


def test_a_killed_sweep_goes_on_where_it_was(
    editor: Editor,
    statistics: str,
    tmp_path: Path,
    computed: list[tuple[int, list[int]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options: Any = {"second_moment": statistics, "generate": False}
    whole = sweep(editor, REQUESTS, LAYERS, **options)
    assert computed == [(0, LAYERS), (2, LAYERS)]
    options["folder"] = tmp_path / "out"

    def kill_at(phase: str, number: int) -> None:
        def progress(now: str, done: int, _: int) -> None:
            if (now, done) == (phase, number):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            sweep(editor, REQUESTS, LAYERS, progress=progress, **options)

    computed.clear()
    kill_at("optimise", 3)  # of the second part, before its values are written
    kill_at("score", 0)
    assert computed == [(0, LAYERS), (2, LAYERS), (2, LAYERS)]
    computed.clear()
    kill_at("score", 1)
    monkeypatch.setattr(sweep_run._Job, "_solve", refuse_solved(sweep_run._Job._solve))
    resumed = sweep(editor, REQUESTS, LAYERS, **options)
    assert computed == []
    assert plain(resumed.rows) == plain(whole.rows)
    again = sweep(editor, REQUESTS, LAYERS, **options)
    assert plain(again.rows) == plain(whole.rows)
    assert again.unedited == whole.unedited
    assert "optimise" not in again.timings
    grown = sweep(editor, REQUESTS, [3], ["simplified"], **options)
    assert computed == [(0, [3]), (2, [3])]
    assert [row.layer for row in grown.rows] == [0, 0, 2, 2, 3]


def refuse_solved(original: Any) -> Any:
    """Fails where the row that was written before the kill is solved again."""

    def solve(self: Any, layer: int, mode: str, values: Any) -> Any:
        assert (layer, mode) != (LAYERS[0], "full")
        return original(self, layer, mode, values)

    return solve


def test_another_sweep_in_the_folder_is_refused(editor: Editor, tmp_path: Path) -> None:
    options: Any = {"modes": ["simplified"], "folder": tmp_path, "generate": False}
    sweep(editor, REQUESTS[:2], [1], **options)
    with pytest.raises(DataFileError, match=r"another sweep \(records, records_digest differs\)"):
        sweep(editor, REQUESTS, [1], **options)
    assert sweep(editor, REQUESTS, [1], overwrite=True, **options).rows[0].count == 3
    for content in ("", "{}", '{"format": 1, "settings": {}, "unedited": {}, "rows": [{}]}', "[]"):
        (tmp_path / "sweep.json").write_text(content)
        with pytest.raises(DataFileError, match=r"sweep\.json is damaged .*; remove it"):
            sweep(editor, REQUESTS, [1], **options)


def test_other_statistics_make_the_row_anew(
    editor: Editor, statistics: str, tmp_path: Path
) -> None:
    options: Any = {"second_moment": statistics, "folder": tmp_path / "out", "generate": False}
    before = sweep(editor, REQUESTS, [1], **options)
    Path(statistics.replace("{}", "3")).replace(statistics.replace("{}", "1"))
    after = sweep(editor, REQUESTS, [1], **options)
    assert before.rows[0].update_norm != after.rows[0].update_norm
    assert before.rows[1].update_norm == after.rows[1].update_norm


def test_modes_follow_the_statistics(editor: Editor, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "easyedit_fast"):
        result = sweep(editor, REQUESTS, LAYERS, generate=False)
    assert [row.mode for row in result.rows] == ["simplified"] * 2
    assert "'full' is left out, for layers 0,2 have no second moments" in caplog.text
    with pytest.raises(HparamsError, match=r"mode 'full' needs second moments, and layers 0,2 "):
        sweep(editor, REQUESTS, LAYERS, ["full"])


def test_texts_give_the_statistics_of_all_layers(
    editor: Editor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"  # other tests have no statistics
    monkeypatch.setattr("easyedit_fast.moments.statistics.cache_folder", lambda: cache)
    text = tmp_path / "words.txt"
    text.write_text("\n".join(" ".join(WORDS[n % 7 : n % 7 + 8]) for n in range(120)))
    seen: list[str] = []
    result = sweep(
        editor, REQUESTS, LAYERS, text=TextFiles.of(text), generate=False,
        progress=lambda phase, *_: seen.append(phase),
    )  # fmt: skip
    assert [row.mode for row in result.rows] == ["full", "simplified"] * 2
    assert list(dict.fromkeys(seen)) == ["statistics", "optimise", "score"]
    found = sweep(editor, REQUESTS, LAYERS, ["full"], generate=False)
    assert "statistics" not in found.timings
    assert [row.records for row in found.rows] == [row.records for row in result.rows[::2]]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"layers": []}, HparamsError, "layers must not be empty"),
        ({"layers": [4]}, ModelError, "layer 4 is not in this model of 4 layers"),
        ({"modes": ["half"]}, HparamsError, "'half' is no mode; use 'full' or 'simplified'"),
        ({"modes": []}, HparamsError, "an empty list is no mode"),
        ({"requests": []}, RequestError, "there is no request"),
        ({"second_moment": "one.npz"}, HparamsError, "is one file for 2 layers"),
        ({"second_moment": "a{}.npz", "text": TextFiles(())}, HparamsError, "give either"),
        ({"second_moment": "nowhere-{}.npz"}, FileNotFoundError, "nowhere-0.npz"),
    ],
)
def test_bad_input(editor: Editor, changes: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sweep(editor, **{"requests": REQUESTS, "layers": LAYERS, **changes})


def test_several_keys_count_the_same_and_gaps_stay_gaps() -> None:
    scored = [
        {
            "rewrite_acc": [1.0],
            "locality": {"a_acc": [1.0, 0.0], "b_acc": [1.0], "a_output": [[1]]},
        },
        {"rewrite_acc": [0.0], "locality": {}},
    ]
    assert records_of(scored) == {"rewrite": [1.0, 0.0], "locality": [0.75, None]}


@pytest.mark.parametrize("layers", [[1], LAYERS])
def test_the_plot_is_a_picture(
    editor: Editor, statistics: str, tmp_path: Path, layers: list[int]
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra plots)")
    result = sweep(editor, REQUESTS, layers, second_moment=statistics)
    result.plot(tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
    result.plot(tmp_path / "sweep.svg")
    text = (tmp_path / "sweep.svg").read_text()
    assert "<svg" in text
    axes = text.count('id="axes_')
    assert axes == 8  # four scores, teacher-forced and generated
