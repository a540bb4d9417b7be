"""Own decoding, token for token against ``generate`` of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import PreTrainedModel

from easyedit_fast.data import RequestTokenizer, read_requests
from easyedit_fast.errors import ModelError
from easyedit_fast.evaluation import Evaluator
from easyedit_fast.evaluation.decoding import Decoder, Outcome, Passage
from easyedit_fast.evaluation.generation import TopFive
from easyedit_fast.evaluation.passages import tokens_of
from easyedit_fast.evaluation.rows import rows_of
from easyedit_fast.metrics import n_gram_entropy
from easyedit_fast.requests import EditRequest
from tests.unit.tiny_models import FAMILIES, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTHS = (3, 9, 4, 17, 5, 12)
NEW = (8, 3, 11, 5, 9, 1)


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 128, (length,), generator=generator).tolist() for length in LENGTHS]


def generated(
    model: PreTrainedModel, prompt: list[int], new: int, ends: frozenset[int] = frozenset()
) -> list[int]:
    """What transformers generates after one prompt alone."""
    settings = transformers.GenerationConfig(
        do_sample=False, max_new_tokens=new, eos_token_id=sorted(ends) or None, pad_token_id=0
    )
    ids = torch.tensor([prompt])
    tokens = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    return tokens[0, len(prompt) :].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("batch_size", [2, 64])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_continuations_are_those_of_generate(family: str, batch_size: int) -> None:
    model = tiny_model(family)
    model.generation_config.eos_token_id = None
    free = [generated(model, p, n) for p, n in zip(prompts(), NEW, strict=True)]
    ends = frozenset(tokens[len(tokens) // 2] for tokens in free[::2])
    expected = [generated(model, p, n, ends) for p, n in zip(prompts(), NEW, strict=True)]
    assert expected != free  # some rows end before the others and leave the batch
    passages = [Passage(p, len(p), n) for p, n in zip(prompts(), NEW, strict=True)]
    outcomes = Decoder(model, ends, batch_size).run(passages)
    assert [outcome.continuation for outcome in outcomes] == expected
    assert [outcome.predicted for outcome in outcomes] == [tokens[:1] for tokens in expected]


def steps(model: PreTrainedModel, passage: Passage) -> tuple[Outcome, int]:
    """The outcome of a passage, and how many forward passes it took."""
    calls: list[None] = []
    handle = model.register_forward_hook(lambda *_: calls.append(None))
    [outcome] = Decoder(model).run([passage])
    handle.remove()
    return outcome, len(calls)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "bloom"])
def test_an_answer_that_the_model_would_give_is_not_generated_again(family: str) -> None:
    model, prompt = tiny_model(family), prompts()[1]
    said = generated(model, prompt, 8)
    for right in range(6):
        answer = [*said[:right], (said[right] + 1) % 128]
        outcome, number = steps(model, Passage([*prompt, *answer], len(prompt), 8))
        assert outcome.continuation == said
        assert outcome.predicted == said[: right + 1]
        assert number == 8 - right
    whole, number = steps(model, Passage([*prompt, *said], len(prompt), 5))
    assert (whole.continuation, whole.predicted, number) == (said[:5], said, 1)
    scored, number = steps(model, Passage([*prompt, *said], len(prompt)))
    assert (scored, number) == (Outcome(said, []), 1)


def test_an_end_within_the_answer_ends_the_continuation() -> None:
    model, prompt = tiny_model(), prompts()[1]
    said = generated(model, prompt, 6)
    place = next(n for n in range(1, 6) if said[n] not in said[:n])
    [outcome] = Decoder(model, frozenset({said[place]})).run(
        [Passage([*prompt, *said], len(prompt), 6)]
    )
    assert outcome == Outcome(said, said[: place + 1])


def test_a_row_that_has_ended_does_not_leave_the_context() -> None:
    """GPT-2 has 64 positions; the long prompt fills them, and the short one goes on for longer."""
    model = tiny_model("gpt2")
    generator = torch.Generator().manual_seed(2)
    long = torch.randint(3, 128, (60,), generator=generator).tolist()
    passages = [Passage(long, 60, 4), *(Passage(p, len(p), 30) for p in prompts())]
    outcomes = Decoder(model).run(passages)
    expected = [generated(model, list(p.tokens), p.new_tokens) for p in passages]
    assert [outcome.continuation for outcome in outcomes] == expected


def test_a_prompt_that_its_answer_tokenises_otherwise_is_run_by_itself() -> None:
    texts = ["Per sings in Norse", "Per sings in Dutch"]
    tokenizer = tiny_tokenizer(texts * 20, across_words=True)
    model = tiny_model()
    request = EditRequest("{} sings in", "Per", "Norse")
    rows = rows_of([request])
    [tokens] = tokens_of(RequestTokenizer.from_transformers(tokenizer), rows, generate=True)
    prompt, whole = (tokenizer(text)["input_ids"] for text in (request.prompt, rows[0].text))
    assert whole[: len(prompt)] != prompt
    scored, continued = tokens.passages
    assert (continued.tokens, continued.new_tokens) == (prompt, 10)
    assert (scored.tokens, scored.new_tokens) == (whole, 0)
    [score] = Evaluator(model, tokenizer).score([request])
    ends = frozenset({tokenizer.eos_token_id})
    text = tokenizer.decode(generated(model, prompt, 10, ends), skip_special_tokens=True)
    assert score["generated"]["rewrite_text"] == [text]
    with torch.no_grad():
        said = model(input_ids=torch.tensor([whole])).logits[0].argmax(-1).tolist()
    pairs = list(zip(said[scored.start - 1 : -1], whole[scored.start :], strict=True))
    assert score["rewrite_acc"] == [sum(one == other for one, other in pairs) / len(pairs)]


def test_a_model_with_a_recurrent_state_is_refused() -> None:
    config = transformers.MambaConfig(vocab_size=128, hidden_size=16, num_hidden_layers=1)
    model = transformers.MambaForCausalLM(config).eval()
    with pytest.raises(ModelError, match="MambaForCausalLM keeps no cache of keys and values"):
        Decoder(model).run([Passage([3, 4], 2, 1)])


def test_five_tokens_are_drawn_by_their_probabilities() -> None:
    logits = torch.tensor([0.0, 3.0, 2.5, -9.0, 2.0, 1.0, 0.5]).expand(20_000, 7)
    drawn = TopFive(20_000)(logits, torch.arange(20_000))
    best = [1, 2, 4, 5, 6]
    expected = logits[0, best].softmax(0)
    shares = torch.tensor([(drawn == token).float().mean() for token in best])
    assert sorted(set(drawn.tolist())) == best
    # Three standard deviations of a share of 20,000 draws.
    assert torch.all((shares - expected).abs() < 3 * (expected * (1 - expected) / 20_000).sqrt())


def test_fluency_is_that_of_a_sampled_text_whatever_its_company() -> None:
    requests = [
        EditRequest("{} sings in", "Per", "Norse"),
        EditRequest("The bridge at {} crosses", "Rodmel", "the Tamar"),
    ]
    tokenizer = tiny_tokenizer([request.prompt for request in requests])
    model = tiny_model("gpt2")  # 64 positions bound the text
    scores = Evaluator(model, tokenizer).score(requests, generate=False, fluency=True)
    for request, score in zip(requests, scores, strict=True):
        assert (
            score == Evaluator(model, tokenizer).score([request], generate=False, fluency=True)[0]
        )
        ids = tokenizer(request.prompt)["input_ids"]
        choose, start = TopFive(64), len(ids)
        while len(ids) < 64:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids])).logits[:, -1]
            ids.append(int(choose(logits, torch.tensor([len(ids) - start]))))
        text = tokenizer.decode(ids, skip_special_tokens=True)
        assert score["fluency"] == {"ngram_entropy": n_gram_entropy(text)}
    assert scores[0]["fluency"]["ngram_entropy"] > 0.0


@pytest.mark.slow
def test_the_demo_model_says_what_generate_says(demo_model: Any, shared_data: Path) -> None:
    model, tokenizer = demo_model
    path = shared_data / "data" / "counterfact" / "counterfact-val.json"
    rows = rows_of(read_requests(path, limit=3))
    tokens = tokens_of(RequestTokenizer.from_transformers(tokenizer), rows, generate=True)
    passages = [passage for each in tokens for passage in each.passages]
    assert len(passages) == len(rows) == 9
    ends = frozenset({tokenizer.eos_token_id})
    for passage, outcome in zip(passages, Decoder(model, ends).run(passages), strict=True):
        prompt = list(passage.tokens[: passage.start])
        assert outcome.continuation == generated(model, prompt, passage.new_tokens, ends)
