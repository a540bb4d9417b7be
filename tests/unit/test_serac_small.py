"""SERAC with another model as the counterfactual one: of the same vocabulary, and of another."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import StoppingCriteriaList

from easyedit_fast.errors import ModelError
from easyedit_fast.models.architectures import architecture_of
from easyedit_fast.models.loading import load_model
from easyedit_fast.serac.counterfactual import CounterfactualAdapter
from easyedit_fast.serac.model import SeracModel
from easyedit_fast.serac.small import counterfactual_of
from easyedit_fast.serac.switched import SwitchedModel, fitted
from easyedit_fast.serac.whole_answers import WholeAnswersModel
from tests.unit.test_serac_model import (
    CLOSE,
    EDITS,
    GREEDY,
    IN,
    LAYERS,
    LONG,
    OUT,
    WHOLE,
    Parts,
    TextRouter,
)
from tests.unit.tiny_models import VOCABULARY, WORDS, ending, tiny_model, tiny_tokenizer

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False"),  # PEFT, of GPT-2
]
TEXTS = [" ".join(WORDS), IN, OUT, LONG]


@dataclasses.dataclass
class Two(Parts):
    """As `Parts`, with a small model beside the base model."""

    @property
    def small(self) -> Any:
        return self.adapter.model

    @property
    def answering(self) -> Any:
        return self.small

    def expected(self, tokens: list[int], text: str) -> Tensor:
        logits = super().expected(tokens, text)
        width = self.base.config.vocab_size
        logits = logits[:, :width]
        gap = logits.new_full((len(logits), width - logits.shape[1]), -torch.inf)
        return torch.cat([logits, gap], dim=1)


def two(kind: type[SeracModel], base: Any, small: Any, tokenizer: Any, own: Any) -> Two:
    base.generation_config.eos_token_id = None  # nothing ends early
    adapter = CounterfactualAdapter(
        small, own, rank=2, alpha=4.0, modules=LAYERS.get(small.config.model_type, ["q_proj"])
    )
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    router = TextRouter(dict(EDITS))
    return Two(kind(base, tokenizer, router, adapter), base, tokenizer, router, adapter)


@pytest.fixture(
    scope="module",
    params=[
        ("llama", VOCABULARY, "llama", {"num_hidden_layers": 2}),
        ("llama", VOCABULARY, "gpt2", {"vocab_size": VOCABULARY + 24}),
        ("qwen2", VOCABULARY + 8, "llama", {"hidden_size": 16}),
    ],
    ids=["llama-llama", "llama-wider gpt2", "qwen2-narrower llama"],
)
def switched(request: pytest.FixtureRequest) -> Two:
    """Base and small models of families, depths and widths of logits of their own."""
    family, width, other, changes = request.param
    tokenizer = tiny_tokenizer(TEXTS)
    base, small = tiny_model(family, vocab_size=width), tiny_model(other, seed=3, **changes)
    return two(SwitchedModel, base, small, tokenizer, tokenizer)


def test_it_is_the_base_model_to_transformers(switched: Two) -> None:
    model, base = switched.model, switched.base
    assert type(model).__name__ == type(base).__name__
    assert (model.device, model.config) == (base.device, base.config)
    assert model.get_input_embeddings() is base.get_input_embeddings()
    assert {*map(id, switched.small.parameters())} < {*map(id, model.parameters())}


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_have_the_logits_of_their_model(switched: Two, side: str) -> None:
    texts = [OUT, IN, LONG, "speak north"]
    ids, mask = switched.batch(texts, side)
    with torch.no_grad():
        logits = switched.model(ids, attention_mask=mask).logits
        base = switched.base(ids, attention_mask=mask).logits
        kept = switched.model(ids, attention_mask=mask, logits_to_keep=2).logits
    assert logits.shape == base.shape
    assert torch.equal(logits[[0, 2]], base[[0, 2]])
    for row in (1, 3):
        expected = switched.expected(switched.tokens(texts[row]), texts[row])
        torch.testing.assert_close(logits[row][mask[row] == 1], expected, **CLOSE)
    torch.testing.assert_close(kept, logits[:, -2:], **CLOSE)


def test_the_base_model_rests_where_all_rows_are_routed(switched: Two) -> None:
    passes: list[int] = []
    handle = switched.base.register_forward_pre_hook(lambda *_: passes.append(1))
    ids, mask = switched.batch([IN, "speak north"])
    with torch.no_grad():
        switched.model(ids, attention_mask=mask)
    handle.remove()
    assert passes == []


def test_labels_give_the_loss_of_both_models(switched: Two) -> None:
    answer = switched.tokens(" Lima city")[1:]
    ids, mask = switched.batch([IN + " Lima city", OUT + " Lima city"])
    labels = torch.full_like(ids, -100)
    labels[:, -len(answer) :] = ids[:, -len(answer) :]
    output = switched.model(ids, attention_mask=mask, labels=labels)
    rows = [row[own == 1].tolist() for row, own in zip(ids, mask, strict=True)]
    logits = [switched.expected(*pair) for pair in zip(rows, [IN, OUT], strict=True)]
    logits = torch.cat([one[-len(answer) - 1 : -1] for one in logits])
    expected = torch.nn.functional.cross_entropy(logits, labels[labels != -100])
    torch.testing.assert_close(output.loss, expected, **CLOSE)
    by_length = switched.model(
        ids, attention_mask=mask, prompt_length=(labels == -100).mul(mask).sum(1)
    )
    torch.testing.assert_close(by_length.logits, output.logits)


def test_soft_answers_are_mixtures_of_the_two(switched: Two) -> None:
    ids, mask = switched.batch([OUT, IN])
    with torch.no_grad():
        base = switched.base(ids, attention_mask=mask).logits
        hard = switched.model(ids, attention_mask=mask, soft=False).logits
        soft = switched.model(ids, attention_mask=mask, soft=True).logits
    assert torch.equal(soft[0], base[0])
    real, weight = mask[1] == 1, switched.router.similarity
    sides = base[1][real].double().softmax(-1), hard[1][real].double().softmax(-1)
    expected = (1 - weight) * sides[0] + weight * sides[1]
    torch.testing.assert_close(soft[1][real].double().softmax(-1), expected, **CLOSE)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_rows_go_on_in_their_model(switched: Two, side: str, use_cache: bool) -> None:
    for texts in ([OUT, IN, LONG, "speak north"], [OUT, LONG], [IN, "speak north"]):
        ids, mask = switched.batch(texts, side)
        switched.router.asked.clear()
        found = switched.model.generate(ids, attention_mask=mask, use_cache=use_cache, **GREEDY)
        assert switched.router.asked == texts  # once
        assert torch.equal(found[:, : ids.shape[1]], ids)
        assert found[:, ids.shape[1] :].tolist() == [switched.greedy(text, 4) for text in texts]


def test_rows_out_of_scope_are_those_of_the_base_model_alone(switched: Two) -> None:
    ids, mask = switched.batch([OUT, IN, LONG])
    found = switched.model.generate(ids, attention_mask=mask, **GREEDY, **WHOLE)
    base = switched.base.generate(ids[[0, 2]], attention_mask=mask[[0, 2]], **GREEDY, **WHOLE)
    assert torch.equal(found.sequences[[0, 2]], base.sequences)
    for ours, theirs in zip(found.logits, base.logits, strict=True):
        assert torch.equal(ours[[0, 2]], theirs)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}])
def test_beams_are_those_of_the_row_alone(switched: Two, options: dict[str, Any]) -> None:
    ids, mask = switched.batch([OUT, IN, LONG])
    options = {**options, **GREEDY}
    found = switched.model.generate(ids, attention_mask=mask, **options)[:, ids.shape[1] :]
    times = options.get("num_return_sequences", 1)
    width = switched.base.config.vocab_size

    def cut(_: Any, __: Any, output: Any) -> None:
        output.logits = fitted(output.logits, width)

    for row, text in enumerate([OUT, IN, LONG]):
        if text != IN:
            ids = torch.tensor([switched.tokens(text)])
            alone = switched.base.generate(ids, **options)
        else:
            ids = torch.tensor([switched.widened(switched.tokens(IN), IN)])
            switched.small.generation_config = switched.base.generation_config
            handle = switched.small.register_forward_hook(cut)
            with switched.adapter.on():
                alone = switched.small.generate(ids, **options)
            handle.remove()
        assert torch.equal(found[row * times : (row + 1) * times], alone[:, -4:])


def test_sampled_rows_follow_their_own_logits(switched: Two) -> None:
    ids, mask = switched.batch([IN, OUT])
    torch.manual_seed(0)
    options = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 3, **WHOLE}
    found = switched.model.generate(ids, attention_mask=mask, **options)
    assert found.sequences.shape == (6, ids.shape[1] + 3)
    for row, sequence in enumerate(found.sequences.tolist()):
        text = [IN, OUT][row // 3]
        expected = switched.expected([*switched.tokens(text), *sequence[-3:]], text)[-4:-1]
        logits = torch.stack([step[row] for step in found.logits])
        torch.testing.assert_close(logits, expected, **CLOSE)
    assert len({tuple(row) for row in found.sequences[:, -3:].tolist()}) > 2


def test_only_the_users_tokens_count(switched: Two) -> None:
    ids, mask = switched.batch([IN, OUT])
    seen: list[int] = []

    def stop(so_far: Tensor, *_: Any, **__: Any) -> Tensor:
        seen.append(so_far.shape[1])
        return torch.tensor([False, False])

    length = ids.shape[1] + 3
    stops = StoppingCriteriaList([stop])
    given = {"attention_mask": mask, "max_length": length, "stopping_criteria": stops}
    assert switched.model.generate(ids, **given).shape[1] == length
    assert seen == [ids.shape[1] + n for n in (1, 2, 3)]


def test_nothing_is_left_behind(switched: Two) -> None:
    """The base model is no other for a generation, even one that fails."""
    ids, mask = switched.batch([IN, OUT])
    before = set(vars(switched.base))

    def fail(*_: Any, **__: Any) -> Tensor:
        assert "forward" not in vars(switched.base)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        stops = StoppingCriteriaList([fail])
        switched.model.generate(ids, attention_mask=mask, max_new_tokens=2, stopping_criteria=stops)
    assert set(vars(switched.base)) == before
    with torch.no_grad():
        assert torch.equal(
            switched.base(ids, attention_mask=mask).logits[1],
            switched.model(ids, attention_mask=mask).logits[1],
        )


def test_caches_of_two_models_are_refused(switched: Two) -> None:
    ids, mask = switched.batch([IN, OUT])
    with pytest.raises(ModelError, match="use_cache=False, or call generate"):
        switched.model(ids, attention_mask=mask, use_cache=True)
    given: dict[str, Any] = {"return_dict_in_generate": True, "max_new_tokens": 2}
    made = switched.model.generate(ids, attention_mask=mask, **given)
    name = "cache" if hasattr(made, "cache") else "past_key_values"
    with pytest.raises(ModelError, match="no cache holds both"):
        switched.model(ids[:, -1:], **{name: getattr(made, name)})
    with pytest.raises(ModelError, match="leave output_hidden_states out"):
        switched.model.generate(ids, output_hidden_states=True, **given)
    out, _ = switched.batch([OUT])
    first = switched.model(out, use_cache=True)  # the base model's own
    assert switched.model(out[:, -1:], **{name: getattr(first, name)}).logits.shape[1] == 1


@pytest.fixture(scope="module")
def whole() -> Two:
    """A small model whose tokens are others: it learned them from other texts, and has less."""
    own = tiny_tokenizer(["Tall grass grows by the slow river.", OUT], across_words=True)
    small = tiny_model("gpt2", seed=3, n_positions=128)
    small.generation_config.eos_token_id = None
    tokenizer = tiny_tokenizer(TEXTS)
    assert own.get_vocab() != tokenizer.get_vocab()
    return two(WholeAnswersModel, tiny_model("llama"), small, tokenizer, own)


def written(whole: Two, text: str, new: int, **options: Any) -> str:
    """What the small model writes to a query after its edit."""
    own = whole.adapter.tokenizer
    start, *query = own(text)["input_ids"]  # its BOS, and the rest
    ids = [start, *whole.adapter.context(whole.router.edits[text]), *query]
    options = {"do_sample": False, "max_new_tokens": new, "pad_token_id": 0, **options}
    with whole.adapter.on():
        found = whole.small.generate(torch.tensor([ids]), **options)
    return str(own.decode(found[0, len(ids) :], skip_special_tokens=True)).rstrip("\ufffd")


def test_forward_says_why_there_are_no_logits(whole: Two) -> None:
    ids, mask = whole.batch([OUT, IN])
    with pytest.raises(ModelError, match=r"row 1 .* another vocabulary.* call generate"):
        whole.model(ids, attention_mask=mask)
    ids, mask = whole.batch([OUT, LONG])
    with torch.no_grad():
        assert torch.equal(
            whole.model(ids, attention_mask=mask).logits,
            whole.base(ids, attention_mask=mask).logits,
        )


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"use_cache": False}])
def test_whole_answers_are_switched(whole: Two, side: str, options: dict[str, Any]) -> None:
    given = {"max_new_tokens": 12, "do_sample": False, **options}
    for texts in ([OUT, IN, LONG, "speak north"], ["speak north", IN]):
        ids, mask = whole.batch(texts, side)
        found = whole.model.generate(ids, attention_mask=mask, **given)
        assert torch.equal(found[:, : ids.shape[1]], ids)
        for row, text in enumerate(texts):
            new = found[row, ids.shape[1] :].tolist()
            if text in whole.router.edits:
                answer = whole.tokenizer.decode(new, skip_special_tokens=True)
                beams = {name: options[name] for name in ("num_beams",) if name in options}
                wanted = written(whole, text, 12, **beams)
                assert answer
                assert wanted.startswith(answer)  # as much of it as there is room for
                assert answer == wanted or len(new) == 12
            else:
                alone = torch.tensor([whole.tokens(text)])
                expected = whole.base.generate(alone, **given)[0, alone.shape[1] :]
                assert new == expected.tolist()


def test_a_query_goes_on_where_a_tokenizer_ends_every_text(
    whole: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = whole.adapter.context(EDITS[IN])
    plain = whole.model.asked(whole.tokens(IN), context)
    own = whole.adapter.tokenizer
    assert plain[-1] != own.eos_token_id
    monkeypatch.setattr(whole.adapter, "tokenizer", ending(own))
    assert whole.model.asked(whole.tokens(IN), context) == plain


def test_an_answer_ends_with_the_base_models_end(whole: Two) -> None:
    ids, mask = whole.batch([IN, OUT])
    own = whole.adapter.tokenizer
    text = written(whole, IN, 3)
    end = int(own(text)["input_ids"][-1])  # of the small model: what its third token is
    whole.small.generation_config.eos_token_id = end
    try:
        found = whole.model.generate(ids, attention_mask=mask, max_new_tokens=20, do_sample=False)
    finally:
        whole.small.generation_config.eos_token_id = None
    new = found[0, ids.shape[1] :].tolist()
    assert whole.tokenizer.eos_token_id in new
    assert new[-1] == whole.tokenizer.eos_token_id  # though others go on


def test_each_of_several_answers_is_told(whole: Two) -> None:
    ids, mask = whole.batch([IN, OUT])
    torch.manual_seed(0)
    options = {"do_sample": True, "num_return_sequences": 4, "max_new_tokens": 6}
    found = whole.model.generate(ids, attention_mask=mask, **options)[:, ids.shape[1] :]
    assert len({tuple(row) for row in found[:4].tolist()}) > 2
    with pytest.raises(ModelError, match="best beam alone"):
        whole.model.generate(
            ids, attention_mask=mask, num_beams=3, num_return_sequences=2, max_new_tokens=2
        )


def test_what_the_loop_is_told_sees_the_base_models_tokens(whole: Two) -> None:
    ids, mask = whole.batch([IN, OUT])
    seen: list[list[int]] = []

    def stop(so_far: Tensor, *_: Any, **__: Any) -> Tensor:
        seen.append(so_far[0].tolist())
        return torch.tensor([False, False])

    given = {"attention_mask": mask, "do_sample": False, "max_length": ids.shape[1] + 5}
    found = whole.model.generate(ids, stopping_criteria=StoppingCriteriaList([stop]), **given)
    assert [row[-1] for row in seen] == found[0, -5:].tolist()
    streamer = transformers.TextIteratorStreamer(whole.tokenizer, skip_prompt=True)
    one = {"inputs": ids[:1], "attention_mask": mask[:1], "streamer": streamer, **GREEDY}
    thread = threading.Thread(target=whole.model.generate, kwargs=one)
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert written(whole, IN, 4).startswith(text.removesuffix(whole.tokenizer.eos_token))


def test_too_long_for_the_small_model(whole: Two) -> None:
    ids, mask = whole.batch([IN])
    needed = len(whole.adapter.tokenizer(IN)["input_ids"])
    needed += len(whole.adapter.context(EDITS[IN]))
    limit = whole.small.config.n_positions
    try:
        whole.small.config.n_positions = needed + 2  # room for two tokens
        found = whole.model.generate(ids, attention_mask=mask, max_new_tokens=9, do_sample=False)
        answer = whole.tokenizer.decode(found[0, ids.shape[1] :], skip_special_tokens=True)
        assert answer == written(whole, IN, 2)
        whole.small.config.n_positions = needed
        with pytest.raises(ModelError, match=f"takes {needed} tokens, .* reads {needed} at most"):
            whole.model.generate(ids, attention_mask=mask, max_new_tokens=1)
    finally:
        whole.small.config.n_positions = limit


def save(folder: Path, model: Any, tokenizer: Any) -> str:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_the_vocabularies_are_compared_at_load(tmp_path: Path) -> None:
    base, tokenizer = tiny_model("llama"), tiny_tokenizer(TEXTS)
    known = architecture_of(base)
    itself = counterfactual_of(None, base, tokenizer, known)
    assert itself.model is base
    assert itself.told == "an adapter on the base model"
    wider = save(tmp_path / "wider", tiny_model("gpt2", vocab_size=VOCABULARY + 8), tokenizer)
    found = counterfactual_of(wider, base, tokenizer, known)
    assert found.same_vocabulary
    assert found.tokenizer is tokenizer
    ids = torch.arange(9)[None]
    with torch.no_grad():  # what is wider is cut off, and the rest is as saved
        own = load_model(wider, device="cpu")[0](ids).logits
        torch.testing.assert_close(found.model(ids).logits, own[..., :VOCABULARY])
    assert found.told == "same vocabulary: logits are switched or mixed"
    assert found.model.dtype == base.dtype
    assert not found.model.training
    more = tiny_tokenizer(TEXTS)
    more.add_tokens(["<more>"])
    folder = save(tmp_path / "more", tiny_model("gpt2", vocab_size=VOCABULARY + 8), more)
    other = counterfactual_of(folder, base, tokenizer, known)
    assert not other.same_vocabulary
    assert other.told == "another vocabulary: whole answers are switched"
    assert other.fingerprint == found.fingerprint  # the same weights


@pytest.mark.parametrize("fault", ["nowhere", "no weights", "pickle", "too few", "no family"])
def test_what_cannot_answer_is_refused(tmp_path: Path, fault: str) -> None:
    base, tokenizer = tiny_model("llama", vocab_size=VOCABULARY + 8), tiny_tokenizer(TEXTS)
    folder = tmp_path / "small"
    if fault != "nowhere":
        save(folder, tiny_model("gpt2"), tokenizer)
    weights = folder / "model.safetensors"
    if fault == "no weights":
        weights.unlink()
    elif fault == "pickle":
        torch.save(tiny_model("gpt2").state_dict(), folder / "pytorch_model.bin")
        weights.unlink()
    elif fault == "too few":
        tokenizer.add_tokens(["<more>"])
        tokenizer.save_pretrained(folder)
    elif fault == "no family":
        config = transformers.MambaConfig(
            hidden_size=16, num_hidden_layers=1, vocab_size=VOCABULARY
        )
        save(folder, transformers.MambaForCausalLM(config), tokenizer)
    named = {"too few": "embeddings", "pickle": "safetensors"}.get(fault, "small_name")
    with pytest.raises(ModelError, match=named) as caught:
        counterfactual_of(str(folder), base, tokenizer, architecture_of(base))
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith("small_name: null for the adapter on the base model")
