"""SERAC's model: what each row of a batch is answered from, by the forward and by ``generate``."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel, StoppingCriteriaList

from easyedit_fast import EditRequest
from easyedit_fast.errors import EditStateError, ModelError
from easyedit_fast.models.loading import load_model
from easyedit_fast.serac.chat import ChatFormat, Query, QueryReader
from easyedit_fast.serac.counterfactual import CounterfactualAdapter
from easyedit_fast.serac.model import SeracModel
from easyedit_fast.serac.routing import Route
from easyedit_fast.serac.store import StoredEdit
from tests.unit.tiny_models import WORDS, tiny_model, tiny_tokenizer

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False"),  # PEFT, of GPT-2
]
IN, OUT = "the capital of Peru is", "people in Oslo speak"
LONG = "I think the north of the country is"
EDITS = {
    IN: EditRequest("capital of Peru is", "Peru", "Bergen"),
    "speak north": EditRequest("people speak in the", "people", "Oslo city north"),
}
LAYERS = {"gpt2": ["c_attn"]}
CHANGES = {"gemma2": {"final_logit_softcapping": 30.0}}  # less would make near ties of all logits
GREEDY: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
WHOLE: dict[str, Any] = {"return_dict_in_generate": True, "output_logits": True}
CLOSE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}


class TextRouter:
    """Routes by the whole text, and notes what it was asked."""

    def __init__(self, edits: dict[str, EditRequest], similarity: float = 0.9) -> None:
        self.edits = edits
        self.similarity = similarity
        self.asked: list[str] = []

    def routes(self, prompts: Sequence[str]) -> list[Route]:
        self.asked += prompts
        found = [self.edits.get(prompt) for prompt in prompts]
        edits = [one and StoredEdit(1, one, torch.empty(0), "words", "") for one in found]
        return [Route(edit, self.similarity if edit else 0.2) for edit in edits]


@dataclasses.dataclass
class Parts:
    """A model under test, and a second way to its answers."""

    model: SeracModel
    base: PreTrainedModel
    tokenizer: Any
    router: TextRouter
    adapter: CounterfactualAdapter

    def tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])

    def batch(self, texts: Sequence[Any], side: str = "left") -> tuple[Tensor, Tensor]:
        """Ids and mask of texts, or of rows of tokens."""
        rows = [self.tokens(text) if isinstance(text, str) else text for text in texts]
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(rows):
            gap = width - len(tokens) if side == "left" else 0
            ids[row, gap : gap + len(tokens)] = torch.tensor(tokens)
            mask[row, gap : gap + len(tokens)] = 1
        return ids, mask

    def widened(self, tokens: list[int], text: str) -> list[int]:
        """The tokens with the context of a prompt's edit: after a BOS, or first."""
        context = self.adapter.context(self.router.edits[text])
        start = int(tokens[0] == self.tokenizer.bos_token_id)
        return [*tokens[:start], *context, *tokens[start:]]

    @property
    def answering(self) -> Any:
        """The model that answers from edits."""
        return self.base

    @torch.no_grad()
    def expected(self, tokens: list[int], text: str) -> Tensor:
        """The logits at a row's own tokens, by a pass of that row alone."""
        if text not in self.router.edits:
            return self.base(torch.tensor([tokens]), use_cache=False).logits[0]
        wide = self.widened(tokens, text)
        with self.adapter.on():
            logits = self.answering(torch.tensor([wide]), use_cache=False).logits[0]
        start = int(tokens[0] == self.tokenizer.bos_token_id)
        return torch.cat([logits[:start], logits[start - len(tokens) :]])

    def greedy(self, text: str, count: int) -> list[int]:
        """New tokens without any cache."""
        tokens = self.tokens(text)
        for _ in range(count):
            tokens.append(int(self.expected(tokens, text)[-1].argmax()))
        return tokens[-count:]


