"""Prompts with answers as tokens, and the logits that predict the answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from easyedit_fast.data import RequestTokenizer
from easyedit_fast.data.contexts import with_context
from easyedit_fast.data.tokenizer import IGNORED_LABEL
from easyedit_fast.errors import RequestError
from easyedit_fast.models.limits import (
    context_length,
    refuse_long_rows,
    refuse_unknown_tokens,
    tokens_without_embedding,
)
from easyedit_fast.models.passes import head_learning_at, head_only_at, padded_rows
from easyedit_fast.models.tracing import frozen
from easyedit_fast.serac.counterfactual import CounterfactualAdapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_KEPT = 100_000
"""States that are kept, and a call's more at most."""


@dataclasses.dataclass(frozen=True, slots=True)
class Answered:
    """A prompt and its answer.

    Attributes:
        tokens: Of the prompt, and of the answer after it.
        start: The answer's first token, 1 at least; their number where there is no answer.
        place: Tokens that go before an edit's, in a chat; None: a token that begins every text.
    """

    tokens: Sequence[int]
    start: int
    place: int | None = None

    @property
    def answer(self) -> Sequence[int]:
        """The answer's tokens."""
        return self.tokens[self.start :]

    @property
    def reads(self) -> int:
        """How many predictions are looked at: one for each of these, or the next token's."""
        return max(1, len(self.answer))

    def after(self, context: Sequence[int], bos: int | None) -> Answered:
        """The same with an edit's tokens at its place."""
        if self.place is None:
            tokens = with_context(self.tokens, context, bos)
        else:
            tokens = [*self.tokens[: self.place], *context, *self.tokens[self.place :]]
        return Answered(tokens, self.start + len(context))


def answered(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[tuple[int, str, str | None]],
) -> list[Answered]:
    """Tokenises prompts of records with their answers, as far as these are known.

    What the tokenizer puts after every text, an EOS say, is left out: the answer is not all that is
    said.

    Args:
        model: The model that is to read them.
        tokenizer: Its (fast) tokenizer.
        texts: Record, prompt and answer.

    Raises:
        RequestError: One does not fit the model.
    """
    if not texts:
        return []
    whole = [prompt if answer is None else f"{prompt} {answer}" for _, prompt, answer in texts]
    # Without an answer the last character stands in for it.
    spans = [
        (len(text) - 1 if answer is None else len(prompt), len(text))
        for (_, prompt, answer), text in zip(texts, whole, strict=True)
    ]
    records = np.array([record for record, _, _ in texts], dtype=np.int64)
    try:
        batch = RequestTokenizer.from_transformers(tokenizer).encode(whole, target_spans=spans)
    except RequestError as error:
        raise error.at(int(records[error.record or 0])) from error
    assert batch.labels is not None
    unknown = tokens_without_embedding(model, tokenizer)
    refuse_unknown_tokens(batch.input_ids, batch.labels, records, unknown)
    found = [(row != IGNORED_LABEL).nonzero()[0] for row in batch.labels]
    lengths = np.array([own[-1] + 1 for own in found])
    refuse_long_rows(lengths, records, context_length(model), "its answer")
    return [
        Answered(ids[:length].tolist(), int(length if answer is None else own[0]))
        for ids, length, own, (_, _, answer) in zip(
            batch.input_ids, lengths, found, texts, strict=True
        )
    ]


def answer_logits(
    adapter: CounterfactualAdapter,
    rows: Sequence[Answered],
    routed: Sequence[bool],
    others: Tensor | None = None,
) -> Tensor:
    """What predicts the rows' answers, in one pass.

    Args:
        adapter: The adapter, with its model.
        rows: The rows, those that are routed with their context.
        routed: Which rows the adapter acts on.
        others: ``[m, d_model]``, what enters the head elsewhere; no gradient flows there.

    Returns:
        ``[reads, vocabulary]``, row after row, then the m of the others.
    """
    model = adapter.model
    ids, mask, read = _padded(rows)
    places = int(read.sum())
    with adapter.on(routed), head_only_at(model, read, others), head_learning_at(model, places):
        output = model(
            input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False
        )
    logits: Tensor = output.logits[0]
    return logits


