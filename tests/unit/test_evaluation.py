"""The evaluation against a plain loop over single prompts, on a small model of every family."""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from easyedit_fast.errors import RequestError
from easyedit_fast.evaluation import Evaluator, compare, merge
from easyedit_fast.evaluation.generation import continue_greedily
from easyedit_fast.evaluation.isolation import Updates
from easyedit_fast.models.architectures import architecture_of, edited_weight
from easyedit_fast.requests import EditRequest, Probe
from easyedit_fast.updates import LowRankUpdate
from tests.unit.tiny_models import (
    FAMILIES,
    VOCABULARY,
    ending,
    tiny_gemma3_with_vision,
    tiny_model,
    tiny_tokenizer,
)

pytestmark = pytest.mark.usefixtures("one_thread")

REQUESTS = [
    EditRequest(
        prompt="{} sings in",
        subject="Ada Lind",
        target_new="Norse",
        rephrase_prompt=("The songs of Ada Lind are all in", "Ada's tongue:"),
        locality={"neighborhood": (Probe("Per sings in", "Dutch"), Probe("Rain is"))},
        portability={"one_hop": (Probe("Ada is from", "Oslo or near it"), Probe("Ada lives"))},
    ),
    EditRequest(
        prompt="The old bridge at Rodmel crosses the",
        subject="Rodmel",
        target_new="Tamar",
        locality={"neighborhood": (Probe("The bridge at Pul crosses", "the Exe"),)},
    ),
    EditRequest(prompt="Io is", subject="Io", target_new="a moon that no one has seen"),
]
TEXTS = [text for request in REQUESTS for text in (request.prompt, request.target_new)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer(TEXTS)


def by_hand(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompt: str, target: str | None
) -> tuple[list[int], float | None]:
    """One prompt in one plain forward pass: predicted tokens and their accuracy."""
    ids = tokenizer(prompt)["input_ids"]
    whole = ids if target is None else tokenizer(f"{prompt} {target}")["input_ids"]
    assert whole[: len(ids)] == ids
    with torch.no_grad():
        tokens = model(input_ids=torch.tensor([whole])).logits[0].argmax(-1).tolist()
    predicted = tokens[len(ids) - 1 : -1] if target is not None else tokens[-1:]
    if target is None:
        return predicted, None
    hits = [one == other for one, other in zip(predicted, whole[len(ids) :], strict=True)]
    return predicted, sum(hits) / len(hits)


def test_what_a_tokenizer_puts_after_every_text_is_left_out(tokenizer: Any) -> None:
    """Answers are scored, and prompts go on, as without it; so do texts for their fluency."""
    model = tiny_model("llama", max_position_embeddings=256)
    plain, ended = (
        Evaluator(model, own).score(REQUESTS, fluency=True)
        for own in (tokenizer, ending(tokenizer))
    )
    assert ended == plain


def continued_by_hand(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompt: str, new: int
) -> str:
    """The greedy continuation without cache, batch or padding."""
    ids = tokenizer(prompt)["input_ids"]
    start = len(ids)
    for _ in range(new):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    return str(tokenizer.decode(ids[start:], skip_special_tokens=True))


def new_tokens(tokenizer: PreTrainedTokenizerFast, target: str | None) -> int:
    answer = f" {target}" if target is not None else ""
    number = len(tokenizer(answer, add_special_tokens=False)["input_ids"])
    return max(10, number + 4) if target is not None else 10


def score_by_hand(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, request: EditRequest
) -> dict[str, Any]:
    """What `Evaluator.score` shall give for one request."""

    def accuracy(prompt: str, target: str | None) -> float | None:
        return by_hand(model, tokenizer, prompt, target)[1]

    @functools.cache
    def text(prompt: str, target: str | None) -> str:
        return continued_by_hand(model, tokenizer, prompt, new_tokens(tokenizer, target))

    def success(prompt: str, target: str) -> float:
        return float(text(prompt, target).strip().startswith(target))

    new, rephrases = request.target_new, request.rephrase_prompt
    score: dict[str, Any] = {"rewrite_acc": [accuracy(request.prompt, new)]}
    free: dict[str, Any] = {
        "rewrite_acc": [success(request.prompt, new)],
        "rewrite_text": [text(request.prompt, new)],
    }
    if rephrases:
        score["rephrase_acc"] = [accuracy(prompt, new) for prompt in rephrases]
        free["rephrase_acc"] = [success(prompt, new) for prompt in rephrases]
        free["rephrase_text"] = [text(prompt, new) for prompt in rephrases]
    for part in (score, free):
        part["locality"], part["portability"] = {}, {}
    for key, probes in request.locality.items():
        pairs = [(probe.prompt, probe.ground_truth) for probe in probes]
        score["locality"][f"{key}_output"] = [by_hand(model, tokenizer, *pair)[0] for pair in pairs]
        free["locality"][f"{key}_text"] = [text(*pair) for pair in pairs]
    for key, probes in request.portability.items():
        pairs = [(probe.prompt, probe.ground_truth) for probe in probes]
        known = [(prompt, truth) for prompt, truth in pairs if truth is not None]
        score["portability"][f"{key}_acc"] = [accuracy(*pair) for pair in known]
        free["portability"][f"{key}_text"] = [text(*pair) for pair in pairs]
        free["portability"][f"{key}_acc"] = [success(*pair) for pair in known]
    return {**score, "generated": free}


def random_edit(model: PreTrainedModel, layer: int, rank: int, seed: int) -> Updates:
    """An update large enough to change what is predicted."""
    architecture = architecture_of(model)
    weight = edited_weight(model, architecture, layer)
    outputs, inputs = weight.shape
    if architecture.weight_layout == "in_out":
        outputs, inputs = inputs, outputs
    generator = torch.Generator().manual_seed(seed)
    update = LowRankUpdate(
        torch.randn(outputs, rank, generator=generator),
        torch.randn(rank, inputs, generator=generator),
        architecture.weight_layout,
    )
    return {architecture.weight_name(layer): update}


def edited(model: PreTrainedModel, updates: Updates) -> PreTrainedModel:
    """A copy of the model with the updates in its weights."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, update in updates.items():
            dense = update.dense()
            model.get_parameter(name).add_(dense if update.weight_layout == "out_in" else dense.T)
    return model


def family_model(family: str) -> PreTrainedModel:
    return tiny_gemma3_with_vision() if family == "gemma3-vision" else tiny_model(family)


@pytest.mark.parametrize("family", [*FAMILIES, "gemma3-vision"])
def test_scores_equal_a_plain_loop(family: str, tokenizer: PreTrainedTokenizerFast) -> None:
    model = family_model(family)
    scores = Evaluator(model, tokenizer).score(REQUESTS)
    assert scores == [score_by_hand(model, tokenizer, request) for request in REQUESTS]


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon", "opt", "bloom", "gemma2"])
def test_isolated_edits_equal_edited_copies(
    family: str, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = family_model(family)
    edits: list[Updates] = [
        random_edit(model, layer=1, rank=1, seed=1),
        {**random_edit(model, 1, rank=2, seed=2), **random_edit(model, 2, rank=1, seed=3)},
        {},
    ]
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    scores = Evaluator(model, tokenizer, batch_size=4).score(REQUESTS, updates=edits)
    unedited = Evaluator(model, tokenizer).score(REQUESTS)
    for request, edit, score in zip(REQUESTS, edits, scores, strict=True):
        assert score == score_by_hand(edited(model, edit), tokenizer, request)
    assert scores[0] != unedited[0]
    assert scores[1] != unedited[1]
    assert scores[2] == unedited[2]
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_company_of_a_batch_changes_nothing(
    batch_size: int, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = tiny_model("llama")
    together = Evaluator(model, tokenizer).score(REQUESTS)
    assert Evaluator(model, tokenizer, batch_size=batch_size).score(REQUESTS) == together
    turned = Evaluator(model, tokenizer, batch_size=batch_size).score(REQUESTS[::-1])
    assert turned[::-1] == together


def test_without_generation_nothing_is_generated(tokenizer: PreTrainedTokenizerFast) -> None:
    evaluator = Evaluator(tiny_model(), tokenizer)
    scores, free = evaluator.score(REQUESTS, generate=False), evaluator.score(REQUESTS)
    for score, with_texts in zip(scores, free, strict=True):
        assert "generated" not in score
        assert score == {key: value for key, value in with_texts.items() if key != "generated"}
    assert evaluator.score([]) == []


def test_the_head_sees_only_the_places_that_are_read(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model()
    shapes: list[tuple[int, ...]] = []
    handle = model.lm_head.register_forward_hook(lambda *call: shapes.append(call[2].shape))
    Evaluator(model, tokenizer).score(REQUESTS[2:], generate=False)
    handle.remove()
    answer = " a moon that no one has seen"
    number = len(tokenizer(answer, add_special_tokens=False)["input_ids"])
    assert shapes == [(1, number, VOCABULARY)]


def test_the_model_is_left_as_it_was_also_after_an_exception(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = tiny_model().train()
    model.model.layers[0].requires_grad_(False)
    config = model.generation_config

    def state() -> tuple[Any, ...]:
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
        flags = [part.training for part in model.modules()]
        return hooks, flags, [weight.requires_grad for weight in model.parameters()]

    before = state()
    edits = [random_edit(model, 1, 1, seed) for seed in range(3)]
    Evaluator(model, tokenizer).score(REQUESTS, updates=edits)
    assert (state(), model.generation_config is config) == (before, True)

    def fail(*_: Any) -> None:
        raise RuntimeError("in the way")

    handle = model.model.norm.register_forward_hook(fail)
    during = state()
    with pytest.raises(RuntimeError, match="in the way"):
        Evaluator(model, tokenizer).score(REQUESTS, updates=edits)
    with pytest.raises(RuntimeError, match="in the way"):
        continue_greedily(model, tokenizer, ["Io is"], [3], updates=edits[:1])
    assert (state(), model.generation_config is config) == (during, True)
    handle.remove()
    assert state() == before


def test_the_models_own_generation_settings_do_not_matter(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = tiny_model()
    plain = continue_greedily(model, tokenizer, TEXTS, [12] * len(TEXTS))
    settings = model.generation_config
    settings.update(repetition_penalty=5.0, do_sample=True, temperature=2.0, min_new_tokens=12)
    assert continue_greedily(model, tokenizer, TEXTS, [12] * len(TEXTS)) == plain
    assert settings.repetition_penalty == 5.0


def test_a_generation_ends_where_the_model_ends_it(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny_model()
    ids = tokenizer("Io is", return_tensors="pt")["input_ids"]
    row = model.generate(ids, do_sample=False, max_new_tokens=6)[0, ids.shape[1] :].tolist()
    stop = next(place for place in range(1, 6) if row[place] not in row[:place])
    model.generation_config.eos_token_id = [row[stop]]
    texts = continue_greedily(model, tokenizer, ["Io is", "Io is"], [6, stop])
    assert texts == [tokenizer.decode(row[:stop])] * 2


def test_a_text_is_as_long_as_asked_for_whatever_the_batch(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    model = tiny_model(seed=1)
    model.generation_config.eos_token_id = None
    short, long = continue_greedily(model, tokenizer, ["Io is", "Io is"], [3, 9])
    assert long.startswith(short)
    assert [short, long] == [
        continued_by_hand(model, tokenizer, "Io is", number) for number in (3, 9)
    ]


def test_a_prompt_beyond_the_context_is_named(tokenizer: PreTrainedTokenizerFast) -> None:
    long = Probe("Rain " * 40, "wet")
    request = EditRequest("Io is", "Io", "a moon", portability={"one_hop": (long,)})
    with pytest.raises(RequestError, match=r"record 1, field 'portability\.one_hop'.*takes 64"):
        Evaluator(tiny_model("gpt2"), tokenizer).score([REQUESTS[0], request])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", "Io <image> is"),
        ("target_new", "<image>"),
        ("rephrase_prompt", ("<image> is",)),
        ("locality.near", Probe("<image> is")),
        ("portability.one_hop", Probe("Ada is from", "<image>")),
    ],
)
def test_a_token_without_embedding_is_named(
    tokenizer: PreTrainedTokenizerFast, field: str, value: Any
) -> None:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens(["<image>"])
    name, _, key = field.partition(".")
    request = dataclasses.replace(REQUESTS[2], **{name: {key: (value,)} if key else value})
    with pytest.raises(
        RequestError, match=rf"record 1, field '{re.escape(field)}': holds '<image>' \(token 128\)"
    ):
        Evaluator(tiny_model(), tokenizer).score([REQUESTS[0], request])


def test_compare_and_merge_add_how_far_locality_holds() -> None:
    pre = {
        "rewrite_acc": [0.0],
        "locality": {"near_output": [[1, 2], [3]]},
        "portability": {},
        "generated": {"locality": {"near_text": [" a b", "c"]}, "rewrite_text": ["x"]},
    }
    post = {
        "rewrite_acc": [1.0],
        "locality": {"near_output": [[1, 5], [3]]},
        "portability": {},
        "generated": {"locality": {"near_text": ["a  b", "d"]}, "rewrite_text": ["y"]},
    }
    before = copy.deepcopy((pre, post))
    compared = compare(pre, post)
    assert compared["locality"] == {"near_output": [[1, 5], [3]], "near_acc": [0.5, 1.0]}
    assert compared["generated"]["locality"]["near_acc"] == [1.0, 0.0]
    assert (pre, post) == before
    [merged] = merge(REQUESTS[2:], [pre], [post])
    assert merged == {
        "pre": pre,
        "case_id": 0,
        "requested_rewrite": REQUESTS[2].to_dict(),
        "post": compared,
    }
