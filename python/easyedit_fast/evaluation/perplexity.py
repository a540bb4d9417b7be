"""Perplexity of a model on texts."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from easyedit_fast.data import Corpus, RequestTokenizer
from easyedit_fast.errors import DataFileError, HparamsError, NonFiniteError
from easyedit_fast.evaluation.isolation import RowUpdates, Updates
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
    """

    perplexity: float
    tokens: int
    nll: float


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
    total, counted = 0.0, 0
    blocks = corpus.blocks(
        RequestTokenizer.from_transformers(tokenizer), block_length=length, rows=1
    )
    own = RowUpdates(model, None if updates is None else [updates])
    with torch.no_grad(), frozen(model), own.applied([0]):
        for block in blocks:
            losses = _losses(model, torch.from_numpy(block))
            if max_tokens is not None:
                losses = losses[: max_tokens - counted]
            total += float(losses.sum(dtype=torch.float64))
            counted += len(losses)
            if counted == max_tokens:
                break
    if not counted:
        raise DataFileError(f"corpus {corpus.name!r} has fewer than two tokens; give a longer text")
    if not math.isfinite(total):
        raise NonFiniteError("the model predicts NaN or infinity on this text")
    return Perplexity(_exp(total / counted), counted, total / counted)


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