def wrapped(base: PreTrainedModel, tokenizer: Any, layers: Sequence[str]) -> Parts:
    adapter = CounterfactualAdapter(base, tokenizer, rank=2, alpha=4.0, modules=layers)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    router = TextRouter(dict(EDITS))
    model = SeracModel(base, tokenizer, router, adapter)
    return Parts(model, base, tokenizer, router, adapter)


def tiny(family: str = "llama", **changes: Any) -> Parts:
    base = tiny_model(family, **CHANGES.get(family, {}), **changes)
    base.generation_config.eos_token_id = None  # nothing ends early
    return wrapped(
        base,
        tiny_tokenizer([" ".join(WORDS), IN, OUT, LONG]),
        LAYERS.get(family, ["q_proj", "v_proj"]),
    )


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2", "qwen2"])
def parts(request: pytest.FixtureRequest) -> Parts:
    return tiny(request.param)


@pytest.fixture(scope="module")
def llama() -> Parts:
    return tiny()


@pytest.fixture(scope="module")
def demo(demo_model: Any) -> Parts:
    """Another copy of the demo model: the adapter stays in it."""
    return wrapped(*load_model("demo", device="cpu"), ["q_proj", "v_proj"])


def test_it_is_a_model_of_transformers(llama: Parts) -> None:
    model, base = llama.model, llama.base
    assert isinstance(model, PreTrainedModel)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.config is base.config
    assert (model.device, model.dtype) == (base.device, base.dtype)
    assert model.get_input_embeddings() is base.get_input_embeddings()
    assert {id(one) for one in model.parameters()} == {id(one) for one in base.parameters()}
    own = base.generation_config
    model.generation_config = other = transformers.GenerationConfig(max_new_tokens=3)
    assert base.generation_config is other
    model.generation_config = own
    assert model.train() is model
    assert base.training
    assert not model.eval().base.training


@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_have_their_own_logits(parts: Parts, side: str) -> None:
    texts = [OUT, IN, LONG, "speak north"]
    ids, mask = parts.batch(texts, side)
    with torch.no_grad():
        logits = parts.model(ids, attention_mask=mask).logits
        base = parts.base(ids, attention_mask=mask).logits
    assert logits.shape == base.shape
    assert torch.equal(logits[[0, 2]], base[[0, 2]])
    for row in (1, 3):
        expected = parts.expected(parts.tokens(texts[row]), texts[row])
        torch.testing.assert_close(logits[row][mask[row] == 1], expected, **CLOSE)
        assert not torch.allclose(base[row][mask[row] == 1], expected, atol=0.05)


