"""SERAC's training, its files and its scores, with another model as the counterfactual one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from easyedit_fast import Editor
from easyedit_fast.errors import DataFileError, ModelError
from easyedit_fast.models.architectures import architecture_of
from easyedit_fast.models.fingerprint import model_fingerprint
from easyedit_fast.models.loading import load_model
from easyedit_fast.serac.answers import Answered, BaseAnswers, answer_logits, plain_logits
from easyedit_fast.serac.editor_files import read_editor
from easyedit_fast.serac.training import SeracTrainee, serac_trainee
from easyedit_fast.training.loop import train
from tests.unit.test_mend_training import requests
from tests.unit.test_serac_training import own_tokenizer, turned
from tests.unit.tiny_models import VOCABULARY, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
ROOM: dict[str, Any] = {"max_position_embeddings": 256}
KINDS = ["same", "another"]


def tokenizer_of(kind: str) -> Any:
    """The base model's, or one that has learned other tokens."""
    if kind == "same":
        return own_tokenizer()
    texts = [f"{one.target_new} {one.prompt}" for one in requests()]
    return tiny_tokenizer(texts, across_words=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Small models: the logits of the one with the base's vocabulary have more rows."""
    made = {}
    for number, kind in enumerate(KINDS):
        folder = made[kind] = tmp_path_factory.mktemp(kind)
        width = VOCABULARY + 8 * (kind == "same")
        model = tiny_model("llama", seed=7 + number, vocab_size=width, num_hidden_layers=2, **ROOM)
        model.save_pretrained(folder)
        tokenizer_of(kind).save_pretrained(folder)
    return made


@pytest.fixture
def trainee_of(sentence_encoder: Path, folders: dict[str, Path]) -> Callable[..., SeracTrainee]:
    """Makes a trainee with one of the small models."""

    def make(kind: str, **keys: Any) -> SeracTrainee:
        hparams = {
            "small_name": str(folders[kind]),
            "cls_name": str(sentence_encoder),
            "cls_rank": 4,
            "cntr_rank": 4,
            "batch_size": 4,
            "max_iters": 4,
            "val_interval": 2,
            "model_save_pt": 2,
            "log_interval": 2,
            "lr": 1e-2,
            **keys,
        }
        base = tiny_model("llama", **ROOM)
        return serac_trainee(base, own_tokenizer(), requests(), requests()[:3], hparams=hparams)[0]

    return make


@pytest.mark.parametrize("kind", KINDS)
def test_the_adapter_learns_on_the_small_model(
    trainee_of: Callable[..., SeracTrainee], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("easyedit_fast.serac.drawing._FORMS", 0.0)
    trainee = turned(trainee_of(kind, parts="counterfactual", cedit=0.5, cloc=2.0))
    places = [3, 0, 5, 1]
    total, values = trainee.step(trainee.prepare(1, places))  # an odd one asks rephrase prompts
    data, adapter = trainee.data, trainee.adapter
    base = data.base.model
    assert (base is adapter.model) == (kind == "another")
    edits, localities = [], []
    with torch.no_grad():
        for place in places:
            row = data.with_edit(data.ended(place, data.rephrases[place][0]), place)
            logits = answer_logits(adapter, [row], [True])[:, :VOCABULARY]
            edits.append(functional.cross_entropy(logits, torch.tensor(row.answer)))
            probe = data.probes[data.localities[place][0]]
            q = answer_logits(adapter, [data.with_edit(probe, place)], [True])[:, :VOCABULARY]
            p = base(torch.tensor([probe.tokens])).logits[0, probe.start - 1 : -1].log_softmax(-1)
            localities.append((p.exp() * (p - q.log_softmax(-1))).sum(-1).mean())
    edit, locality = torch.stack(edits).mean(), torch.stack(localities).mean()
    torch.testing.assert_close(values["loss/edit_train"], edit, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(values["loss/loc_train"], locality, rtol=1e-4, atol=1e-5)
    total.backward()
    own = {id(parameter) for parameter in adapter.parameters()}
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapter.parameters())
    for model in {base, adapter.model}:
        assert all(id(one) in own or one.grad is None for one in model.parameters())
    text = trainee.counterfactual.tokenizer.decode(row.answer)
    assert requests()[places[-1]].target_new in text  # in the tokens of the model that learns


def test_kept_answers_have_the_base_models_logits() -> None:
    for family in ("llama", "gemma2"):  # which softens its logits after the head
        model = tiny_model(family, **ROOM)
        data = [own_tokenizer()(one.prompt)["input_ids"] for one in requests()]
        rows = [Answered(tokens, max(1, len(tokens) - 2)) for tokens in data]
        found = BaseAnswers(model, rows).logits([2, 0])
        torch.testing.assert_close(found, plain_logits(model, [rows[2], rows[0]]))


@pytest.mark.parametrize("kind", KINDS)
def test_training_learns_goes_on_and_is_told(
    trainee_of: Callable[..., SeracTrainee], kind: str, tmp_path: Path
) -> None:
    keys = {"parts": "counterfactual", "early_stop_key": "loss/edit_val", "cloc": 0.0, "lr": 2e-2}
    keys |= {"val_interval": 20, "model_save_pt": 20}
    trainee = trainee_of(kind, max_iters=40, **keys)
    before = trainee.validate()
    result = train(trainee, trainee.hparams, tmp_path / "run", about={})
    assert result.values["loss/edit_val"] < before["loss/edit_val"] - 0.1
    assert before["n_tokens/pre_val"] == before["n_tokens/post_val"] > 0
    small, _ = load_model(trainee.hparams.small_name, device="cpu")
    fingerprint = model_fingerprint(small, architecture_of(small))
    assert trainee.description()["small_fingerprint"] == fingerprint
    assert "small_name" not in trainee.description()["hparams"]
    found = read_editor(result.editor)
    assert found.card["small_fingerprint"] == fingerprint
    assert found.hparams["small_name"] == trainee.hparams.small_name
    again = trainee_of(kind, max_iters=60, **keys)
    assert train(again, again.hparams, tmp_path / "run", about={}).resumed == 40


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_kept_out_are_the_unedited_models(
    trainee_of: Callable[..., SeracTrainee], kind: str
) -> None:
    trainee = turned(trainee_of(kind))
    with torch.no_grad():
        trainee.scope.threshold.fill_(-1.0)
    values = trainee.validate()
    assert values["locality/acc_val"] == values["scope/locality_val"] == 1.0
    assert values["loss/loc_val"] == pytest.approx(0.0, abs=1e-6)


@pytest.fixture
def editor_of(
    trainee_of: Callable[..., SeracTrainee], tmp_path: Path
) -> Iterator[Callable[..., Editor]]:
    """Makes an editor with a small model, whose scope takes the edits' own prompts in."""
    made: list[Editor] = []

    def make(kind: str, **keys: Any) -> Editor:
        trainee = turned(trainee_of(kind))
        path = tmp_path / f"{kind}.safetensors"
        trainee.write_editor(path, {"model": "tiny"})
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*another vocabulary")
            model = tiny_model("llama", **ROOM)
            hparams = {"archive": str(path), **keys}
            made.append(Editor(model, own_tokenizer(), method="serac", hparams=hparams))
        return made[-1]

    yield make
    for editor in made:
        editor.method.close()


def facts() -> list[Any]:
    """Records whose subjects are not alike."""
    return requests()[:2]


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_models_that_answer(
    editor_of: Callable[..., Editor], kind: str
) -> None:
    editor = editor_of(kind)
    result = editor.edit(facts(), isolated=True, fluency=True)
    adapter, serac = editor.model.adapter, editor.method
    own = adapter.tokenizer
    assert serac.settings()["small_fingerprint"] == serac.counterfactual.fingerprint
    assert serac.settings()["counterfactual"].startswith(kind)
    for fact, metrics in zip(facts(), result.metrics, strict=True):
        post = metrics["post"]
        context, bos = adapter.context(fact), own.bos_token_id
        prompt, whole = (
            [bos, *context, *own(text)["input_ids"][1:]]
            for text in (fact.prompt, f"{fact.prompt} {fact.target_new}")
        )
        with torch.no_grad(), adapter.on():
            logits = adapter.model(torch.tensor([whole])).logits[0, len(prompt) - 1 : -1]
        right = logits.argmax(-1) == torch.tensor(whole[len(prompt) :])
        assert post["rewrite_acc"] == pytest.approx([float(right.float().mean())])
        assert post["fluency"]["ngram_entropy"] >= 0
        assert len(post["locality"]) == len(metrics["pre"]["locality"]) * 2
    # The generated text is what the model itself generates.
    editor.edit(facts()[:1], evaluate=False)
    text = editor.tokenizer(facts()[0].prompt, return_tensors="pt")
    new = editor.model.generate(**text, max_new_tokens=10, do_sample=False)
    answer = editor.tokenizer.decode(new[0, text["input_ids"].shape[1] :], skip_special_tokens=True)
    scored = result.metrics[0]["post"]["generated"]["rewrite_text"][0]
    assert answer
    assert scored.startswith(answer) or answer.startswith(scored)


def test_another_vocabulary_is_told_at_load(editor_of: Callable[..., Editor]) -> None:
    editor = editor_of("another")
    archive = editor.method.hparams.archive
    editor.method.close()
    with pytest.warns(UserWarning, match="another vocabulary: whole answers are switched"):
        made = Editor(
            editor.method.base, editor.tokenizer, method="serac", hparams={"archive": archive}
        )
    made.method.close()


def test_an_adapter_of_another_small_model_is_told_or_refused(
    editor_of: Callable[..., Editor], folders: dict[str, Path], tmp_path: Path
) -> None:
    editor = editor_of("same")
    archive = editor.method.hparams.archive
    editor.method.close()
    base, tokenizer = editor.method.base, editor.tokenizer
    other = tmp_path / "other"
    tiny_model("llama", seed=9, num_hidden_layers=2, **ROOM).save_pretrained(other)
    tokenizer.save_pretrained(other)
    hparams = {"archive": archive, "small_name": str(other)}
    with pytest.warns(UserWarning, match="trained on another counterfactual model"):
        Editor(base, tokenizer, method="serac", hparams=hparams).method.close()
    with (
        pytest.warns(UserWarning, match="trained on another counterfactual model"),
        pytest.raises(DataFileError, match="does not fit"),  # four layers, not two
    ):
        Editor(base, tokenizer, method="serac", hparams={**hparams, "small_name": None})
    with pytest.raises(ModelError, match=r"small_name \(gone\).*null for the adapter on the base"):
        Editor(base, tokenizer, method="serac", hparams={**hparams, "small_name": "gone"})


def test_training_takes_the_scope_of_an_editor_with_another_small_model(
    editor_of: Callable[..., Editor], trainee_of: Callable[..., SeracTrainee]
) -> None:
    archive = editor_of("same").method.hparams.archive
    fresh = trainee_of("another")
    with pytest.warns(UserWarning, match="its scope alone is taken"):
        begun = trainee_of("another", archive=str(archive))
    kept = read_editor(Path(archive)).tensors
    for name, tensor in begun.state_dict().items():
        known = kept if name.startswith("scope.") else fresh.state_dict()
        torch.testing.assert_close(tensor, known[name])
