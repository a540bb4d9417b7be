"""What every editing method does where memory runs out, or one request goes wrong.

The faults strike the real model: its embeddings give NaN for the tokens of one subject, or an
operation of torch raises what the allocator of a GPU raises.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from easyedit_fast import Editor, EditRequest
from easyedit_fast.errors import (
    EditStateError,
    HparamsError,
    NonFiniteError,
    OutOfMemoryError,
    RequestError,
)
from easyedit_fast.ledger import applied_edit_ids
from easyedit_fast.models.tracing import edit_output
from easyedit_fast.timings import Timings
from tests.contract.states import assert_state, state_of

BAD_SUBJECT = "Qaqortoq"
REQUESTS = [
    EditRequest("The official language of {} is", "Brazil", "Swedish"),
    EditRequest("{} lies in", BAD_SUBJECT, "Chile"),
    EditRequest("The capital of {} is", "Peru", "Oslo"),
]
OTHERS = [REQUESTS[0], REQUESTS[2]]
PHASES = {
    "rome": ("trunk", "optimise", "solve"),
    "mend": ("gradients", "editor"),
}
EVALUATION = ("evaluate before", "evaluate after")


class OutOfMemory(TorchDispatchMode):
    """Raises what torch's allocator raises, at one operation of a phase or from it on.

    Views allocate nothing and go on. Where memory has run out for good, so do operations in place.
    """

    def __init__(self, phase: str, operation: int, *, once: bool) -> None:
        super().__init__()
        self.phase, self.operation, self.once = phase, operation, once
        self.running = ""
        self.seen = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        in_place = func.name().split(".")[0].endswith("_")
        if self.running == self.phase and not func.is_view and (self.once or not in_place):
            self.seen += 1
            if self.seen == self.operation or (self.seen > self.operation and not self.once):
                raise torch.OutOfMemoryError(
                    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of"
                )
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def out_of_memory(phase: str, operation: int, *, once: bool = False) -> Iterator[OutOfMemory]:
    """Lets memory run out in a phase of `Timings`."""
    real = Timings.phase

    @contextlib.contextmanager
    def watched(self: Timings, name: str, *args: Any, **kwargs: Any) -> Iterator[Any]:
        mode.running = name
        with real(self, name, *args, **kwargs) as entered:
            try:
                yield entered
            finally:
                mode.running = ""

    mode = OutOfMemory(phase, operation, once=once)
    with pytest.MonkeyPatch.context() as patch, mode:
        patch.setattr(Timings, "phase", watched)
        yield mode


@contextlib.contextmanager
def not_finite(editor: Editor, subject: str = BAD_SUBJECT) -> Iterator[None]:
    """The embeddings of a subject's last token are NaN."""
    marker = editor.tokenizer(f" {subject}", add_special_tokens=False)["input_ids"][-1]

    def spoil(ids: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        return states.masked_fill((ids == marker)[..., None], float("nan"))

    with edit_output(editor.model.get_input_embeddings(), spoil):
        yield


@contextlib.contextmanager
def too_large(editor: Editor, subject: str = BAD_SUBJECT) -> Iterator[list[int]]:
    """Memory runs out wherever a subject's last token is run; yields the sizes of such batches."""
    marker = editor.tokenizer(f" {subject}", add_special_tokens=False)["input_ids"][-1]
    sizes: list[int] = []

    def check(ids: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        if bool((ids == marker).any()):
            sizes.append(len(ids))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return states

    with edit_output(editor.model.get_input_embeddings(), check):
        yield sizes


def assert_same_edits(one: Sequence[Any], other: Sequence[Any]) -> None:
    for left, right in zip(one, other, strict=True):
        assert left.requests == right.requests
        for name, update in left.updates.items():
            dense = right.updates[name].dense()
            assert (update.dense() - dense).norm() / dense.norm() < 1e-3


@pytest.mark.parametrize(
    ("editor", "phase"),
    [(method, phase) for method, own in PHASES.items() for phase in (*own, *EVALUATION)],
    indirect=["editor"],
)
def test_memory_runs_out_for_good_in_a_phase(editor: Editor, phase: str) -> None:
    with out_of_memory(phase, 3) as fault:
        with pytest.raises(OutOfMemoryError, match=r"memory ran out \(2\.00 GiB were asked for\)"):
            editor.edit(REQUESTS[:2], generate=False)
        assert fault.seen >= 3


@pytest.mark.parametrize(
    ("editor", "phase"),
    [
        (method, phase)
        for method, own in PHASES.items()
        for phase in (*(name for name in own if name not in ("solve", "editor")), "evaluate after")
    ],
    indirect=["editor"],
)
def test_memory_that_runs_out_once_costs_nothing(
    editor: Editor, phase: str, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"isolated": True, "generate": phase.startswith("evaluate")}
    whole = editor.edit(OTHERS, **options)
    with (
        caplog.at_level(logging.WARNING, "easyedit_fast"),
        out_of_memory(phase, 40, once=True) as fault,
    ):
        halved = editor.edit(OTHERS, **options)
    assert fault.seen > 40
    assert "out of memory with 2 at once; going on with 1" in caplog.text
    assert_same_edits(halved.edits, whole.edits)
    assert halved.metrics == whole.metrics


@pytest.mark.parametrize("edited_before", [False, True])
def test_every_operation_of_an_update_may_run_out(editor: Editor, edited_before: bool) -> None:
    """At each of them the weights are as before, and so is the record of what is in them."""
    model = editor.model
    first, second = editor.edit(OTHERS, isolated=True, evaluate=False).edits
    if edited_before:
        first.apply(model)
    before = {name: model.get_parameter(name).detach().clone() for name in second.updates}
    failed = 0
    while not second.is_applied:
        with (
            contextlib.suppress(torch.OutOfMemoryError),
            out_of_memory("update", failed + 1, once=True),
            Timings().phase("update"),
        ):
            second.apply(model, check_model=False)
        if not second.is_applied:
            failed += 1
            for name, weight in before.items():
                assert torch.equal(model.get_parameter(name), weight), (failed, name)
            assert applied_edit_ids(model) == [first.id] * edited_before
    assert failed >= 3  # copy, update, checksum
    second.revert()
    if edited_before:
        first.revert()


def test_context_templates_may_run_out(demo_model: Any, tmp_path: Any) -> None:
    before = state_of(demo_model[0])
    editor = Editor(*demo_model, hparams={"layers": [5], "v_num_grad_steps": 1})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EASYEDIT_FAST_CACHE", str(tmp_path))
        with out_of_memory("templates", 50), pytest.raises(OutOfMemoryError):
            editor.edit(REQUESTS[0], evaluate=False)
    assert_state(demo_model[0], before)


@pytest.mark.parametrize("isolated", [False, True])
def test_one_request_that_is_not_finite(editor: Editor, isolated: bool) -> None:
    options: dict[str, Any] = {"isolated": isolated, "generate": False}
    with not_finite(editor):
        with pytest.raises(NonFiniteError, match=r"^record 1: its activations .* hold NaN"):
            editor.edit(REQUESTS, **options)
        result = editor.edit(REQUESTS, on_error="skip", **options)
        in_model = [edit.is_applied for edit in result.edits]
        editor._take_out(result.edits)
    assert in_model == ([False, False] if isolated else [True])
    assert list(result.failures) == [1]
    assert isinstance(result.failures[1], NonFiniteError)
    assert result.finished == [0, 2]
    with editor.editing(OTHERS, **options) as expected:
        pass
    assert_same_edits(result.edits, expected.edits)
    error = result.metrics[1].pop("error")
    assert error == str(result.failures[1]).splitlines()[0]
    assert result.metrics[1] == {"case_id": 1, "requested_rewrite": REQUESTS[1].to_dict()}
    assert [result.metrics[place]["post"] for place in (0, 2)] == [
        entry["post"] for entry in expected.metrics
    ]
    assert [entry["case_id"] for entry in result.metrics] == [0, 1, 2]
    assert result.summary == expected.summary
    assert result.details[1] == {}
    assert result.to_dict()["failures"] == {1: error}


def test_a_request_that_contradicts_another(editor: Editor) -> None:
    other = EditRequest("The capital of {} is", "Peru", "Lagos")
    with pytest.raises(RequestError, match=r"^record 1, .* an earlier request has the same prompt"):
        editor.edit([REQUESTS[2], other], generate=False)
    options: dict[str, Any] = {"on_error": "skip", "generate": False}
    with editor.editing([REQUESTS[2], other, OTHERS[0]], **options) as result:
        assert result.finished == [0, 2]


def test_a_request_that_does_not_fit_the_context(editor: Editor) -> None:
    long = EditRequest("{} lies " + "so very " * 20 + "far from", "Qaqortoq", "Rome")
    requests = [OTHERS[0], long, OTHERS[1]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(editor.model.config, "max_position_embeddings", 30)
        for evaluate in (False, True):
            options: dict[str, Any] = {"evaluate": evaluate, "isolated": True, "generate": False}
            with pytest.raises(RequestError, match=r"^record 1,"):
                editor.edit(requests, **options)
            result = editor.edit(requests, on_error="skip", **options)
            assert [type(error) for error in result.failures.values()] == [RequestError]
            assert str(result.failures[1]).startswith("record 1, field ")
            assert [edit.requests for edit in result.edits] == [[OTHERS[0]], [OTHERS[1]]]


def test_a_request_that_alone_takes_too_much(
    editor: Editor, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"evaluate": False, "isolated": True}
    with too_large(editor) as sizes:
        with pytest.raises(OutOfMemoryError, match=r"^record 1: memory ran out \(20\.00 GiB"):
            editor.edit(REQUESTS, **options)
        result = editor.edit(REQUESTS, on_error="skip", **options)
    assert len(sizes) >= 4
    assert list(result.failures) == [1]
    assert_same_edits(result.edits, editor.edit(OTHERS, **options).edits)


@pytest.mark.parametrize("isolated", [False, True])
def test_all_requests_fail(editor: Editor, isolated: bool) -> None:
    with not_finite(editor):
        result = editor.edit(REQUESTS[1], isolated=isolated, on_error="skip", generate=False)
    assert (result.edits, result.finished, result.summary) == ([], [], {})
    assert "error" in result.metrics[0]
    with pytest.raises(EditStateError, match="all requests failed"):
        _ = result.edit


def test_a_failure_in_a_sequence_counts_in_the_whole_list(editor: Editor) -> None:
    told: list[tuple[int, int]] = []
    options: dict[str, Any] = {"sequential": 1, "generate": False}
    with not_finite(editor):
        with pytest.raises(NonFiniteError, match=r"^record 1: .* were taken out again"):
            editor.edit(REQUESTS, **options)
        with editor.editing(
            REQUESTS, on_error="skip", progress=lambda *counts: told.append(counts), **options
        ) as result:
            assert [edit.is_applied for edit in result.edits] == [True, True]
    assert list(result.failures) == [1]
    assert str(result.failures[1]).startswith("record 1: ")
    assert [edit.requests for edit in result.edits] == [[OTHERS[0]], [OTHERS[1]]]
    assert ["post_batch" in entry for entry in result.metrics] == [True, False, True]
    assert result.summary["post"]["rewrite_acc"]["count"] == 2
    assert told[-1] == (3, 3)


def test_the_batch_size_changes_nothing(editor: Editor) -> None:
    options: dict[str, Any] = {"isolated": True, "evaluate": False}
    assert_same_edits(
        editor.edit(OTHERS, batch_size=1, **options).edits, editor.edit(OTHERS, **options).edits
    )


@pytest.mark.parametrize(
    "option",
    [{"batch_size": size} for size in (0, -1, 2.0, True, "all", None)] + [{"on_error": "ignore"}],
)
def test_other_options_are_refused(editor: Editor, option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(HparamsError, match=f"^{name} must be '.*, not {option[name]!r}$"):
        editor.edit(REQUESTS, **option)
