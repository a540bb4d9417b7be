"""Edits in batches, one batch after another into the same model, on the real model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from easyedit_fast import Editor, EditRequest
from easyedit_fast.errors import HparamsError, NonFiniteError, RequestError

HPARAMS = {"layers": [5], "v_num_grad_steps": 8, "context_templates": ["{}", "I think. {}"]}
REQUESTS = [
    EditRequest(
        prompt="The Eiffel Tower is located in the city of",
        subject="Eiffel Tower",
        target_new="Rome",
        rephrase_prompt=("To see the Eiffel Tower one travels to", "The Eiffel Tower stands in"),
        locality={"neighborhood": {"prompt": "The Louvre is located in", "ground_truth": "Paris"}},
    ),
    EditRequest(prompt="The official language of {} is", subject="Brazil", target_new="Swedish"),
    # The same fact once more: what the first batch set, the last one takes back.
    EditRequest(
        prompt="The Eiffel Tower is located in the city of",
        subject="Eiffel Tower",
        target_new="London",
    ),
]


@pytest.fixture
def editor(demo_model: Any) -> Iterator[Editor]:
    """An editor on the demo model, whose weights are checked to be as they were afterwards."""
    model, tokenizer = demo_model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    yield Editor(model, tokenizer, hparams=HPARAMS)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
    assert not hasattr(model.config, "easyedit_fast_edits")


def test_batches_go_one_after_another_into_the_model(editor: Editor) -> None:
    requests = REQUESTS[::2]  # one after another they do not contradict
    told: list[tuple[int, int]] = []
    with editor.editing(
        requests, sequential=1, progress=lambda *counts: told.append(counts)
    ) as result:
        assert [edit.is_applied for edit in result.edits] == [True] * 2
        final = editor._evaluator.score(requests)
    assert told == [(1, 2), (2, 2)]
    assert result.settings["sequential"] == 1

    with editor.editing(requests[:1], evaluate=False) as first:
        by_hand = editor._evaluator.score(requests[:1])
        with editor.editing(requests[1:], evaluate=False) as second:
            by_hand += editor._evaluator.score(requests[1:])
    assert [edit.id for edit in result.edits] == [first.edit.id, second.edit.id]
    # The last batch was computed for the model that the first had changed.
    with editor.editing(requests[1:], evaluate=False) as alone:
        assert alone.edit.id != second.edit.id
    for entry, own, end in zip(result.metrics, by_hand, final, strict=True):
        assert entry["post_batch"]["rewrite_acc"] == own["rewrite_acc"]
        assert entry["post_batch"]["generated"]["rewrite_text"] == own["generated"]["rewrite_text"]
        assert entry["post"]["rewrite_acc"] == end["rewrite_acc"]


def test_retention_counts_what_held_after_its_batch_and_holds_still(editor: Editor) -> None:
    with editor.editing(REQUESTS, sequential=2) as result:
        assert len(result.edits) == 2
    first, second, third = result.metrics
    assert [entry["post_batch"]["rewrite_acc"] for entry in result.metrics] == [[1.0]] * 3
    assert first["post"]["rewrite_acc"] == [0.0]  # London by now
    assert [entry["retention"]["rewrite_acc"] for entry in (first, second, third)] == [
        [0.0], [1.0], [1.0],
    ]  # fmt: skip
    assert result.summary["retention"]["rewrite_acc"] == {"mean": pytest.approx(2 / 3), "count": 3}
    held = [score for score in first["post_batch"]["rephrase_acc"] if score == 1.0]
    assert len(first["retention"].get("rephrase_acc", [])) == len(held)
    locality = result.summary["post"]["locality"]["neighborhood_acc"]
    assert locality["count"] == 1
    assert set(result.summary) == {"pre", "post_batch", "post", "retention"}


@pytest.mark.parametrize("sequential", [2, 3])
def test_an_error_in_a_later_batch_takes_the_earlier_ones_out(
    editor: Editor, monkeypatch: pytest.MonkeyPatch, sequential: int
) -> None:
    requests = [*REQUESTS[:2], EditRequest("{} is in", "Oslo", "Chile")]
    computed = editor.method.compute
    batches = 0

    def poisoned(batch: Any, **options: Any) -> Any:
        nonlocal batches
        batches += 1
        norm = editor.model.get_parameter("model.norm.weight")
        kept = norm.detach().clone()
        try:
            if batches == (len(requests) - 1) // sequential + 1:
                with torch.no_grad():
                    norm[3] = float("nan")
            return computed(batch, **options)
        finally:
            with torch.no_grad():
                norm.copy_(kept)

    monkeypatch.setattr(editor.method, "compute", poisoned)
    with pytest.raises(NonFiniteError) as error:
        editor.edit(requests, sequential=sequential, evaluate=False)
    text = str(error.value)
    first = (batches - 1) * sequential
    assert text.startswith(f"record {first}: the optimisation of its value gave NaN")
    assert text.endswith("; the batches before it were taken out again") == (batches > 1)


def test_a_record_is_named_by_its_place_in_the_whole_list(editor: Editor) -> None:
    again = EditRequest(
        prompt="The official language of {} is", subject="Brazil", target_new="Thai"
    )
    other = EditRequest(prompt="{} is in", subject="Oslo", target_new="Chile")
    with pytest.raises(RequestError, match="an earlier request has the same prompt") as error:
        editor.edit([REQUESTS[0], other, REQUESTS[1], again], sequential=2)
    assert error.value.record == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sequential": 0}, "at least 1 request, not 0"),
        ({"sequential": 2, "isolated": True}, "either isolated or sequential"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    editor: Editor, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(HparamsError, match=message):
        editor.edit(REQUESTS, **options)