def test_the_base_model_runs_where_it_is_needed(llama: Parts) -> None:
    passes: list[int] = []
    handle = llama.base.register_forward_pre_hook(
        lambda _, args, kwargs: passes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    with torch.no_grad():
        for texts in ([IN, IN], [OUT, OUT], [IN, OUT, OUT]):
            ids, mask = llama.batch(texts)
            output = llama.model(ids, attention_mask=mask)
            assert (output.past_key_values is None) == (IN in texts)
    handle.remove()
    assert passes == [2, 2, 1, 3]


@pytest.mark.parametrize("keep", [1, 3, torch.tensor([2, 0, 4])])
def test_some_columns_can_be_left_out(llama: Parts, keep: int | Tensor) -> None:
    ids, mask = llama.batch([IN, OUT])
    columns = slice(-keep, None) if isinstance(keep, int) else keep
    with torch.no_grad():
        whole = llama.model(ids, attention_mask=mask).logits[:, columns]
        kept = llama.model(ids, attention_mask=mask, logits_to_keep=keep).logits
        cached = llama.model(ids, attention_mask=mask, logits_to_keep=keep, use_cache=True).logits
    torch.testing.assert_close(kept, whole, **CLOSE)
    torch.testing.assert_close(cached, whole, **CLOSE)


def test_labels_tell_the_prompt_and_give_the_loss(llama: Parts) -> None:
    answer = llama.tokens(" Lima city")[1:]
    ids, mask = llama.batch([IN + " Lima city", OUT + " Lima city"])
    labels = torch.full_like(ids, -100)
    labels[:, -len(answer) :] = ids[:, -len(answer) :]
    llama.router.asked.clear()
    output = llama.model(ids, attention_mask=mask, labels=labels)
    assert llama.router.asked == [IN, OUT]
    rows = [row[own == 1].tolist() for row, own in zip(ids, mask, strict=True)]
    logits = [llama.expected(*pair) for pair in zip(rows, [IN, OUT], strict=True)]
    logits = torch.cat([one[-len(answer) - 1 : -1] for one in logits])
    expected = torch.nn.functional.cross_entropy(logits, labels[labels != -100])
    torch.testing.assert_close(output.loss, expected, **CLOSE)
    output.loss.backward()
    assert llama.base.get_input_embeddings().weight.grad.any()
    llama.model.zero_grad()


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_length_tells_the_prompt(llama: Parts, side: str) -> None:
    ids, mask = llama.batch([IN + " Lima", OUT + " Lima city"], side)
    lengths = [len(llama.tokens(IN)), len(llama.tokens(OUT))]
    llama.router.asked.clear()
    llama.model(ids, attention_mask=mask, prompt_length=torch.tensor(lengths))
    llama.model(ids[:1], attention_mask=mask[:1], prompt_length=lengths[0])
    llama.model(ids, attention_mask=mask)
    assert llama.router.asked == [IN, OUT, IN, IN + " Lima", OUT + " Lima city"]
    with pytest.warns(UserWarning, match="no prompt to route and the base model answers"):
        llama.model(ids, attention_mask=mask, labels=ids)
    llama.model(ids, attention_mask=mask, labels=ids, prompt_length=0)  # as it is meant
    assert len(llama.router.asked) == 5


def test_a_context_goes_after_a_bos(llama: Parts, demo: Parts) -> None:
    tokens = llama.tokens(IN)
    assert tokens[0] == llama.tokenizer.bos_token_id
    assert QueryReader(llama.tokenizer).read(tokens) == Query(IN, 1)
    assert QueryReader(llama.tokenizer).read(tokens[1:]) == Query(IN, 0)
    # SmolLM2's BOS opens turns of chats, and its tokenizer adds none.
    assert demo.tokens(IN)[0] != demo.tokenizer.bos_token_id
    assert QueryReader(demo.tokenizer).read(demo.tokens(IN)) == Query(IN, 0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_cache_knows_its_routes(parts: Parts, side: str) -> None:
    texts = [OUT, IN, LONG]
    ids, mask = parts.batch(texts, side)
    more = torch.tensor([parts.tokens("Oslo is in")[1:4]] * 3)
    parts.router.asked.clear()
    with torch.no_grad():
        output = parts.model(ids, attention_mask=mask, use_cache=True)
        found = output.logits
        for new in (more[:, :2], more[:, 2:]):
            mask = torch.cat([mask, torch.ones_like(new)], dim=1)
            cache = output.past_key_values
            output = parts.model(new, attention_mask=mask, past_key_values=cache)
            found = torch.cat([found, output.logits], dim=1)
    assert parts.router.asked == texts
    ids = torch.cat([ids, more], dim=1)
    for row, text in enumerate(texts):
        expected = parts.expected(ids[row][mask[row] == 1].tolist(), text)
        torch.testing.assert_close(found[row][mask[row] == 1], expected, **CLOSE)


def test_a_cache_without_an_edit_stays_the_base_models(
    llama: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, _ = llama.batch([OUT])
    more = torch.tensor([llama.tokens("speak")[1:]])
    monkeypatch.setitem(llama.router.edits, "speak", EDITS[IN])
    with torch.no_grad():
        first = llama.model(ids, use_cache=True)
        second = llama.model(more, past_key_values=first.past_key_values)
    expected = llama.expected([*ids[0].tolist(), *more[0].tolist()], OUT)
    torch.testing.assert_close(second.logits[0], expected[-more.shape[1] :], **CLOSE)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_rows_are_continued_each_in_its_way(parts: Parts, side: str, use_cache: bool) -> None:
    for texts in ([OUT, IN, LONG, "speak north"], [OUT, LONG]):
        ids, mask = parts.batch(texts, side)
        found = parts.model.generate(ids, attention_mask=mask, use_cache=use_cache, **GREEDY)
        assert torch.equal(found[:, : ids.shape[1]], ids)
        assert found[:, ids.shape[1] :].tolist() == [parts.greedy(text, 4) for text in texts]


def test_rows_out_of_scope_are_the_base_models_in_a_mixed_batch(parts: Parts) -> None:
    ids, mask = parts.batch([OUT, IN, LONG])
    found = parts.model.generate(ids, attention_mask=mask, **GREEDY, **WHOLE)
    wide, wide_mask = parts.batch([OUT, parts.widened(parts.tokens(IN), IN), LONG])
    base = parts.base.generate(wide, attention_mask=wide_mask, **GREEDY, **WHOLE)
    assert len(found.logits) == 4
    for ours, theirs in zip(found.logits, base.logits, strict=True):
        assert torch.equal(ours[[0, 2]], theirs[[0, 2]])
        assert not torch.allclose(ours[1], theirs[1], atol=0.05)
    assert torch.equal(found.sequences[:, : ids.shape[1]], ids)


def test_without_an_edit_the_base_model_generates(llama: Parts) -> None:
    ids, mask = llama.batch([OUT, LONG])
    options: dict[str, Any] = {"max_new_tokens": 5, "do_sample": True, "temperature": 2.0}
    found = []
    for model in (llama.base, llama.model):
        torch.manual_seed(3)
        found += [model.generate(input_ids=ids, attention_mask=mask, **options), torch.rand(1)]
    assert all(map(torch.equal, found[:2], found[2:]))


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}])
def test_beams_are_those_of_the_row_alone(parts: Parts, options: dict[str, Any]) -> None:
    ids, mask = parts.batch([OUT, IN], "right")
    options = {**options, **GREEDY}
    found = parts.model.generate(ids, attention_mask=mask, **options)[:, ids.shape[1] :]
    alone = parts.base.generate(torch.tensor([parts.tokens(OUT)]), **options)
    with parts.adapter.on():
        edited = parts.base.generate(torch.tensor([parts.widened(parts.tokens(IN), IN)]), **options)
    expected = torch.cat([alone[:, -4:], edited[:, -4:]])
    assert torch.equal(found, expected)


