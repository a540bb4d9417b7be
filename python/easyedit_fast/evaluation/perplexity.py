"""Perplexity of a model on texts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from easyedit_fast.data import Corpus, RequestTokenizer
from easyedit_fast.errors import DataFileError, HparamsError, NonFiniteError
from easyedit_fast.evaluation.isolation import RowUpdates, Updates
from easyedit_fast.metrics import student_interval
from easyedit_fast.models.limits import context_length
from easyedit_fast.models.tracing import frozen

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BLOCK_LENGTH = 512


@dataclasses.dataclass(frozen=True, slots=True)
class Perplexity:
    """How well a model predicts texts.

    Attributes:
        perplexity: ``exp(nll)``.
        tokens: Number of predicted tokens.
        nll: Mean negative log-likelihood of a token, in nats.
        low: Lower end of the perplexity's 95 % interval; None where there is one block alone, or
            where the upper end is beyond a float.
        high: Its upper end, or None.
    """

    perplexity: float
    tokens: int
    nll: float
    low: float | None = None
    high: float | None = None


def perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
    *,
    updates: Updates | None = None,
    block_length: int | None = None,
    max_tokens: int | None = None,
) -> Perplexity:
    """Measures the perplexity of a model on a corpus.

    The texts are packed into blocks, and a token is predicted from those before it in its block;
    the first of a block is not predicted. A block runs by itself, so that of logits no more than
    ``[block_length, vocabulary]`` exist; probabilities are taken in float32.

    The interval is Student's over the blocks, whose sums of nll are related to their numbers of
    tokens (the ratio estimator of Cochran, Sampling Techniques, 1977, equation 2.39). It tells how
    far the value would differ on other text of the kind.

    Args:
        model: The model.
        tokenizer: Its (fast) tokenizer.
        corpus: The texts, such as `TextFiles.of(path)`.
        updates: An edit that is added while the texts run; the weights stay as they are.
        block_length: Tokens in a block, at least 2; None: 512, or what the model reads at most.
        max_tokens: Predicted tokens at most; None for all.

    Raises:
        HparamsError: A block is longer than the model's context or too short to predict, or no
            token is asked for.
        DataFileError: The texts have fewer than two tokens.
        NonFiniteError: The model predicts NaN or infinity.
    """
    limit = context_length(model)
    length = min(_BLOCK_LENGTH, limit or _BLOCK_LENGTH) if block_length is None else block_length
    if length < 2 or length > (limit or length):
        raise HparamsError(f"block_length is {length}; give 2 to {limit or 'any number of'} tokens")
    if max_tokens is not None and max_tokens < 1:
        raise HparamsError(f"max_tokens is {max_tokens}; give 1 at least, or None for all")
    sums: list[float] = []
    counts: list[int] = []
    blocks = corpus.blocks(
        RequestTokenizer.from_transformers(tokenizer), block_length=length, rows=1
    )
    own = RowUpdates(model, None if updates is None else [updates])
    with torch.no_grad(), frozen(model), own.applied([0]):
        for block in blocks:
            losses = _losses(model, torch.from_numpy(block))
            if max_tokens is not None:
                losses = losses[: max_tokens - sum(counts)]
            sums.append(float(losses.sum(dtype=torch.float64)))
            counts.append(len(losses))
            if sum(counts) == max_tokens:
                break
    if not sum(counts):
        raise DataFileError(f"corpus {corpus.name!r} has fewer than two tokens; give a longer text")
    if not math.isfinite(sum(sums)):
        raise NonFiniteError("the model predicts NaN or infinity on this text")
    return _estimate(sums, counts)


def _estimate(sums: Sequence[float], counts: Sequence[int]) -> Perplexity:
    """From each block's sum of negative log-likelihoods and number of predicted tokens."""
    tokens, blocks = sum(counts), len(counts)
    nll = math.fsum(sums) / tokens
    if blocks == 1:
        return Perplexity(_exp(nll), tokens, nll)
    pairs = zip(sums, counts, strict=True)
    interval = student_interval([nll + (one - nll * n) * blocks / tokens for one, n in pairs])
    low, high = _exp(max(0.0, interval.low)), _exp(interval.high)
    if math.isinf(high):
        return Perplexity(_exp(nll), tokens, nll)
    return Perplexity(_exp(nll), tokens, nll, low, high)


def _losses(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Negative log-likelihoods ``[t - 1]`` of all tokens of a block ``[1, t]`` but the first."""
    logits = model(input_ids=ids.to(model.device), use_cache=False).logits[0, :-1]
    truth = ids[0, 1:, None].to(logits.device)
    losses: Tensor = -logits.float().log_softmax(dim=-1).gather(1, truth).squeeze(1)
    return losses.cpu()


def _exp(nll: float) -> float:
    """Infinity where the perplexity is beyond a float."""
    try:
        return math.exp(nll)
    except OverflowError:
        return math.inf
