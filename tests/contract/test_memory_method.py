"""What the method whose edits lie in a memory keeps to, on the real model."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from easyedit_fast import Edit, Editor, EditRequest, read_requests
from easyedit_fast.errors import (
    DataFileError,
    EditStateError,
    HparamsError,
    MissingPackageError,
    ModelError,
    RequestError,
)
from easyedit_fast.evaluation import Evaluator
from easyedit_fast.runs import EditJob, Records, score_apart, score_in_one_model
from easyedit_fast.serac import SqliteStore
from easyedit_fast.serac.graph import GRAPH_FROM
from tests.contract.states import assert_state, state_of
from tests.contract.test_methods import REQUESTS
from tests.unit.tiny_models import ending

FACT = REQUESTS[0]
OTHER = "The opposite of hot is"


@pytest.fixture
def editor(demo_model: Any) -> Iterator[Editor]:
    """SERAC on the demo model, which is checked to be as it was afterwards."""
    model, tokenizer = demo_model
    before = state_of(model)
    try:
        made = Editor(model, tokenizer, method="serac")
    except MissingPackageError as error:
        pytest.skip(str(error))
    yield made
    made.method.close()
    assert_state(model, before)


def another(editor: Editor, memory: Any = None, hparams: Any = None) -> Editor:
    """A second editor on the same model, in the place of the first."""
    editor.method.close()
    made = Editor(
        editor.method.base, editor.tokenizer, method="serac", memory=memory, hparams=hparams
    )
    editor.method = made.method  # which the fixture closes
    return made


def continued(editor: Editor, prompt: str) -> str:
    ids = editor.tokenizer(prompt, return_tensors="pt")
    out = editor.model.generate(**ids, max_new_tokens=4, do_sample=False)
    text: str = editor.tokenizer.decode(out[0, ids["input_ids"].shape[1] :])
    return text


def test_after_edit_the_model_answers_and_no_weight_is_another(editor: Editor) -> None:
    before = state_of(editor.model)["weights"]
    texts = [continued(editor, prompt) for prompt in (FACT.prompt, OTHER)]
    result = editor.edit(REQUESTS)
    assert all(torch.equal(p, before[name]) for name, p in editor.model.named_parameters())
    assert continued(editor, FACT.prompt).split()[0].startswith("Rome")
    other = "The city that holds the Eiffel Tower is"
    assert continued(editor, other).split()[0].startswith("Rome")
    assert continued(editor, OTHER) == texts[1]
    post = result.summary["post"]
    assert post["rewrite_acc"]["mean"] == post["generated"]["rewrite_acc"]["mean"] == 1.0
    assert post["locality"]["neighborhood_acc"]["mean"] == 1.0
    result.edit.revert()
    assert [continued(editor, prompt) for prompt in (FACT.prompt, OTHER)] == texts


def test_scores_are_those_of_the_model_itself(editor: Editor) -> None:
    result = editor.edit(REQUESTS)
    for request, metrics in zip(REQUESTS, result.metrics, strict=True):
        prompt = editor.tokenizer(request.prompt, return_tensors="pt")["input_ids"]
        text = f"{request.prompt} {request.target_new}"
        ids = editor.tokenizer(text, return_tensors="pt")["input_ids"]
        logits = editor.model(input_ids=ids, prompt_length=prompt.shape[1]).logits[0]
        wanted = ids[0, prompt.shape[1] :]
        right = logits[prompt.shape[1] - 1 : -1].argmax(-1) == wanted
        assert metrics["post"]["rewrite_acc"] == [float(right.float().mean())]
        generated = metrics["post"]["generated"]["rewrite_text"][0]
        assert generated.startswith(continued(editor, request.prompt).rstrip("\ufffd"))


def test_isolated_edits_know_their_own_fact_alone(editor: Editor) -> None:
    result = editor.edit(REQUESTS, isolated=True)
    assert len(result.edits) == 2
    assert len(editor.method.memory) == 0
    # The second's answer to the first's prompt would be in both memories.
    same = EditRequest(FACT.prompt, FACT.subject, "Berlin")
    pair = editor.edit([FACT, same], isolated=True)
    texts = [one["post"]["generated"]["rewrite_text"][0].strip() for one in pair.metrics]
    assert texts[0].startswith("Rome")
    assert texts[1].startswith("Berlin")


def test_the_newest_of_two_edits_holds_until_it_is_reverted(editor: Editor) -> None:
    first = editor.edit([FACT], evaluate=False)
    second = editor.edit([EditRequest(FACT.prompt, FACT.subject, "Berlin")], evaluate=False)
    assert continued(editor, FACT.prompt).strip().startswith("Berlin")
    second.edit.revert()
    assert continued(editor, FACT.prompt).strip().startswith("Rome")
    first.edit.revert()
    assert len(editor.method.memory) == 0
    with pytest.raises(EditStateError, match="nothing to revert"):
        first.edit.revert()


def test_an_edit_object(editor: Editor, tmp_path: Path) -> None:
    edit = editor.edit(REQUESTS, evaluate=False).edit
    assert isinstance(edit, Edit)
    assert edit.is_applied
    assert edit.describe()["ids"] == [1, 2]
    with pytest.raises(EditStateError, match="in the memory already"):
        edit.apply()
    with pytest.raises(EditStateError, match="changes no weight"):
        edit.to_peft(tmp_path / "adapter")
    edit.save(tmp_path / "edits.jsonl")
    with pytest.raises(EditStateError, match=r"edit\.safetensors: .* name a \.jsonl file"):
        edit.save(tmp_path / "edit.safetensors")
    assert not (tmp_path / "edit.safetensors").exists()
    edit.revert()
    assert not edit.is_applied
    with pytest.raises(EditStateError, match="read_requests"):
        type(edit).load(tmp_path / "edits.jsonl")
    assert list(read_requests(tmp_path / "edits.jsonl")) == REQUESTS
    with edit.applied(editor.model):
        assert len(editor.method.memory) == 2
    assert len(editor.method.memory) == 0
    with pytest.raises(EditStateError, match="keep the memory's file"):
        editor.save_model(tmp_path / "model")


def test_editing_is_for_a_while_also_after_an_exception(editor: Editor) -> None:
    with pytest.raises(KeyError), editor.editing(REQUESTS, evaluate=False):
        assert len(editor.method.memory) == 2
        raise KeyError
    assert len(editor.method.memory) == 0


def test_a_memory_outlives_its_editor(editor: Editor, tmp_path: Path) -> None:
    path = tmp_path / "edits.sqlite"
    another(editor, path).edit([FACT], evaluate=False)
    again = another(editor, path)
    assert continued(again, FACT.prompt).strip().startswith("Rome")
    stored = list(again.method.memory)
    assert [one.request for one in stored] == [FACT]
    shared = another(editor, SqliteStore(path))
    assert len(shared.method.memory) == 1
    (tmp_path / "notes.txt").write_text("no database")
    with pytest.raises(DataFileError, match="is no edit memory"):
        another(editor, tmp_path / "notes.txt")


def test_sequential_edits_are_added_batch_by_batch(editor: Editor) -> None:
    result = editor.edit(REQUESTS, sequential=1)
    assert [edit.ids for edit in result.edits] == [[1], [2]]
    assert result.summary["post"]["rewrite_acc"]["mean"] == 1.0
    assert "retention" in result.metrics[0]


def test_a_failure_leaves_the_memory_as_it_was(editor: Editor) -> None:
    pair = [REQUESTS[1], EditRequest(REQUESTS[1].prompt, "Brazil", "Greek")]
    with pytest.raises(RequestError, match="an earlier request has the same prompt"):
        editor.edit(pair)
    long = EditRequest("Brazil " * 9000, "Brazil", "Greek")
    with pytest.raises(RequestError, match="shorten it"):
        editor.edit([FACT, long])
    assert len(editor.method.memory) == 0
    skipped = editor.edit([FACT, long], on_error="skip")
    assert list(skipped.failures) == [1]
    assert len(editor.method.memory) == 1


LONG = EditRequest(
    "Far in the south, beyond the sea and the high mountains, the river that all of {} knows is "
    "the",
    "Brazil",
    "Rhine",
)
LONG_REPHRASE = EditRequest(
    FACT.prompt,
    FACT.subject,
    "Rome",
    rephrase_prompt="Lovers of iron towers will all agree, whatever else they say of it, that the "
    "city in which the Eiffel Tower stands today is",
)


@pytest.mark.parametrize("options", [{}, {"isolated": True}, {"sequential": 1}])
def test_what_does_not_fit_with_its_edit_is_left_out(
    editor: Editor, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt of it may be too long before, after its own edit, or where it goes to its edit."""
    monkeypatch.setattr(editor.method.base.config, "max_position_embeddings", 44)
    alone = EditRequest("Brazil " * 50, "Brazil", "Greek")
    asked = [alone, LONG, REQUESTS[1], LONG_REPHRASE, FACT]
    for place in (1, 3):
        with pytest.raises(RequestError, match=r"^record 1, field .* shorten it"):
            editor.edit([REQUESTS[1], asked[place]], **options)
        assert len(editor.method.memory) == 0
    if not options.get("sequential"):
        asked.pop()  # contradicts nothing, but is the prompt of another
    result = editor.edit(asked, on_error="skip", **options)
    assert list(result.failures) == [0, 1, 3]
    assert "its edit as context" in str(result.failures[1])
    assert result.failures[3].field == "rephrase_prompt"
    assert [one.get("case_id") for one in result.metrics] == list(range(len(asked)))
    finished = [metrics for metrics in result.metrics if "error" not in metrics]
    assert [metrics["case_id"] for metrics in finished] == result.finished
    assert [metrics["post"]["rewrite_acc"] for metrics in finished] == [[1.0]] * len(finished)
    kept = [request for edit in result.edits for request in edit.requests]
    assert kept == [asked[place] for place in result.finished]
    inside = [] if options.get("isolated") else kept
    assert [edit.request for edit in editor.method.memory] == inside


