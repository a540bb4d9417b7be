"""ROME from request to edit on other families, dtypes and several layers (random weights)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from easyedit_fast import Editor, EditRequest
from easyedit_fast.models.architectures import architecture_of
from easyedit_fast.models.tail import Tail
from tests.unit.tiny_models import FAMILIES, WORDS, tiny_model, word_tokenizer

REQUESTS = [
    EditRequest("the capital of {} is", "Peru", "Oslo"),
    EditRequest("I think the city {} is in the", "Bergen", "country north"),
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """A tokenizer of whole words within the tiny models' vocabulary."""
    return word_tokenizer(WORDS)


def edit(model: Any, tokenizer: Any, requests: list[EditRequest], **keys: Any) -> Any:
    hparams = {
        "layers": [1],
        "context_templates": ["{}", "I think {}"],
        "v_num_grad_steps": 20,
        "v_loss_threshold": 1e-3,
        "clamp_norm_factor": 50.0,
        "v_weight_decay": 0.0,
        **keys,
    }
    isolated = keys.pop("isolated", False)
    hparams.pop("isolated", None)
    editor = Editor(model, tokenizer, hparams=hparams)
    return editor.edit(requests, isolated=isolated, generate=False)


def target_nll(model: Any, tokenizer: Any, request: EditRequest) -> float:
    """Mean NLL of the target's tokens after the prompt."""
    prompt = tokenizer(request.prompt)["input_ids"]
    ids = torch.tensor([tokenizer(f"{request.prompt} {request.target_new}")["input_ids"]])
    with torch.no_grad():
        log_probs = model(input_ids=ids).logits[0].log_softmax(-1)
    targets = ids[0, len(prompt) :]
    return float(-log_probs[len(prompt) - 1 : -1].gather(1, targets[:, None]).mean())


def key_and_value(
    model: Any, tokenizer: Any, request: EditRequest
) -> tuple[torch.Tensor, torch.Tensor]:
    """Key and value of the edited layer at the subject, a word of its own here."""
    ids = torch.tensor([tokenizer(request.prompt)["input_ids"]])
    place = torch.tensor([request.prompt.split().index(request.subject)])
    tail = Tail.capture(model, architecture_of(model), 1, ids, torch.ones_like(ids), place)
    return tail.key[0], tail.value[0]


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_target_becomes_more_probable(family: str, tokenizer: Any) -> None:
    model = tiny_model(family)
    before = target_nll(model, tokenizer, REQUESTS[1])
    result = edit(model, tokenizer, REQUESTS[1:], context_templates=["{}"])
    losses = result.details[0]["layers"][1]["losses"]
    assert losses[0][1] == pytest.approx(before, rel=1e-4)
    assert losses[-1][1] < before
    (update,) = result.edit.updates.values()
    after = key_and_value(model, tokenizer, REQUESTS[1])
    result.edit.revert()
    key, value = key_and_value(model, tokenizer, REQUESTS[1])
    torch.testing.assert_close(after[1] - value, update.dense() @ key, rtol=1e-3, atol=1e-4)
    assert (after[1] - value).norm() > 0.1 * value.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_half_precision_models_are_edited(family: str, dtype: torch.dtype, tokenizer: Any) -> None:
    whole = edit(tiny_model(family), tokenizer, REQUESTS[:1]).edit
    half = edit(tiny_model(family).to(dtype), tokenizer, REQUESTS[:1]).edit
    (expected,), (found,) = whole.updates.values(), half.updates.values()
    direction = torch.nn.functional.cosine_similarity(
        expected.dense().flatten(), found.dense().flatten(), dim=0
    )
    assert direction > 0.9


def test_several_layers_follow_each_other(tokenizer: Any) -> None:
    """The second layer is edited in the model that the first edit gave, as in EasyEdit."""
    model = tiny_model()
    result = edit(model, tokenizer, REQUESTS, layers=[1, 2], v_num_grad_steps=4)
    assert sorted(result.edit.updates) == [
        "model.layers.1.mlp.down_proj.weight",
        "model.layers.2.mlp.down_proj.weight",
    ]
    again = tiny_model()
    for layer in (1, 2):
        single = edit(again, tokenizer, REQUESTS, layers=[layer], v_num_grad_steps=4)
        (update,) = single.edit.updates.values()
        expected = result.edit.updates[f"model.layers.{layer}.mlp.down_proj.weight"].dense()
        assert (update.dense() - expected).norm() / expected.norm() < 1e-4


def test_isolated_edits_of_several_layers_equal_single_ones(tokenizer: Any) -> None:
    result = edit(tiny_model(), tokenizer, REQUESTS, layers=[1, 2], isolated=True)
    for request, found in zip(REQUESTS, result.edits, strict=True):
        single = edit(tiny_model(), tokenizer, [request], layers=[1, 2]).edit
        for name, update in single.updates.items():
            expected = update.dense()
            assert (found.updates[name].dense() - expected).norm() / expected.norm() < 1e-4


def test_a_failure_after_the_edit_takes_it_out(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    def fail(*_: object) -> None:
        raise MemoryError("no room for the metrics")

    monkeypatch.setattr("easyedit_fast.editor.join", fail)
    with pytest.raises(MemoryError):
        edit(model, tokenizer, REQUESTS)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
