"""Perplexity against a plain computation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats

from easyedit_fast.data import RequestTokenizer, TextFiles
from easyedit_fast.errors import DataFileError, HparamsError, NonFiniteError
from easyedit_fast.evaluation import perplexity
from easyedit_fast.updates import LowRankUpdate
from tests.unit.tiny_models import tiny_model, tiny_tokenizer

TEXT = "The old bridge at Rodmel crosses the Tamar, and Ada Lind sings in Norse. " * 3


@pytest.fixture
def corpus(tmp_path: Path) -> TextFiles:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return TextFiles.of(path)


def by_hand(model: Any, tokenizer: Any, corpus: TextFiles, length: int) -> list[float]:
    """The negative log-likelihood of every token but the first of a block, in float64."""
    losses = []
    own = RequestTokenizer.from_transformers(tokenizer)
    for block in corpus.blocks(own, block_length=length, rows=1):
        ids = torch.from_numpy(block)
        with torch.no_grad():
            logits = model(input_ids=ids).logits.double()
        for place in range(1, ids.shape[1]):
            shares = logits[0, place - 1].exp() / logits[0, place - 1].exp().sum()
            losses.append(-math.log(float(shares[ids[0, place]])))
    return losses


@pytest.mark.parametrize("length", [7, 32])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_perplexity_equals_a_plain_computation(family: str, length: int, corpus: TextFiles) -> None:
    model, tokenizer = tiny_model(family), tiny_tokenizer([TEXT])
    expected = by_hand(model, tokenizer, corpus, length)
    result = perplexity(model, tokenizer, corpus, block_length=length)
    assert result.tokens == len(expected) > 2 * length
    assert result.nll == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    assert result.perplexity == math.exp(result.nll)
    some = perplexity(model, tokenizer, corpus, block_length=length, max_tokens=length + 3)
    assert some.tokens == length + 3
    assert some.nll == pytest.approx(sum(expected[: length + 3]) / (length + 3), rel=1e-5)


def test_the_interval_is_students_over_the_blocks(corpus: TextFiles) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer([TEXT])
    result = perplexity(model, tokenizer, corpus, block_length=32)
    losses = by_hand(model, tokenizer, corpus, 32)
    blocks = [losses[start : start + 31] for start in range(0, len(losses), 31)]
    assert len(blocks[-1]) < 31
    # The ratio of two means, with the variance of its residuals.
    count, mean_size = len(blocks), len(losses) / len(blocks)
    residuals = [sum(block) - result.nll * len(block) for block in blocks]
    variance = sum(residual**2 for residual in residuals) / (count - 1)
    half = stats.t.ppf(0.975, count - 1) * math.sqrt(variance / count) / mean_size
    assert result.low == pytest.approx(math.exp(result.nll - half), rel=1e-5)
    assert result.high == pytest.approx(math.exp(result.nll + half), rel=1e-5)
    # Two blocks say next to nothing: no perplexity is below 1, and none is written as infinite.
    assert perplexity(model, tokenizer, corpus, block_length=8, max_tokens=8).low == 1.0
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(80.0)
    wild = perplexity(model, tokenizer, corpus, block_length=8, max_tokens=8)
    assert math.isfinite(wild.perplexity)
    assert (wild.low, wild.high) == (None, None)
    alone = perplexity(model, tokenizer, corpus, block_length=32, max_tokens=31)
    assert (alone.low, alone.high) == (None, None)


def test_an_edit_is_added_for_the_time_of_the_measurement(corpus: TextFiles) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer([TEXT])
    generator = torch.Generator().manual_seed(0)
    name = "model.layers.1.mlp.down_proj.weight"
    update = LowRankUpdate(
        torch.randn(32, 2, generator=generator), torch.randn(2, 48, generator=generator)
    )
    before = perplexity(model, tokenizer, corpus)
    isolated = perplexity(model, tokenizer, corpus, updates={name: update})
    assert perplexity(model, tokenizer, corpus) == before
    with torch.no_grad():
        model.get_parameter(name).add_(update.dense())
    edited = perplexity(model, tokenizer, corpus)
    assert isolated.nll == pytest.approx(edited.nll, rel=1e-5)
    assert abs(isolated.nll - before.nll) > 0.01


def test_what_cannot_be_measured_is_refused_by_name(corpus: TextFiles, tmp_path: Path) -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer([TEXT])
    for length in (1, 65):
        with pytest.raises(HparamsError, match=f"block_length is {length}; give 2 to 64"):
            perplexity(model, tokenizer, corpus, block_length=length)
    with pytest.raises(HparamsError, match="max_tokens is 0"):
        perplexity(model, tokenizer, corpus, max_tokens=0)
    empty = tmp_path / "nothing.txt"
    empty.write_text("")
    with pytest.raises(DataFileError, match="'nothing' has fewer than two tokens"):
        perplexity(model, tokenizer, TextFiles.of(empty))
    with torch.no_grad():
        model.transformer.h[0].mlp.c_proj.weight.fill_(math.nan)
    with pytest.raises(NonFiniteError, match="predicts NaN or infinity"):
        perplexity(model, tokenizer, corpus)


def test_the_demo_model_knows_english(demo_model: Any, tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("Paris is the capital of France. Berlin is the capital of Germany. " * 2)
    result = perplexity(*demo_model, TextFiles.of(path))
    [losses] = [by_hand(*demo_model, TextFiles.of(path), 512)]
    assert result.nll == pytest.approx(sum(losses) / len(losses), rel=1e-4)
    assert result.perplexity < 20.0
