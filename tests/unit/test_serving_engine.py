"""The thread that runs the model: rows that go together, and one that fails among them."""

from __future__ import annotations

import contextlib
import copy
import queue
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from easyedit_fast import EditRequest
from easyedit_fast.errors import ModelError
from easyedit_fast.serac.model import SeracModel
from easyedit_fast.serac.whole_answers import WholeAnswersModel
from easyedit_fast.serving.engine import Engine
from easyedit_fast.serving.errors import ApiError
from easyedit_fast.serving.limits import Limits
from easyedit_fast.serving.rows import Row, Sampling, Told
from tests.unit.test_serac_model import EDITS, IN, OUT, TextRouter
from tests.unit.test_serac_small import TEXTS, Two, two
from tests.unit.tiny_models import tiny_model, tiny_tokenizer

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False"),  # PEFT, of GPT-2
]
FAR = "I think the north of the country is the capital of Peru"
NEW = 8


class Memory(TextRouter):
    """A router that decides nothing beforehand."""

    @contextlib.contextmanager
    def deciding(self) -> Iterator[None]:
        yield


@contextlib.contextmanager
def running(model: SeracModel, tokenizer: Any, edits: dict[str, EditRequest]) -> Iterator[Engine]:
    memory: Any = Memory(edits)
    engine = Engine(model, tokenizer, memory, Limits())
    try:
        yield engine
    finally:
        engine.close()


def answers(
    engine: Engine, tokenizer: Any, texts: Sequence[str], temperature: float = 0.0
) -> list[Any]:
    """What prompts that wait together are told: a text, or an error."""
    news: queue.Queue[Told] = queue.Queue()
    rows = [
        Row(tokenizer(text)["input_ids"], Sampling(NEW, temperature, seed=place), news.put, place)
        for place, text in enumerate(texts)
    ]
    engine.submit(rows)
    found: list[Any] = ["" for _ in rows]
    left = len(rows)
    while left:
        told = news.get(timeout=60)
        left -= told.reason is not None or told.error is not None
        found[told.row.index] = told.error or found[told.row.index] + told.text
    return found


def read_by(parts: Two, text: str) -> int:
    """Tokens that the small model reads of a prompt after its edit."""
    context = parts.adapter.context(parts.router.edits[text])
    return len(parts.adapter.tokenizer(text)["input_ids"]) + len(context)


@pytest.fixture(scope="module")
def whole() -> Two:
    """A small model of another vocabulary, whose tokens are shorter than the base model's."""
    own = tiny_tokenizer(["Tall grass grows by the slow river.", OUT], across_words=True)
    small = tiny_model("gpt2", seed=3, n_positions=256)
    small.generation_config.eos_token_id = None
    tokenizer = tiny_tokenizer([*TEXTS, FAR])
    base = tiny_model("llama", max_position_embeddings=256)
    parts = two(WholeAnswersModel, base, small, tokenizer, own)
    parts.router.edits[FAR] = EDITS[IN]
    assert read_by(parts, FAR) - read_by(parts, IN) > NEW
    assert len(tokenizer(FAR)["input_ids"]) < read_by(parts, IN)
    return parts


@pytest.fixture
def reads(whole: Two) -> Iterator[Any]:
    """Sets how many tokens the small model reads."""
    before = whole.small.config.n_positions

    def limit(tokens: int) -> None:
        whole.small.config.n_positions = tokens

    yield limit
    limit(before)


def test_lengths_are_those_of_the_small_models_tokens(whole: Two, reads: Any) -> None:
    """A row that is too long for it is told so; the others of its batch have their answers."""
    size = read_by(whole, FAR)
    reads(size)
    with running(whole.model, whole.tokenizer, whole.router.edits) as engine:
        inside, far, outside = answers(engine, whole.tokenizer, [IN, FAR, OUT])
        alone = [answers(engine, whole.tokenizer, [text])[0] for text in (IN, OUT)]
    assert isinstance(far, ApiError)
    assert (far.status, far.code) == (400, "context_length_exceeded")
    assert f"the prompt takes {size} tokens after edit 1" in far.message
    assert far.message.endswith("shorten it or the edit")
    assert [inside, outside] == alone
    assert inside
    assert outside


def test_a_long_row_takes_no_room_from_others(whole: Two, reads: Any) -> None:
    with running(whole.model, whole.tokenizer, whole.router.edits) as engine:
        (expected,) = answers(engine, whole.tokenizer, [IN])
        reads(read_by(whole, FAR) + 1)
    with running(whole.model, whole.tokenizer, whole.router.edits) as engine:
        inside, far = answers(engine, whole.tokenizer, [IN, FAR])
    assert inside == expected
    assert isinstance(far, str)
    assert len(far) < len(expected)


def test_a_row_that_the_model_refuses_fails_alone(
    whole: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = whole.model._told

    def refuse(prompt: list[int], answer: str) -> list[int]:
        if prompt == whole.tokens(FAR):
            raise ModelError("no such row")
        return told(prompt, answer)

    monkeypatch.setattr(whole.model, "_told", refuse)
    with running(whole.model, whole.tokenizer, whole.router.edits) as engine:
        inside, far, outside = answers(engine, whole.tokenizer, [IN, FAR, OUT])
        assert [inside, outside] == [
            answers(engine, whole.tokenizer, [text])[0] for text in (IN, OUT)
        ]
    assert isinstance(far, ModelError)


def test_draws_do_not_change_whole_answers(whole: Two) -> None:
    with running(whole.model, whole.tokenizer, whole.router.edits) as engine:
        plain = answers(engine, whole.tokenizer, [IN, IN, OUT, OUT])
        drawn = answers(engine, whole.tokenizer, [IN, IN, OUT, OUT], temperature=2.0)
    assert drawn[:2] == plain[:2]
    assert len({*drawn[2:], *plain[2:]}) == 3


@pytest.mark.parametrize("who", ["model", "tokenizer"])
def test_an_answer_ends_with_the_models_token_and_with_the_tokenizers(
    whole: Two, who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in training and evaluation: base checkpoints name another one than the chat template."""
    tokenizer = copy.deepcopy(whole.tokenizer)
    ids = tokenizer(OUT, return_tensors="pt")
    made = whole.base.generate(**ids, max_new_tokens=NEW, do_sample=False)[0].tolist()
    made = made[ids["input_ids"].shape[1] :]
    end = next(token for token in reversed(made) if token != made[0])
    other = next(token for token in range(3, len(tokenizer)) if token not in made)
    ends = {"model": other, "tokenizer": other, who: end}
    monkeypatch.setattr(whole.base.generation_config, "eos_token_id", ends["model"])
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ends["tokenizer"])
    with running(whole.model, tokenizer, whole.router.edits) as engine:
        assert answers(engine, tokenizer, [OUT]) == [tokenizer.decode(made[: made.index(end)])]