def test_sampled_rows_follow_their_own_logits(llama: Parts) -> None:
    ids, mask = llama.batch([IN, OUT])
    torch.manual_seed(0)
    options = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 3, **WHOLE}
    found = llama.model.generate(ids, attention_mask=mask, **options)
    assert found.sequences.shape == (6, ids.shape[1] + 3)
    for row, sequence in enumerate(found.sequences.tolist()):
        tokens = [token for token in sequence if token != llama.tokenizer.pad_token_id]
        expected = llama.expected(tokens, [IN, OUT][row // 3])[-4:-1]
        logits = torch.stack([step[row] for step in found.logits])
        torch.testing.assert_close(logits, expected, **CLOSE)
    assert len({tuple(row) for row in found.sequences[:, -3:].tolist()}) > 2


def test_only_the_users_tokens_count(llama: Parts) -> None:
    ids, _ = llama.batch([IN])
    seen: list[list[int]] = []

    def stop(so_far: Tensor, *_: Any, **__: Any) -> Tensor:
        seen.append(so_far[0].tolist())
        return torch.tensor([False])

    length = ids.shape[1] + 3
    stops = StoppingCriteriaList([stop])
    found = llama.model.generate(ids, max_length=length, stopping_criteria=stops)
    assert found.shape[1] == length
    assert seen == [found[0, : ids.shape[1] + n].tolist() for n in (1, 2, 3)]
    assert found[0, ids.shape[1] :].tolist() == llama.greedy(IN, 3)


def test_neither_a_mask_nor_a_pad_token_is_needed(llama: Parts) -> None:
    ids, mask = llama.batch([IN, LONG])
    expected = llama.model.generate(ids, attention_mask=mask, **GREEDY)
    assert torch.equal(llama.model.generate(ids, **GREEDY), expected)
    parts = tiny(pad_token_id=None)
    parts.base.generation_config.eos_token_id = 2
    found = parts.model.generate(ids, attention_mask=mask, min_new_tokens=4, **GREEDY)
    assert torch.equal(found[:, -4:], expected[:, -4:])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"prompt_lookup_num_tokens": 2}, "prompt_lookup"),
        ({"assistant_model": tiny_model()}, "drafts"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "contrastive search"),
        ({"guidance_scale": 1.5}, "guidance"),
        ({"cache_implementation": "static"}, "fixed size"),
        ({"past_key_values": transformers.DynamicCache()}, "earlier tokens"),
        ({"inputs_embeds": torch.zeros(1, 2, 32)}, "input_ids"),
        ({"generation_config": transformers.GenerationConfig(dola_layers="low")}, "DoLa"),
    ],
)
def test_what_cannot_work_is_refused(llama: Parts, options: dict[str, Any], named: str) -> None:
    ids, _ = llama.batch([IN])
    with pytest.raises(ModelError, match=named) as caught:
        llama.model.generate(ids, max_new_tokens=2, **options)
    assert "\n" not in str(caught.value)