@pytest.mark.parametrize("together", [True, False])
def test_a_run_over_a_file_names_the_records_that_do_not_fit(
    editor: Editor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    monkeypatch.setattr(editor.method.base.config, "max_position_embeddings", 44)
    path = tmp_path / "requests.jsonl"
    lines = ["{}", *(json.dumps(one.to_dict()) for one in (REQUESTS[1], LONG_REPHRASE, LONG))]
    path.write_text("".join(f"{line}\n" for line in lines))
    records = Records.read(path, on_error="skip")
    if together:
        scores = score_in_one_model(editor, records, on_error="skip")
    else:
        scores = score_apart(EditJob(editor, on_error="skip"), records)
    numbers = [error.split(",")[0] for error in scores.failures]
    assert sorted(numbers) == ["record 0", "record 2", "record 3"]
    assert len(scores.metrics) == 1
    assert len(editor.method.memory) == 0


def test_without_scores_too_an_edit_fits_its_own_prompt(
    editor: Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(editor.method.base.config, "max_position_embeddings", 44)
    with pytest.raises(RequestError, match=r"record 1, field 'prompt': with its edit as context"):
        editor.edit([FACT, LONG], evaluate=False)
    assert len(editor.method.memory) == 0
    skipped = editor.edit([FACT, LONG], evaluate=False, on_error="skip")
    assert list(skipped.failures) == [1]
    assert [edit.request for edit in editor.method.memory] == [FACT]


def test_an_eos_after_every_text_takes_no_room(
    editor: Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = editor.tokenizer(f"{FACT.prompt} {FACT.target_new}")["input_ids"]
    needed = len(whole) + len(editor.method._adapter.context(FACT))
    monkeypatch.setattr(editor.method._adapter, "tokenizer", ending(editor.tokenizer))
    monkeypatch.setattr(editor.method.base.config, "max_position_embeddings", needed)
    editor.edit(FACT, evaluate=False)
    monkeypatch.setattr(editor.method.base.config, "max_position_embeddings", needed - 1)
    with pytest.raises(RequestError, match="with its edit as context"):
        editor.edit(FACT, evaluate=False)


def test_fluency_stays_within_what_the_model_reads(
    editor: Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(editor.method.base.config, "max_position_embeddings", 44)
    lengths: list[int] = []
    handle = editor.method.base.register_forward_pre_hook(
        lambda _, __, kwargs: lengths.append(int(kwargs["attention_mask"].shape[-1])),
        with_kwargs=True,
    )
    result = editor.edit([FACT], generate=False, fluency=True)
    handle.remove()
    assert result.metrics[0]["post"]["fluency"]["ngram_entropy"] > 0
    assert 40 < max(lengths) <= 44


def test_what_does_not_go_together_is_refused(editor: Editor, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds an adapter already"):
        Editor(editor.method.base, editor.tokenizer, method="serac")
    for method in ("rome", "mend"):
        with pytest.raises(HparamsError, match="keeps its edits in the weights"):
            Editor(editor.method.base, editor.tokenizer, method=method, memory=tmp_path / "x")
    with pytest.raises(HparamsError, match="no presets"):
        Editor(editor.method.base, editor.tokenizer, method="serac", preset="fast")


@pytest.mark.parametrize(
    ("hparams", "kind", "message"),
    [
        ({"cross_attend": True}, DataFileError, r"smollm2-135m\.safetensors: .* or train one with"),
        ({"cntr_rank": 4}, DataFileError, r"smollm2-135m\.safetensors: the adapter does not fit"),
        (
            {"memory_index": "aproximate"},
            HparamsError,
            r"^the hyperparameters given, over those of \S+: memory_index: must be 'exact' or",
        ),
    ],
)
def test_what_does_not_go_with_the_editor_is_told_with_its_file(
    editor: Editor, hparams: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        another(editor, hparams=hparams)


def test_what_is_left_of_an_edit_can_be_reverted(editor: Editor) -> None:
    edit = editor.edit(REQUESTS, evaluate=False).edit
    editor.method.memory.remove(edit.ids[0])
    assert edit.is_applied
    with pytest.raises(EditStateError, match="in the memory already"):
        edit.apply()
    edit.revert()
    assert not edit.is_applied
    assert len(editor.method.memory) == 0


def test_a_closed_editor_answers_from_no_edit(editor: Editor) -> None:
    editor.edit(FACT, evaluate=False)
    editor.method.close()
    with pytest.raises(EditStateError, match="was closed"):
        continued(editor, FACT.prompt)


def test_scoring_and_generating_in_two_threads(editor: Editor) -> None:
    editor.edit(REQUESTS, evaluate=False)
    expected = [continued(editor, prompt) for prompt in (FACT.prompt, OTHER)]
    evaluator = Evaluator(editor.method.base, editor.tokenizer)
    scores = evaluator.score(REQUESTS, routing=editor.method.routing())
    found: list[Any] = []

    def score() -> None:
        found.extend(evaluator.score(REQUESTS, routing=editor.method.routing()) for _ in range(3))

    thread = threading.Thread(target=score)
    thread.start()
    while thread.is_alive():
        assert [continued(editor, prompt) for prompt in (FACT.prompt, OTHER)] == expected
    thread.join()
    assert found == [scores] * 3


@pytest.mark.slow
def test_a_large_memory_is_searched_by_a_graph(editor: Editor, tmp_path: Path) -> None:
    path = tmp_path / "edits.sqlite"
    scope: Any = editor.method.memory.encoder
    rows = torch.nn.functional.normalize(torch.randn(GRAPH_FROM, scope.size), dim=1)
    held = [EditRequest(f"The number {n} is", f"{n}", "odd") for n in range(GRAPH_FROM)]
    SqliteStore(path).add(held, rows, scope.fingerprint)
    plain = continued(editor, OTHER)
    hparams = {"memory_index": "approximate"}
    large = another(editor, path, hparams=hparams)
    assert Path(f"{path}.index").exists()
    large.edit([FACT], evaluate=False)
    assert continued(large, FACT.prompt).strip().startswith("Rome")
    assert continued(large, OTHER) == plain
    again = another(large, path, hparams=hparams)
    (route,) = again.method._router.routes([FACT.prompt])
    assert route.edit is not None
    assert route.edit.request == FACT
    again.method.close()


def test_the_threshold_says_how_likely_an_edit_must_be(editor: Editor) -> None:
    editor.edit(FACT, evaluate=False)
    question = "Do you know where people travel for the Eiffel Tower?"
    (plain,) = editor.model.routes([question])
    assert 0.001 < plain.similarity < 0.999
    for threshold in (plain.similarity / 2, (1 + plain.similarity) / 2):
        other = another(editor, hparams={"threshold": threshold})
        other.edit(FACT, evaluate=False)
        (route,) = other.model.routes([question])
        assert route.similarity == pytest.approx(plain.similarity, rel=1e-4)
        assert (route.edit is None) == (threshold > plain.similarity)


@pytest.mark.parametrize(
    ("key", "value"),
    [("cos", False), ("bound_embeds", True), ("dist_heads", 3), ("pooling", "cls")],
)
def test_distances_are_those_that_the_scope_was_trained_with(
    editor: Editor, key: str, value: Any
) -> None:
    with pytest.raises(HparamsError, match=f"{key} is {str(value).lower()}, and the scope of"):
        another(editor, hparams={key: value})
    same = {"cos": True, "bound_embeds": False, "dist_heads": 1, "pooling": "mean"}
    another(editor, hparams={key: same[key], "square": False})  # has no meaning with cos


def test_a_checkpoint_is_no_editor(editor: Editor, tmp_path: Path) -> None:
    (tmp_path / "serac.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(DataFileError, match="checkpoints of EasyEdit are not read"):
        another(editor, hparams={"archive": str(tmp_path / "serac.pt")})


def test_a_closed_memory_says_so(editor: Editor, tmp_path: Path) -> None:
    other = another(editor, tmp_path / "edits.sqlite")
    other.method.close()
    with pytest.raises(DataFileError, match="was closed with its editor; make a new one"):
        other.method.memory.add(FACT)


def test_what_is_no_prompt_has_no_route(editor: Editor) -> None:
    editor.edit(FACT, evaluate=False)
    assert editor.model.routes([]) == []
    for ask in (editor.model.routes, editor.model.router.routes):
        with pytest.raises(RequestError, match=r"field 'prompt': .*half of a surrogate pair"):
            ask(["The capital of \ud83d is"])
    with pytest.raises(RequestError, match=r"field 'prompt': .*half of a surrogate pair"):
        editor.model.router.search("\ud83d")
