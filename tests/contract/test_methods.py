"""What every editing method keeps to, on the real model."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from easyedit_fast import Edit, Editor, EditRequest
from easyedit_fast.errors import EditStateError, HparamsError, NonFiniteError, RequestError
from tests.contract.states import state_of

REQUESTS = [
    EditRequest(
        prompt="The Eiffel Tower is located in the city of",
        subject="Eiffel Tower",
        target_new="Rome",
        rephrase_prompt="To see the Eiffel Tower one travels to",
        locality={"neighborhood": {"prompt": "The Louvre is located in", "ground_truth": "Paris"}},
        portability={
            "one_hop": {"prompt": "People near the Eiffel Tower speak", "ground_truth": "Italian"}
        },
    ),
    EditRequest(prompt="The official language of {} is", subject="Brazil", target_new="Swedish"),
]


def test_after_edit_the_model_is_edited(editor: Editor) -> None:
    before = state_of(editor.model)["weights"]
    result = editor.edit(REQUESTS)
    changed = {
        name
        for name, weight in editor.model.named_parameters()
        if not torch.equal(weight, before[name])
    }
    assert changed == set(result.edit.updates)
    for name in changed:
        difference = editor.model.get_parameter(name).detach() - before[name]
        expected = result.edit.updates[name].dense()
        torch.testing.assert_close(difference, expected, rtol=1e-3, atol=1e-5)
    result.edit.revert()


def test_isolated_edits_leave_the_model_and_are_scored_apart(editor: Editor) -> None:
    result = editor.edit(REQUESTS, isolated=True)
    assert len(result.edits) == len(REQUESTS)
    with pytest.raises(EditStateError, match=r"result\.edits"):
        _ = result.edit
    alone = editor.edit(REQUESTS[:1], isolated=True)
    for name, update in alone.edit.updates.items():
        other = result.edits[0].updates[name].dense()
        assert (update.dense() - other).norm() / other.norm() < 1e-4
    with result.edits[0].applied(editor.model):
        applied = editor._evaluator.score(REQUESTS[:1])
    assert applied[0]["rewrite_acc"] == result.metrics[0]["post"]["rewrite_acc"]
    assert (
        applied[0]["generated"]["rewrite_text"]
        == alone.metrics[0]["post"]["generated"]["rewrite_text"]
    )


def test_the_result_has_easyedits_nesting(editor: Editor) -> None:
    with editor.editing(REQUESTS) as result:
        entry = result.metrics[0]
        assert set(entry) == {"pre", "post", "case_id", "requested_rewrite"}
        post = entry["post"]
        assert len(post["rewrite_acc"]) == len(post["rephrase_acc"]) == 1
        assert len(post["locality"]["neighborhood_acc"]) == 1
        assert len(post["portability"]["one_hop_acc"]) == 1
        assert result.summary["post"]["locality"]["neighborhood_acc"]["count"] == 1
        assert result.summary["post"]["rewrite_acc"]["count"] == 2
        assert 0.0 <= result.summary["post"]["generated"]["rewrite_acc"]["mean"] <= 1.0
        assert all(seconds >= 0 for seconds in result.timings.values())
        assert len(result.details) == len(REQUESTS)


def test_editing_is_for_a_while_also_after_an_exception(editor: Editor) -> None:
    def fail() -> None:
        with editor.editing(REQUESTS[:1], evaluate=False) as result:
            assert result.edit.is_applied
            raise KeyError

    with pytest.raises(KeyError):
        fail()


def test_padding_side_changes_nothing(editor: Editor, quick_hparams: dict[str, Any]) -> None:
    updates = []
    side = editor.tokenizer.padding_side
    try:
        for padding_side in ("left", "right"):
            editor.tokenizer.padding_side = padding_side
            again = Editor(
                editor.model,
                editor.tokenizer,
                method=editor.method.name,
                hparams=quick_hparams[editor.method.name],
            )
            result = again.edit(REQUESTS, isolated=True)
            updates.append((result.edits, result.metrics))
    finally:
        editor.tokenizer.padding_side = side
    (left, left_metrics), (right, right_metrics) = updates
    assert left_metrics == right_metrics
    for one, other in zip(left, right, strict=True):
        for name in one.updates:
            dense = other.updates[name].dense()
            assert (one.updates[name].dense() - dense).norm() / dense.norm() < 1e-4


def test_a_saved_edit_is_the_same_edit(editor: Editor, tmp_path: Any) -> None:
    result = editor.edit(REQUESTS[:1], evaluate=False)
    edited = state_of(editor.model)["weights"]
    result.edit.save(tmp_path / "edit.safetensors")
    result.edit.revert()
    loaded = Edit.load(tmp_path / "edit.safetensors")
    assert loaded.requests == REQUESTS[:1]
    assert loaded.hparams == editor.method.used_hparams()
    if editor.method.name == "rome":  # what its hyperparameters may leave open
        assert None not in (loaded.hparams["mom2_adjustment"], loaded.hparams["context_templates"])
    with loaded.applied(editor.model):
        for name, weight in editor.model.named_parameters():
            assert torch.equal(weight, edited[name])


def test_contradicting_requests_are_refused_together_and_fine_isolated(editor: Editor) -> None:
    pair = [REQUESTS[1], EditRequest(REQUESTS[1].prompt, "Brazil", "Greek")]
    with pytest.raises(RequestError, match="an earlier request has the same prompt"):
        editor.edit(pair)
    assert len(editor.edit(pair, isolated=True, evaluate=False).edits) == 2


@pytest.mark.parametrize(
    "requests", [[], [{"prompt": "a"}], [{"prompt": "a", "subject": "b", "target_new": "c"}]]
)
def test_bad_requests_change_nothing(editor: Editor, requests: Any) -> None:
    with pytest.raises(RequestError):
        editor.edit(requests)


def test_a_failing_forward_leaves_hooks_and_flags(editor: Editor) -> None:
    head = editor.model.get_output_embeddings()

    def fail(*_: object) -> None:
        raise MemoryError("no room")

    handle = head.register_forward_pre_hook(fail)
    try:
        with pytest.raises(MemoryError):
            editor.edit(REQUESTS, evaluate=False)
    finally:
        handle.remove()


def test_nan_never_reaches_a_weight(editor: Editor) -> None:
    norm = editor.model.get_parameter("model.norm.weight")
    kept = norm.detach().clone()
    try:
        with torch.no_grad():
            norm[3] = float("nan")
        with pytest.raises(NonFiniteError, match=r"record 0: .* gave NaN or infinity"):
            editor.edit(REQUESTS, evaluate=False)
    finally:
        with torch.no_grad():
            norm.copy_(kept)


def test_an_unknown_method_is_named(demo_model: Any) -> None:
    with pytest.raises(HparamsError, match="did you mean 'rome'"):
        Editor(*demo_model, method="roma")