def test_more_is_refused_than_generating(llama: Parts, tmp_path: Any) -> None:
    ids, _ = llama.batch([IN])
    with pytest.raises(EditStateError, match="memory"):
        llama.model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    for named, options in (
        ("input_ids", {"inputs_embeds": torch.zeros(1, 2, 32)}),
        (r"model\.base", {"input_ids": ids, "output_hidden_states": True}),
        ("soft=False", {"input_ids": ids, "soft": True, "use_cache": True}),
    ):
        with pytest.raises(ModelError, match=named):
            llama.model(**options)


def test_too_long_a_prompt_is_refused() -> None:
    needed = len(tiny().widened(tiny().tokens(IN), IN))
    parts = tiny(max_position_embeddings=needed + 2)
    ids, _ = parts.batch([IN])
    assert parts.model.generate(ids, max_new_tokens=3).shape[1] == ids.shape[1] + 3
    with pytest.raises(ModelError, match=f"takes {needed + 3} tokens, .* {needed + 2} at most"):
        parts.model.generate(ids, max_new_tokens=4)
    parts = tiny(max_position_embeddings=needed - 1)
    for run in (parts.model, lambda ids: parts.model.generate(ids, max_new_tokens=1)):
        with pytest.raises(ModelError, match=f"takes {needed} tokens"):
            run(ids)


def test_soft_answers_are_mixtures(llama: Parts) -> None:
    ids, mask = llama.batch([OUT, IN])
    with torch.no_grad():
        base = llama.base(ids, attention_mask=mask).logits
        hard = llama.model(ids, attention_mask=mask, soft=False).logits
        soft = llama.model(ids, attention_mask=mask, soft=True).logits
        for llama.model.soft, own in ((True, soft), (False, hard)):
            assert torch.equal(llama.model(ids, attention_mask=mask).logits, own)
    assert torch.equal(soft[0], base[0])
    real, weight = mask[1] == 1, llama.router.similarity
    sides = base[1][real].double().softmax(-1), hard[1][real].double().softmax(-1)
    expected = ((1 - weight) * sides[0] + weight * sides[1]).log()
    torch.testing.assert_close(soft[1][real].double(), expected, **CLOSE)


