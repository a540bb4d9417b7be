"""The command line on the real model: edit, apply, export, demo, doctor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from easyedit_fast import Editor, __version__
from easyedit_fast.cli.output import print_json, print_line, print_table
from easyedit_fast.models.demo import demo_folder
from easyedit_fast.serac import SqliteStore

EDIT = ["--prompt", "The Eiffel Tower is located in the city of", "--subject", "Eiffel Tower"]
MEMORY_COMMANDS = ("list", "search", "remove", "export", "import")


def demo_state() -> dict[str, tuple[int, int]]:
    """Size and time of change of each file of the demo model."""
    files = {path: path.stat() for path in demo_folder().rglob("*") if path.is_file()}
    return {str(path): (stat.st_size, stat.st_mtime_ns) for path, stat in files.items()}


def test_an_edit_by_mend(run: Any, mend_archive: Path, tmp_path: Path) -> None:
    edit = tmp_path / "edit.safetensors"
    given = ["--method", "mend", "--archive", mend_archive]
    code, out, err = run("edit", *EDIT, "--target", "Rome", *given, "--save", edit, "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["settings"]["archive"] == str(mend_archive)
    assert {"gradients", "editor"} < set(report["timings"])
    code, out, err = run("export", edit, "--peft", tmp_path / "adapter", "--json")
    assert (code, err) == (0, "")
    file = tmp_path / "requests.jsonl"
    record = {"prompt": EDIT[1], "subject": EDIT[3], "target_new": "Rome"}
    file.write_text(json.dumps(record) + "\n")
    results = tmp_path / "results.jsonl"
    code, out, err = run(
        "evaluate", "--file", file, *given, "--out", tmp_path / "scores.json",
        "--results", results, "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert json.loads(results.read_text())["metrics"]["requested_rewrite"]["target_new"] == "Rome"
    code, _, err = run("edit", *EDIT, "--target", "Rome", "--method", "roem", "--layers", "5")
    assert (code, "did you mean 'rome'" in err) == (2, True)
    for wrong, owner in (
        (["--layers", "5", *given], "rome"),
        (["--archive", edit], "mend or serac"),
    ):
        code, _, err = run("edit", *EDIT, "--target", "Rome", *wrong)
        assert code == 2
        assert f"{wrong[0]} is for --method {owner}; leave it out" in err


def test_edits_in_a_memory(run: Any, tmp_path: Path) -> None:
    memory = tmp_path / "edits.sqlite"
    given = ["--method", "serac", "--memory", memory]
    code, out, err = run("edit", *EDIT, "--target", "Rome", *given, "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["edits"][0]["ids"] == [1]
    assert report["memory"] == {"added": [1], "superseded": [], "total": 1}
    assert report["saved"]["memory"] == str(memory)
    assert report["metrics"][0]["post"]["generated"]["rewrite_acc"] == [1.0]
    record = {"prompt": "The capital of Peru is", "subject": "Peru", "target_new": "Oslo"}
    (tmp_path / "requests.jsonl").write_text(json.dumps(record) + "\n")
    code, out, err = run("edit", "--file", tmp_path / "requests.jsonl", *given)
    assert (code, err) == (0, "")
    assert f"saved: memory in {memory}added: 2; 2 now in {memory}" in out.replace("\n", "")
    assert "superseded" not in out
    with SqliteStore(memory, read_only=True) as store:
        assert [edit.request.target_new for edit in store.added_after(0)] == ["Rome", "Oslo"]
    code, out, err = run("edit", *EDIT, "--target", "Rome", *given[:2])
    assert (code, err) == (0, "")
    assert "nothing was saved; --memory FILE keeps the edit" in out
    code, out, err = run("edit", *EDIT, "--target", "Berlin", *given, "--no-evaluate")
    assert (code, err) == (0, "")
    assert f"added: 3; 3 now in {memory}superseded: 1; of edits" in out.replace("\n", "")
    code, out, err = run("edit", *EDIT, "--target", "Rome", *given[:2], "--threshold", 1, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["metrics"][0]["post"]["generated"]["rewrite_acc"] == [0.0]
    for wrong, told in (
        (["--threshold", "0.3"], "--threshold is for --method serac"),
        ([*given, "--save", tmp_path / "edit"], "SERAC changes no weight"),
        ([*given, "--isolated"], "isolated edits go into no memory"),
        (given[2:], "--memory is for --method serac: add that, or"),
        (["--method", "sarac", *given[2:]], "did you mean 'serac'"),
        (["--method", "serac", "--memory", tmp_path], "is a folder"),
    ):
        code, _, err = run("edit", *EDIT, "--target", "Rome", *wrong)
        assert code in (1, 2)
        assert told in " ".join(err.split())
    code, out, err = run(
        "evaluate", "--method", "serac", "--file", tmp_path / "requests.jsonl",
        "--out", tmp_path / "scores.json", "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")


def test_an_edit_is_made_saved_applied_and_exported(
    run: Any, hparams: Path, tmp_path: Path
) -> None:
    hparams.write_text(hparams.read_text() + "model_name: ./nowhere\n")  # --model goes over it
    before = demo_state()
    edit, adapter, model = (tmp_path / name for name in ("edit.safetensors", "adapter", "model"))
    code, out, err = run(
        "edit", "--model", "demo", "--method", "rome", *EDIT, "--target", "Rome",
        "--hparams", hparams, "--layers", "5",
        "--save", edit, "--peft", adapter, "--save-model", model, "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["summary"]["post"]["rewrite_acc"] == {"mean": 1.0, "count": 1}
    assert report["settings"]["mom2_adjustment"] is False
    assert report["settings"]["layers"] == [5]
    saved = {"edit": str(edit), "peft": str(adapter), "model": str(model), "results": None}
    assert report["saved"] == saved
    assert report["settings"]["hyperparameters"] == f"{hparams}; given: layers"
    generated = report["metrics"][0]["post"]["generated"]
    assert generated["rewrite_acc"] == [1.0]
    assert "Rome" in generated["rewrite_text"][0]

    code, out, err = run("apply", edit, "--model", "demo", "--json")
    assert (code, err) == (0, "")
    (generation,) = json.loads(out)["generations"]
    assert "Paris" in generation["before"]
    assert "Rome" in generation["after"]

    code, out, err = run("apply", edit, "--model", model, "--json")
    assert code == 2
    assert "in the model already" in err

    code, out, err = run("export", edit, "--peft", tmp_path / "again", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["updates"]["model.layers.5.mlp.down_proj.weight"]["rank"] == 1
    for folder in (adapter, tmp_path / "again"):
        with safe_open(folder / "adapter_model.safetensors", "pt") as file:
            assert len(file.keys()) == 2
    assert demo_state() == before

    code, out, err = run("apply", edit, "--save-model", tmp_path / "applied", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["saved_model"] == str(tmp_path / "applied")
    saved, applied = (folder / "model.safetensors" for folder in (model, tmp_path / "applied"))
    assert saved.read_bytes() == applied.read_bytes()
    assert AutoModelForCausalLM.from_pretrained(model).num_parameters() > 1e8


def test_a_file_of_edits_in_isolation(run: Any, hparams: Path, tmp_path: Path) -> None:
    requests = [
        {"prompt": "{} is in the country of", "subject": "Oslo", "target_new": target}
        for target in ("Chile", "Kenya")
    ]
    file = tmp_path / "requests.jsonl"
    file.write_text("\n".join(map(json.dumps, requests)))
    arguments = ("edit", "--file", file, "--hparams", hparams, "--json")
    code, out, err = run(*arguments, "--isolated", "--save", tmp_path / "edits")
    assert (code, err) == (0, "")
    assert json.loads(out)["summary"]["post"]["rewrite_acc"]["count"] == 2
    names = sorted(path.name for path in (tmp_path / "edits").iterdir())
    assert names == ["edit-00000.safetensors", "edit-00001.safetensors"]
    code, out, err = run(*arguments, "--isolated", "--save", tmp_path / "edits")
    assert (code, out) == (2, "")
    assert "is not empty; give a new folder" in err
    code, out, err = run(*arguments, "--together")
    assert (code, out) == (2, "")
    assert "an earlier request has the same prompt" in err


def test_the_tables_for_people(run: Any, hparams: Path) -> None:
    code, out, _ = run("edit", *EDIT, "--target", "Rome", "--hparams", hparams)
    assert code == 0
    for expected in ("mom2_adjustment: False", "Scores", "rewrite_acc", "optimise", "total"):
        assert expected in out
    assert "nothing was saved; --save" in out


def test_a_part_of_a_file_without_its_bad_records(run: Any, hparams: Path, tmp_path: Path) -> None:
    good = {"prompt": "{} is in the country of", "subject": "Oslo", "target_new": "Chile"}
    file = tmp_path / "requests.jsonl"
    file.write_text("\n".join(map(json.dumps, [{}, {**good, "target_new": ""}, good, {}])))
    arguments = ("edit", "--file", file, "--hparams", hparams, "--no-evaluate", "--json")
    code, out, err = run(*arguments, "--offset", "1", "--limit", "2", "--skip-bad")
    assert code == 0
    assert err.startswith("warning: left out: record 1, field 'target_new'")
    assert [edit["requests"][0]["target_new"] for edit in json.loads(out)["edits"]] == ["Chile"]
    code, out, err = run(*arguments, "--offset", "3", "--skip-bad")
    assert (code, out) == (2, "")
    assert f"no record of {file} can be used; record 3, field 'prompt'" in err


@pytest.mark.parametrize("to_file", [False, True])
def test_a_record_that_fails_is_left_out_by_name(
    run: Any, hparams: Path, tmp_path: Path, to_file: bool
) -> None:
    good = {"prompt": "{} is in the country of", "subject": "Oslo", "target_new": "Chile"}
    long = {**good, "prompt": "So " + "very " * 9000 + "far is {} from"}
    file, out = tmp_path / "requests.jsonl", tmp_path / "out.jsonl"
    file.write_text("\n".join(map(json.dumps, [good, long, {**good, "subject": "Lima"}])))
    arguments = [
        "edit", "--file", file, "--hparams", hparams, "--offset", "1", "--isolated",
        "--save", tmp_path / "edits",
    ]  # fmt: skip
    arguments += ["--out", out, "--batch-size", "2"] if to_file else []
    code, text, err = run(*arguments)
    assert (code, text) == (2, "")
    assert err.startswith("error: record 1, field 'prompt': ")
    code, text, err = run(*arguments, "--skip-bad", "--json")
    assert code == 0
    assert err.count("left out: record 1, field 'prompt': ") == 1
    report = json.loads(text)
    assert report["summary"]["post"]["rewrite_acc"]["count"] == 1
    assert [text[:8] for text in report["failures"].values()] == ["record 1"]
    assert list(report["failures"]) == ["1"]
    assert [path.name for path in (tmp_path / "edits").iterdir()] == ["edit-00002.safetensors"]
    if to_file:
        failed, finished = map(json.loads, out.read_text().splitlines())
        assert (failed["case_id"], set(failed)) == (1, {"case_id", "error", "timings"})
        assert finished["metrics"]["case_id"] == 2
    else:
        assert report["metrics"][0]["error"] == report["failures"]["1"]
    code, text, err = run(*arguments[:7], "--limit", "1", "--skip-bad", "--save", tmp_path / "no")
    assert (code, text) == (2, "")
    assert not (tmp_path / "no").exists()


def test_progress_counts_requests(demo_model: Any) -> None:
    fact = {"prompt": "{} is in the country of", "subject": "Oslo", "target_new": "Chile"}
    facts = [{**fact, "subject": name} for name in ("Oslo", "Bergen", "Lima")]
    told: list[tuple[int, int]] = []
    hparams = {
        "layers": [4, 5],
        "context_templates": ["{}", "Yes. {}"],
        "v_num_grad_steps": 1,
    }
    Editor(*demo_model, hparams=hparams).edit(
        facts,
        isolated=True,
        batch_size=2,
        evaluate=False,
        progress=lambda *counts: told.append(counts),
    )
    assert told == [(2, 6), (3, 6), (5, 6), (6, 6)]


def test_the_version(run: Any) -> None:
    assert run("--version") == (0, f"easyedit-fast {__version__}\n", "")


def test_the_demo_edits_three_facts(run: Any) -> None:
    code, out, err = run("demo", "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert set(report) >= {"model", "edits", "untouched", "metrics", "timings"}
    assert [edit["method"] for edit in report["edits"]] == [
        method for method in ("rome", "mend", "serac") for _ in range(3)
    ]
    for edit in report["edits"]:
        assert set(edit) == {
            "method", "prompt", "subject", "target_new", "before", "after", "seconds",
        }  # fmt: skip
        assert edit["target_new"] not in edit["before"]
        assert edit["after"].strip().startswith(edit["target_new"])
    assert len(report["untouched"]) == 9
    for method in ("rome", "mend", "serac"):
        assert report["metrics"][method]["post"]["rewrite_acc"]["mean"] == 1.0
        assert report["timings"][method]
        assert report["settings"][method]["method"] == method
    kept = [one for one in report["untouched"] if one["method"] == "serac"]
    assert all(one["before"] == one["after"] for one in kept)


def test_doctor_says_what_is_there(run: Any) -> None:
    code, out, err = run("doctor", "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["loader"]["loaded"]
    assert report["kernels"]["loaded"]
    assert report["packages"]["torch"]
    code, out, _ = run("doctor")
    assert code == 0
    assert "kernels: cuda_built" in out


def test_every_command_helps_with_an_example(run: Any) -> None:
    for command in ("edit", "apply", "export", "stats", "sweep", "train", "profile", "demo",
                    "doctor", *(f"memory {name}" for name in MEMORY_COMMANDS)):  # fmt: skip
        code, out, _ = run(*command.split(), "--help")
        assert code == 0
        assert f"Example: easyedit-fast {command}" in out
    assert "--method serac" in " ".join(run("train", "--help")[1].split("Options:")[0].split())


def test_brackets_in_the_data_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_table("[b]T", ["[i]c"], [["[/INST] [red]x :smile:"]])
    print_line("model: [/INST] [bold]y")
    out = capsys.readouterr().out
    for expected in ("[b]T", "[i]c", "[/INST] [red]x :smile:", "model: [/INST] [bold]y"):
        assert expected in out


def test_json_holds_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        print_json({"condition": float("nan")})
    assert capsys.readouterr().out == ""