def routed_logits(
    adapter: CounterfactualAdapter,
    base: BaseAnswers,
    rows: Sequence[Answered],
    routed: Sequence[bool],
    places: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:
    """What predicts the rows' answers, each by the counterfactual or the unedited model.

    Args:
        adapter: The adapter, with the counterfactual model.
        base: Of the unedited model.
        rows: The rows, those that are routed with their context.
        routed: Which rows the counterfactual model answers.
        places: Rows of `base` that are asked for too; no gradient flows there.

    Returns:
        Logits ``[reads, vocabulary]``, row after row, and ``[m, vocabulary]`` of those rows.
    """
    if base.model is adapter.model:  # one pass for all
        others = base.at(places) if places else None
        logits = answer_logits(adapter, rows, routed, others)
        reads = len(logits) - (0 if others is None else len(others))
        return logits[:reads], logits[reads:]
    known = base.logits(places) if places else None
    by = {
        on: [row for row, own in zip(rows, routed, strict=True) if own == on]
        for on in (True, False)
    }
    found = {
        True: answer_logits(adapter, by[True], [True] * len(by[True])) if by[True] else None,
        False: plain_logits(base.model, by[False]) if by[False] else None,
    }
    present = [one for one in (known, *found.values()) if one is not None]
    width, device = min(one.shape[-1] for one in present), adapter.model.device
    # What one of them has beyond only rounds its width up, and is of no token.
    parts = {
        on: iter(one[:, :width].to(device).split([row.reads for row in by[on]]))
        for on, one in found.items()
        if one is not None
    }
    logits = torch.cat([next(parts[on]) for on in routed])
    return logits, logits[:0] if known is None else known[:, :width].to(device)


@torch.no_grad()
def plain_logits(model: PreTrainedModel, rows: Sequence[Answered]) -> Tensor:
    """What predicts the rows' answers in a model as it is: ``[reads, vocabulary]``."""
    ids, mask, read = _padded(rows)
    device = model.device
    with frozen(model), head_only_at(model, read):
        output = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
    logits: Tensor = output.logits[0]
    return logits


def row_means(values: Tensor, rows: Sequence[Answered]) -> Tensor:
    """The mean of each row's own values, ``[rows]``; of ``[reads]``, row after row."""
    return torch.stack([part.mean() for part in values.split([row.reads for row in rows])])


class BaseAnswers:
    """What the unedited model makes of prompts: what enters its head at their answers.

    A row is run once, alone: so it does not matter when.

    Attributes:
        model: The model.
    """

    def __init__(self, model: PreTrainedModel, rows: Sequence[Answered]) -> None:
        """Takes the model, and the rows of which some will be asked for."""
        self.model, self._rows = model, rows
        self._known: dict[int, Tensor] = {}
        self._kept = 0

    @torch.no_grad()
    def at(self, places: Sequence[int]) -> Tensor:
        """``[reads, d_model]`` of the rows at some places."""
        if self._kept > _KEPT:
            self._known.clear()
            self._kept = 0
        for place in places:
            if place not in self._known:
                self._known[place] = self._run(self._rows[place])
                self._kept += self._rows[place].reads
        return torch.cat([self._known[place] for place in places]).to(self.model.device)

    @torch.no_grad()
    def logits(self, places: Sequence[int]) -> Tensor:
        """``[reads, vocabulary]`` of the rows at some places.

        A pass of one token takes the states through the head, and through what a family has after
        it.
        """
        states, token = self.at(places), torch.zeros(1, 1, dtype=torch.long)
        with frozen(self.model), head_only_at(self.model, token.bool(), states):
            output = self.model(input_ids=token.to(self.model.device), use_cache=False)
        logits: Tensor = output.logits[0]
        return logits

    def _run(self, row: Answered) -> Tensor:
        ids, mask, read = _padded([row])
        device = self.model.device
        with frozen(self.model), head_only_at(self.model, read) as states:
            self.model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
        return states[0].cpu()


def _padded(rows: Sequence[Answered]) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, attention mask and what is read of rows, ``[rows, t]`` each."""
    # What is predicted after the last token of an answer is not looked at.
    fed = [row.tokens[: max(row.start, len(row.tokens) - 1)] for row in rows]
    ids, mask = padded_rows(fed)
    first = torch.tensor([[row.start - 1] for row in rows])
    return ids, mask, (torch.arange(ids.shape[1]) >= first) & mask.bool()
