"""SERAC's training on small random models: losses, what is drawn, what is kept, what is refused."""

from __future__ import annotations

import copy
import functools
import math
import string
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch.nn import functional

from easyedit_fast import EditRequest
from easyedit_fast.errors import (
    DataFileError,
    HparamsError,
    ModelError,
    NonFiniteError,
    RequestError,
)
from easyedit_fast.models.fingerprint import tokenizer_fingerprint
from easyedit_fast.serac import Serac
from easyedit_fast.serac.answers import Answered, BaseAnswers, answer_logits
from easyedit_fast.serac.continuations import going_on
from easyedit_fast.serac.counterfactual import CounterfactualAdapter
from easyedit_fast.serac.editor_files import load_parts, read_editor, write_editor
from easyedit_fast.serac.hparams import SERACHparams
from easyedit_fast.serac.negatives import Negatives
from easyedit_fast.serac.questions import as_questions
from easyedit_fast.serac.training import SeracTrainee, serac_trainee
from easyedit_fast.serac.training_data import unfair_pairs
from easyedit_fast.serac.validation import VALUES
from easyedit_fast.training.editors import EditorFile
from easyedit_fast.training.loop import train
from tests.unit.serac_encoders import write_encoder
from tests.unit.test_mend_training import requests
from tests.unit.tiny_models import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")
both_kinds = pytest.mark.parametrize(
    "small", [False, True], ids=["embeddings", "cross-encoder"], indirect=True
)
"""Of scopes: asked of a trainee whose scope is a cross-encoder, too."""


@pytest.fixture
def no_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    """All prompts as they are."""
    for name in ("_QUESTIONS", "_FORMS"):
        monkeypatch.setattr(f"easyedit_fast.serac.drawing.{name}", 0.0)


@pytest.fixture
def small(sentence_encoder: Path, request: pytest.FixtureRequest) -> Any:
    """Makes a trainee on a small model."""
    cross = getattr(request, "param", False)

    def make(model: Any = None, tokenizer: Any = None, **keys: Any) -> SeracTrainee:
        hparams = {
            "cls_name": str(sentence_encoder),
            "cls_rank": 4,
            "cross_attend": cross,
            "cross_candidates": 3,
            "cntr_rank": 4,
            "batch_size": 4,
            "max_iters": 4,
            "val_interval": 2,
            "model_save_pt": 2,
            "log_interval": 2,
            "lr": 1e-2,
            **keys,
        }
        model = model or tiny_model("llama", max_position_embeddings=256)
        tokenizer = tokenizer or own_tokenizer()
        return serac_trainee(model, tokenizer, requests(), requests()[:3], hparams=hparams)[0]

    return make


_TEMPLATE = (
    "{% for one in messages %}{{ one.role }} says {{ one.content }} \n{% endfor %}"
    "{% if add_generation_prompt %}assistant says {% endif %}"
)


def own_tokenizer(*, chats: bool = True) -> Any:
    """One that knows the characters of the records."""
    texts = [
        text
        for one in requests()
        for text in (one.prompt, one.target_new, *one.rephrase_prompt, "English", "governed from")
    ]
    tokenizer = tiny_tokenizer([*texts, "user assistant system says :", string.printable])
    tokenizer.chat_template = _TEMPLATE if chats else None
    return tokenizer


def turned(trainee: SeracTrainee) -> SeracTrainee:
    """The same with a scope and an adapter that do something."""
    generator = torch.Generator().manual_seed(1)
    state = {
        name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in trainee.state_dict().items()
    }
    trainee.load_state_dict(state)
    return trainee


def test_answers_are_predicted_as_one_by_one(small: Any) -> None:
    trainee = turned(small())
    data, adapter = trainee.data, trainee.adapter
    rows = [
        data.with_edit(data.rewrites[0], 0),
        data.rewrites[1],
        data.with_edit(data.rephrases[2][0], 2),
    ]
    routed = [True, False, True]
    with torch.no_grad():
        found = answer_logits(adapter, rows, routed).split([row.reads for row in rows])
        for row, on, logits in zip(rows, routed, found, strict=True):
            with adapter.on([on]):
                plain = adapter.model(input_ids=torch.tensor([row.tokens])).logits[0]
            expected = plain[row.start - 1 : len(row.tokens) - 1]
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
        with adapter.on():
            other = adapter.model(input_ids=torch.tensor([rows[1].tokens])).logits[0]
    assert (other[rows[1].start - 1] - found[1][0]).abs().max() > 1e-3  # the adapter does something