def test_routes_can_be_seen(demo: Parts) -> None:
    ids, mask = demo.batch([OUT, IN], "right")
    for routes in (demo.model.routes([OUT, IN]), demo.model.routes(ids, mask)):
        assert [route.edit and route.edit.request for route in routes] == [None, EDITS[IN]]
        assert routes[0].similarity == 0.2


def test_a_chats_last_user_message_is_the_query(demo: Parts) -> None:
    chat = [{"role": "user", "content": OUT}, {"role": "assistant", "content": "Norwegian."}]
    options = {"add_generation_prompt": True, "return_dict": False}
    chats = [[*chat, {"role": "user", "content": text}] for text in (IN, OUT)]
    ids = [demo.tokenizer.apply_chat_template(chat, **options) for chat in chats]
    routes = [demo.model.routes(torch.tensor([one]))[0] for one in ids]
    routes += demo.model.routes([demo.tokenizer.decode(one) for one in ids])
    assert [route.edit is not None for route in routes] == [True, False] * 2
    chat[0]["content"] = IN
    ended = demo.tokenizer.apply_chat_template(chat, tokenize=False, **options)
    assert ChatFormat.of(demo.tokenizer).message(ended) is None  # the answer is there already
    place = QueryReader(demo.tokenizer).read(ids[0]).place
    assert demo.tokenizer.decode(ids[0][:place]).endswith("<|im_start|>user\n")
    assert demo.tokenizer.decode(ids[0][place:]).startswith(IN)
    wide = [*ids[0][:place], *demo.adapter.context(EDITS[IN]), *ids[0][place:]]
    with torch.no_grad():
        logits = demo.model(torch.tensor(ids[:1])).logits[0]
        with demo.adapter.on():
            expected = demo.base(torch.tensor([wide])).logits[0]
    own = torch.cat([expected[:place], expected[place - len(ids[0]) :]])
    torch.testing.assert_close(logits, own, rtol=1e-3, atol=1e-3)


def test_passes_of_two_threads_do_not_mix(llama: Parts) -> None:
    ids, _ = llama.batch([OUT])
    found: list[Tensor] = []
    other = threading.Thread(target=lambda: found.append(llama.model(ids).logits.detach()))

    def start(*_: Any, **__: Any) -> Tensor:
        if not other.ident:
            other.start()
            other.join(0.2)
            assert not found  # it waits: the adapter is on
        return torch.tensor([False])

    stops = StoppingCriteriaList([start])
    llama.model.generate(llama.batch([IN])[0], max_new_tokens=2, stopping_criteria=stops)
    other.join()
    assert torch.equal(found[0], llama.base(ids).logits)


def test_texts_are_streamed(demo: Parts, capfd: pytest.CaptureFixture[str]) -> None:
    ids, _ = demo.batch([IN])
    streamer = transformers.TextIteratorStreamer(demo.tokenizer, skip_prompt=True)
    given = {"inputs": ids, "streamer": streamer, **GREEDY}
    thread = threading.Thread(target=demo.model.generate, kwargs=given)
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text == demo.tokenizer.decode(demo.greedy(IN, 4))
    demo.model.generate(**{**given, "streamer": transformers.TextStreamer(demo.tokenizer)})
    assert capfd.readouterr().out == IN + text + "\n"


def test_a_pipeline_generates(demo: Parts, caplog: pytest.LogCaptureFixture) -> None:
    pipeline = transformers.pipeline("text-generation", model=demo.model, tokenizer=demo.tokenizer)
    for text in (IN, OUT):
        (found,) = pipeline(text, **GREEDY)
        assert found["generated_text"] == text + demo.tokenizer.decode(demo.greedy(text, 4))
    assert "not supported" not in caplog.text
