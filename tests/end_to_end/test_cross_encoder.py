"""A scope that is a cross-encoder, on the real model: trained, kept, used, served and refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from easyedit_fast import Editor, read_requests
from easyedit_fast.errors import DataFileError, MissingPackageError
from easyedit_fast.models.sentence_encoders import load_sentence_encoder
from easyedit_fast.serac.editor_files import read_editor, write_editor
from tests.end_to_end.servers import serving
from tests.end_to_end.training import write_records

KEYS: dict[str, Any] = {
    "cross_attend": True,
    "cross_candidates": 3,
    "cls_rank": 2,
    "cntr_rank": 2,
    "lr": 1e-3,
    "batch_size": 2,
    "hard_negatives": 1,
    "subject_negatives": 1,
    "max_iters": 2,
    "val_interval": 2,
    "log_interval": 1,
    "model_save_pt": 1,
}
ASKED = "The home of Annason number 0 is"


@pytest.fixture
def archive(run: Any, tmp_path: Path) -> Path:
    """What two iterations make."""
    try:
        load_sentence_encoder("minilm")
    except MissingPackageError as error:
        pytest.skip(str(error))
    (tmp_path / "keys.yaml").write_text(json.dumps(KEYS))
    out = tmp_path / "run"
    given = [
        "--method", "serac", "--hparams", tmp_path / "keys.yaml", "--out", out, "--no-plot",
        "--file", write_records(tmp_path / "train.jsonl", 6),
        "--validation", write_records(tmp_path / "val.jsonl", 3),
    ]  # fmt: skip
    assert run("train", *given, "--max-iters", 1)[0] == 0
    code, text, _ = run("train", *given, "--json")
    assert code == 0
    report = json.loads(text)
    assert (report["iterations"], report["resumed"]) == (2, 1)
    return Path(report["editor"])


def with_bias(archive: Path, bias: float) -> Path:
    """The editor with a head that says the same of all pairs."""
    editor = read_editor(archive)
    assert editor.hparams["cross_attend"] is True
    own = {"scope.head.weight": torch.zeros(1, 384), "scope.head.bias": torch.tensor([bias])}
    path = archive.with_name(f"bias{bias}.safetensors")
    write_editor(path, dataclasses.replace(editor, tensors={**editor.tensors, **own}))
    return path


def use(archive: Path, demo_model: Any, tmp_path: Path) -> None:
    """Edits, routes and generates, by heads that say the same of all pairs."""
    requests = list(read_requests(tmp_path / "train.jsonl"))
    memory = tmp_path / "edits.sqlite"
    found = {}
    for bias in (1.0, -1.0):
        path = with_bias(archive, bias)
        editor = Editor(*demo_model, method="serac", hparams={"archive": str(path)}, memory=memory)
        try:
            if bias > 0:
                editor.edit(requests, evaluate=False)
            (route,) = editor.model.routes(ASKED)
            assert route.similarity == pytest.approx(torch.tensor(bias).sigmoid().item())
            found[bias] = route.edit
            ids = editor.tokenizer(ASKED, return_tensors="pt")
            logits = editor.model(**ids).logits
            text = editor.model.generate(**ids, max_new_tokens=2, do_sample=False)
            assert text[0, -2] == logits[0, -1].argmax()
            same = torch.equal(logits, editor.method.base(**ids).logits)
            assert same == (bias < 0)
            alone = editor.method.routing(requests[:1]).contexts([ASKED], [0])
            assert (alone[0] is not None) == (bias > 0)
        finally:
            editor.method.close()
    assert found[1.0].request == requests[0]  # of equals the nearest
    assert found[-1.0] is None
    with pytest.raises(DataFileError, match="cross_attend: false"):
        Editor(
            *demo_model, method="serac", hparams={"archive": str(archive), "cross_attend": False}
        )


def serve(archive: Path, demo_model: Any, tmp_path: Path) -> None:
    """Adds edits over HTTP, and searches them."""
    requests = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    with serving(demo_model, archive, None) as url, httpx.Client(base_url=url, timeout=60) as http:
        assert http.post("/v1/edits", json=requests).is_success
        asked = {"prompt": ASKED, "limit": 2}
        found = http.post("/v1/edits/search", json=asked).json()["data"]
        assert len(found) == 2
        assert 1 >= found[0]["similarity"] >= found[1]["similarity"] >= 0
        told = http.post(
            "/v1/completions", json={"model": "demo", "prompt": ASKED, "max_tokens": 2}
        )
        assert told.status_code == 200


def test_it_is_trained_used_and_served(archive: Path, demo_model: Any, tmp_path: Path) -> None:
    use(archive, demo_model, tmp_path)
    serve(archive, demo_model, tmp_path)