def test_the_base_models_answers_are_kept(small: Any) -> None:
    trainee = turned(small())
    model = trainee.adapter.model
    rows = [*trainee.data.rewrites, Answered([5, 6, 7], 3)]
    base = BaseAnswers(model, rows)
    places = [6, 0, 6, 2]
    reads = sum(rows[place].reads for place in places)
    with torch.no_grad():
        logits = answer_logits(trainee.adapter, rows[:1], [True], base.at(places))
        for _ in range(2):
            found = logits[-reads:].split([rows[place].reads for place in places])
            for place, own in zip(places, found, strict=True):
                row = rows[place]
                plain = model(input_ids=torch.tensor([row.tokens])).logits[0]
                last = max(row.start, len(row.tokens) - 1)
                torch.testing.assert_close(own, plain[row.start - 1 : last], rtol=1e-4, atol=1e-5)


def test_a_context_goes_after_the_token_that_begins_every_text() -> None:
    row = Answered([1, 8, 9], 2)
    assert row.after([4, 5], 1) == Answered([1, 4, 5, 8, 9], 4)
    assert row.after([4, 5], None) == Answered([4, 5, 1, 8, 9], 4)
    assert Answered([1], 1).reads == 1


@pytest.mark.usefixtures("no_questions")
def test_the_scopes_loss_is_that_of_its_answers(small: Any) -> None:
    trainee = turned(small(parts="scope", hard_negatives=0, subject_negatives=0))
    scope, records = trainee.scope, requests()
    places = [3, 0, 5, 1]
    loss, values = trainee.step(trainee.prepare(0, places))
    prompts = [records[place].prompt for place in places]
    embeddings = scope.embed(prompts)
    losses = []
    for at, place in enumerate(places):
        pairs = [
            (records[place].rephrase_prompt[0], at),
            (trainee.data.locality_prompts[place][0], 4),
        ]
        for query, wanted in pairs:
            with torch.no_grad():
                scores = scope.scores(scope.embed([query]), embeddings)
            unfair = unfair_pairs([query], [records[p] for p in places])
            unfair[0, at] &= wanted == 4
            scores[:, :4][unfair] = -math.inf
            losses.append(functional.cross_entropy(scores, torch.tensor([wanted])))
    torch.testing.assert_close(loss, torch.stack(losses).mean(), rtol=1e-4, atol=1e-5)
    assert values["loss/scope_train"] == loss


@pytest.mark.usefixtures("no_questions")
def test_only_none_is_wrong_without_all_negatives(small: Any) -> None:
    trainee = turned(
        small(parts="scope", use_all_negatives=False, hard_negatives=0, subject_negatives=0)
    )
    loss = trainee.step(trainee.prepare(0, [0, 1, 2, 3]))[0]
    both = turned(small(parts="scope", hard_negatives=0, subject_negatives=0)).step(
        trainee.prepare(0, [0, 1, 2, 3])
    )[0]
    assert loss < both


@pytest.mark.usefixtures("no_questions")
def test_the_adapters_losses(small: Any) -> None:
    trainee = turned(small(parts="counterfactual", cedit=0.5, cloc=2.0, cntr_batch_size=3))
    places = [3, 0, 5, 1]
    total, values = trainee.step(trainee.prepare(1, places))  # an odd one asks rephrase prompts
    data, adapter = trainee.data, trainee.adapter
    edits, localities, after = [], [], []
    with torch.no_grad():
        for place in places[:3]:
            row = data.with_edit(data.ended(place, data.rephrases[place][0]), place)
            logits = answer_logits(adapter, [row], [True])
            edits.append(functional.cross_entropy(logits, torch.tensor(row.answer)))
            probe = data.probes[data.localities[place][0]]
            q = answer_logits(adapter, [data.with_edit(probe, place)], [True]).log_softmax(-1)
            p = answer_logits(adapter, [probe], [False]).log_softmax(-1)
            localities.append((p.exp() * (p - q)).sum(-1).mean())
            if place != places[0]:  # one of three
                continue
            [(_, row, _)] = data.continued([place], 12)
            q = answer_logits(adapter, [data.with_edit(row, place)], [True]).log_softmax(-1)
            p = answer_logits(adapter, [row], [False]).log_softmax(-1)
            after.append((p.exp() * (p - q)).sum(-1).mean())
    edit, locality, kept = (torch.stack(own).mean() for own in (edits, localities, after))
    torch.testing.assert_close(values["loss/edit_train"], edit, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(values["loss/loc_train"], locality, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(values["loss/after_train"], kept, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(total, 0.5 * edit + 2.0 * (locality + kept), rtol=1e-4, atol=1e-5)
    assert min(locality, kept) > 1e-4


def test_other_forms_are_learned(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("easyedit_fast.serac.drawing._FORMS", 1.0)
    trainee = turned(small(parts="counterfactual", cntr_continuation=0))
    data, adapter, places = trainee.data, trainee.adapter, [3, 0, 5, 1]
    asked = trainee.prepare(1, places)[1].targets
    forms = [[data.with_edit(form, place) for form in data.other_forms(place)] for place in places]
    assert any(form.place is not None for place in places for form in data.other_forms(place))
    plain = [data.with_edit(data.rephrases[place][0], place) for place in places]
    assert all(
        row in own or (row == other and not own)
        for row, own, other in zip(asked, forms, plain, strict=True)
    )
    assert asked != plain
    values = trainee.step(trainee.prepare(1, places))[1]
    with torch.no_grad():
        losses = [
            functional.cross_entropy(
                answer_logits(adapter, [row], [True]), torch.tensor(row.answer)
            )
            for row in asked
        ]
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(values["loss/edit_train"], expected, rtol=1e-4, atol=1e-5)


def test_a_run_knows_the_template_of_its_chats(small: Any) -> None:
    digest = small().description()["chat_template"]
    assert digest == small().description()["chat_template"]
    assert digest != small(tokenizer=own_tokenizer(chats=False)).description()["chat_template"]


def test_what_follows_the_targets_is_learned_where_it_is_asked_for(small: Any) -> None:
    trainee = turned(small(parts="counterfactual", cntr_continuation=0))
    values = trainee.step(trainee.prepare(0, [0, 1, 2, 3]))[1]
    assert "loss/after_train" not in values
    expected = values["loss/edit_train"] + values["loss/loc_train"]
    torch.testing.assert_close(values["loss/total_train"], expected)


def test_targets_are_continued_by_the_unedited_model(small: Any) -> None:
    trainee = turned(small(parts="counterfactual"))
    data, model = trainee.data, trainee.adapter.model
    found = data.continued([4, 1, 4], 6)
    assert found[0] == found[2] == data.continued([4], 6)[0]
    for place, (owner, row, at) in zip([4, 1], found, strict=False):
        assert owner == place
        asked = data.rewrites[place].tokens
        with torch.no_grad():
            first = model(torch.tensor([asked])).logits[0, -1]
        first[: len(going_on(own_tokenizer()))][
            going_on(own_tokenizer())
        ] = -math.inf  # a word ends there
        begun = torch.tensor([[*asked, int(first.argmax())]])
        plain = model.generate(begun, max_new_tokens=6, do_sample=False)[0]
        assert [*row.tokens] == plain.tolist()
        assert row.start == len(asked) + 1
        rephrased = data.rephrases[place][0]
        ended = data.ended(place, rephrased)
        assert [*ended.tokens] == [*rephrased.tokens, int(first.argmax())]
        assert ended.start == rephrased.start
        logits = data.base.logits([at])
        assert logits.argmax(-1).tolist() == [*row.answer]


def test_what_a_tokenizer_puts_after_every_text_is_no_part_of_an_answer(small: Any) -> None:
    tokenizer = own_tokenizer(chats=False)
    plain = small(tokenizer=tokenizer).data
    tokenizer = own_tokenizer(chats=False)
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A {eos}",
        special_tokens=[(bos, tokenizer.bos_token_id), (eos, tokenizer.eos_token_id)],
    )
    assert tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id
    found = small(tokenizer=tokenizer).data
    assert found.rewrites == plain.rewrites
    assert found.rephrases == plain.rephrases
    assert found.probes == plain.probes
    for place, row in enumerate(found.rewrites):
        assert found.other_forms(place) == plain.other_forms(place)
        assert found.ended(place, row) == plain.ended(place, row)


def test_a_continuation_does_not_depend_on_what_is_drawn_with_it(small: Any) -> None:
    makes = [small(tiny_model("llama", max_position_embeddings=256).bfloat16()) for _ in range(2)]
    together, alone = (make.data for make in makes)
    places = list(range(len(together)))
    for place, row, _ in together.continued(places, 60):
        assert alone.continued([place], 60)[0][1] == row


def test_tokens_that_go_on_with_a_word(demo_model: Any) -> None:
    tokenizer = demo_model[1]
    found = going_on(tokenizer)
    assert len(found) == len(tokenizer)
    for text, expected in (("ism", True), (" is", False), (".", False), ("\n", False), ("s", True)):
        (token,) = tokenizer(text)["input_ids"]
        assert bool(found[token]) == expected, text
    assert not found[tokenizer.eos_token_id]


@pytest.mark.parametrize("room", [3, 1, 0, -1])
def test_a_continuation_ends_where_the_model_reads_no_more(small: Any, room: int) -> None:
    data = small(parts="counterfactual").data
    whole = {place: len(data.with_edit(data.rewrites[place], place).tokens) for place in range(4)}
    longest = max(whole, key=whole.__getitem__)
    model = tiny_model("gpt2", n_positions=whole[longest] + room)
    trainee = small(model, parts="counterfactual", cntr_modules=["c_attn"])
    found = {place: row for place, row, _ in trainee.data.continued([*whole], 12)}
    if room > 0:
        assert len(found[longest].answer) == room
    else:
        assert longest not in found
    assert trainee.step(trainee.prepare(0, [*whole]))[0].isfinite()


def test_a_continuation_fits_a_small_model_too(small: Any, tmp_path: Path) -> None:
    data = small(parts="counterfactual").data
    whole = [len(data.with_edit(data.rewrites[place], place).tokens) for place in range(4)]
    own_tokenizer().save_pretrained(tmp_path)
    tiny_model("gpt2", n_positions=max(whole) + 3).save_pretrained(tmp_path)
    trainee = small(parts="counterfactual", small_name=str(tmp_path), cntr_modules=["c_attn"])
    found = trainee.data.continued([0, 1, 2, 3], 12)
    fed = [len(trainee.data.with_edit(row, place).tokens) for place, row, _ in found]
    assert max(fed) - 1 == max(whole) + 3, "the last token is not read"
    assert trainee.step(trainee.prepare(0, [0, 1, 2, 3]))[0].isfinite()


def test_a_scope_that_learns_alone_asks_for_no_answers(small: Any) -> None:
    assert small(parts="scope").prepare(0, [0, 1])[1] is None


@both_kinds
def test_gradients_reach_both_parts_and_no_weight(small: Any) -> None:
    trainee = turned(small())
    trainee.step(trainee.prepare(0, [0, 1, 2, 3]))[0].backward()
    for group in trainee.parameter_groups():
        for parameter in group["params"]:
            assert parameter.grad is not None
            assert parameter.grad.abs().max() > 0
    own = {id(parameter) for parameter in trainee.adapter.parameters()}
    assert own
    for parameter in trainee.adapter.model.parameters():
        assert parameter.requires_grad
        assert id(parameter) in own or parameter.grad is None


@pytest.mark.parametrize("part", ["scope", "counterfactual"])
def test_one_part_can_be_trained_alone(small: Any, part: str, tmp_path: Path) -> None:
    trainee = small(parts=part)
    before = copy.deepcopy(trainee.state_dict())
    train(trainee, trainee.hparams, tmp_path, about={})
    changed = {
        name.partition(".")[0]
        for name, tensor in trainee.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    assert changed == {part}


@both_kinds
def test_a_run_that_goes_on_ends_with_the_same_editor(small: Any, tmp_path: Path) -> None:
    whole = small()
    weights = {name: one.clone() for name, one in whole.adapter.model.state_dict().items()}
    train(whole, whole.hparams, tmp_path / "whole", about={})
    first = small(max_iters=2)
    train(first, first.hparams, tmp_path / "parts", about={})
    second = small()
    result = train(second, second.hparams, tmp_path / "parts", about={})
    assert result.resumed == 2
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    for name, one in whole.adapter.model.state_dict().items():
        assert torch.equal(one, weights[name]) or "lora" in name


@both_kinds
def test_training_learns(small: Any, tmp_path: Path) -> None:
    trainee = small(max_iters=60, val_interval=20, model_save_pt=20, lr=2e-2, cls_lr=5e-3)
    before = trainee.validate()
    result = train(trainee, trainee.hparams, tmp_path, about={})
    assert set(result.values) == set(VALUES)
    assert result.values["loss/scope_val"] < before["loss/scope_val"]
    assert result.values["edit/log_prob_val"] > before["edit/log_prob_val"]
    assert (
        before["n_tokens/pre_val"]
        == before["n_tokens/post_val"]
        == 3 * len(trainee.data.probes[0].answer)
    )


@both_kinds
def test_a_validation_without_edits_in_scope_changes_nothing(small: Any) -> None:
    trainee = turned(small())
    cross = trainee.hparams.cross_attend
    with torch.no_grad():
        (trainee.scope.head.bias if cross else trainee.scope.threshold).fill_(-100.0)
    values = trainee.validate()
    assert values["locality/acc_val"] == values["scope/locality_val"] == 1.0
    assert values["loss/loc_val"] == pytest.approx(0.0, abs=1e-6)
    assert values["nll/pre_val"] == pytest.approx(values["nll/post_val"], rel=1e-5)
    assert values["scope/rewrite_val"] == values["scope/rephrase_val"] == 0.0


@both_kinds
def test_a_file_holds_both_parts(small: Any, tmp_path: Path) -> None:
    trainee = turned(small())
    path = tmp_path / "editor.safetensors"
    trainee.write_editor(path, {"model": "tiny"})
    found = read_editor(path)
    assert found.card["model"] == "tiny"
    assert "archive" not in found.hparams
    other = small()
    load_parts(found.tensors, other.scope, other.adapter)
    for name, tensor in trainee.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor, rtol=1e-3, atol=1e-5)
    wrong = {f"mend.{name}": tensor for name, tensor in found.tensors.items()}
    write_editor(path, EditorFile(wrong, found.hparams, found.card))
    with pytest.raises(DataFileError, match="no part of SERAC"):
        load_parts(read_editor(path).tensors, other.scope, other.adapter)


@both_kinds
def test_an_archive_is_begun_with(small: Any, tmp_path: Path) -> None:
    trainee = turned(small())
    path = tmp_path / "editor.safetensors"
    trainee.write_editor(path, {})
    other = small(archive=str(path))
    pair = ["one"], ["Ada speaks one"]
    expected = trainee.scope.pair_similarities(*pair)
    assert other.scope.pair_similarities(*pair) == pytest.approx(expected, rel=1e-2, abs=1e-2)
    assert other.description()["archive_sha256"] != trainee.description()["archive_sha256"]


def test_a_run_goes_on_where_its_encoder_was_moved(small: Any, tmp_path: Path) -> None:
    for name in ("encoder", "moved"):
        write_encoder(tmp_path / name)
    first = small(cls_name=str(tmp_path / "encoder"), max_iters=2)
    train(first, first.hparams, tmp_path / "run", about={})
    keys = {"cls_name": str(tmp_path / "moved"), "max_iters": 2}
    second = small(**keys)
    assert train(second, second.hparams, tmp_path / "run", about={}).resumed == 2
    (tmp_path / "moved" / "1_Pooling").mkdir()
    told = tmp_path / "moved" / "1_Pooling" / "config.json"
    told.write_text('{"pooling_mode_mean_tokens": true}')
    third = small(**keys)
    with pytest.raises(DataFileError, match="pooling was 'cls' and is 'mean'"):
        train(third, third.hparams, tmp_path / "run", about={})


@pytest.mark.parametrize("other", [{"seed": 1}, {"other_vocabulary": True}])
def test_another_encoder_in_the_same_folder_goes_on_with_nothing(
    small: Any, tmp_path: Path, other: dict[str, Any]
) -> None:
    folder = tmp_path / "encoder"
    write_encoder(folder)
    keys = {"cls_name": str(folder), "max_iters": 2}
    first = small(**keys)
    editor = train(first, first.hparams, tmp_path / "run", about={}).editor
    again = small(**keys)
    assert train(again, again.hparams, tmp_path / "run", about={}).resumed == 2
    assert again.description()["tokenizer"] == tokenizer_fingerprint(own_tokenizer())
    write_encoder(folder, **other)
    second = small(**keys)
    with pytest.raises(DataFileError, match="sentence encoder is another"):
        train(second, second.hparams, tmp_path / "run", about={})
    with pytest.raises(ModelError, match=r"another sentence encoder .* name that one as cls_name"):
        small(**keys, archive=str(editor))
    model = tiny_model("llama", max_position_embeddings=256)
    with pytest.raises(ModelError, match="another sentence encoder"):
        Serac(model, own_tokenizer(), hparams={"archive": str(editor)})
    assert not [name for name, _ in model.named_modules() if "lora" in name]
    write_encoder(folder)
    Serac(model, own_tokenizer(), hparams={"archive": str(editor)}).close()


@pytest.mark.parametrize("where", ["target", "outside"])
def test_nan_names_the_record(small: Any, where: str) -> None:
    trainee = turned(small(parts="counterfactual"))
    place = 2
    batch = trainee.prepare(0, [0, 1, place, 3])
    rows = [*zip(batch[1].places, batch[1].targets, strict=True)]
    rows += zip(batch[1].owners, batch[1].outside, strict=True)
    mine = {"target": batch[1].targets[place], "outside": batch[1].outside[place]}[where]
    others = [
        row for owner, row in rows if owner != place or (where == "outside" and row is not mine)
    ]
    own = next(token for token in mine.tokens if not any(token in row.tokens for row in others))
    with torch.no_grad():
        trainee.adapter.model.get_input_embeddings().weight[own] = math.nan
    with pytest.raises(NonFiniteError) as caught:
        trainee.step(batch)
    assert caught.value.record == place


def test_what_cannot_be_trained_on_is_refused(
    small: Any, sentence_encoder: Path, tmp_path: Path
) -> None:
    bare = EditRequest(prompt="Ada speaks", subject="Ada", target_new="French")
    keys = {"cls_name": str(sentence_encoder), "batch_size": 2}
    model, tokenizer = tiny_model("llama", max_position_embeddings=256), own_tokenizer()
    with pytest.raises(RequestError, match="no locality prompt"):
        serac_trainee(model, tokenizer, [*requests(), bare], requests(), hparams=keys)
    with pytest.raises(HparamsError, match="none of the layers"):
        small(cntr_modules=["no_such_layer"])
    turned(small()).write_editor(path := tmp_path / "editor.safetensors", {})
    with pytest.raises(DataFileError, match="cross_attend: true"):
        small(cross_attend=True, archive=str(path))
    with pytest.raises(HparamsError, match="give SERACTrainingHparams"):
        serac_trainee(model, tokenizer, requests(), requests(), hparams=SERACHparams())


def test_an_adapter_is_put_into_a_model_once(small: Any) -> None:
    trainee = small()
    with pytest.raises(ModelError, match="holds an adapter already"):
        CounterfactualAdapter(
            trainee.adapter.model, own_tokenizer(), rank=2, alpha=2.0, modules=["q_proj"]
        )


def test_the_adapter_leaves_no_trace(small: Any) -> None:
    trainee = turned(small())
    model = trainee.adapter.model
    trainee.close()
    plain = tiny_model("llama", max_position_embeddings=256)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert [name for name, _ in model.named_modules()] == [
        name for name, _ in plain.named_modules()
    ]
    ids = torch.arange(3, 20)[None]
    assert torch.equal(model(ids).logits, plain(ids).logits)
    assert all(parameter.requires_grad for parameter in model.parameters())


@both_kinds
def test_the_shares_of_processes_add_up(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def of_subject(_: Negatives, place: int, count: int, draw: Any) -> list[str]:
        return [f"prompt {number} of {place}" for number in range(place % 3)]  # not as many of each

    monkeypatch.setattr(Negatives, "of_subject", of_subject)

    def gradients(ranks: int) -> tuple[float, list[torch.Tensor]]:
        trainee = turned(small(cntr_batch_size=3))
        total = 0.0
        for rank in range(ranks):
            told = functools.partial(lambda *own: own, rank, ranks)
            monkeypatch.setattr("easyedit_fast.serac.drawing.rank_and_ranks", told)
            loss = trainee.step(trainee.prepare(0, [3, 0, 5, 1]))[0]
            loss.backward()
            total += loss.item()
        groups = trainee.parameter_groups()
        return total, [p.grad for group in groups for p in group["params"]]

    (one, alone), (other, shared) = gradients(1), gradients(2)
    assert other == pytest.approx(one, rel=1e-5)
    for own, theirs in zip(alone, shared, strict=True):
        torch.testing.assert_close(theirs, own, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        ("The mother tongue of Ada is", "What is the mother tongue of Ada?"),
        ("Ada is a citizen of", "What is Ada a citizen of?"),
        ("The Eiffel Tower is located in", "Where is the Eiffel Tower located?"),
        ("The telephone was invented by", "Who invented the telephone?"),
        ("Ada was born in", "Where was Ada born?"),
        ("Ada plays the", None),
        ("Where is Ada?", None),
    ],
)
def test_a_prompt_as_a_question(prompt: str, question: str | None) -> None:
    assert as_questions(prompt) == ([] if question is None else [question])


@pytest.mark.parametrize(
    ("prompt", "question"),
    [
        ("Ada, a native", "Which language does Ada speak?"),
        ("In Ada, an official language is", "What is the official language of Ada?"),
        ("Ada's life ended in", "Where did Ada die?"),
        ("Ada is affiliated with the religion", "What is the religion of Ada?"),
        ("Ada is affiliated with", "Which organization does Ada belong to?"),
        ("Ada is a part of the continent of", "On which continent is Ada?"),
        ("Ada, who plays the position", "What position does Ada play?"),
        ("Ada plays the instrument", "Which instrument does Ada play?"),
        ("Ada, produced by", "Who makes Ada?"),
        ("The capital city of Ada is", "What is the capital of Ada?"),
    ],
)
def test_a_prompt_about_a_subject_as_questions(prompt: str, question: str) -> None:
    assert question in as_questions(prompt, "Ada")


def test_a_prompt_of_unknown_form_is_no_question() -> None:
    assert as_questions("Ada, the", "Ada") == []


def test_negatives_ask_other_facts_of_the_subject(small: Any) -> None:
    trainee = small(hard_negatives=2, subject_negatives=3)
    share = trainee.prepare(4, [0, 1, 2, 3])[0]
    assert share.places[:4] == [0, 1, 2, 3]
    for place, others in zip([0, 1, 2, 3], share.others, strict=True):
        request = requests()[place]
        assert len(others) <= 3
        for text in others:
            assert request.subject.removeprefix("the ") in text
            assert text != request.prompt
    scores = trainee.step((share, trainee.prepare(4, [0, 1, 2, 3])[1]))[1]
    assert 0.0 <= scores["scope/acc_train"] <= 1.0
