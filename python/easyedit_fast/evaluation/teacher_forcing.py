"""What a model predicts for each token of the answers, the answers being fed to it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from easyedit_fast.evaluation.isolation import Updates, own_updates
from easyedit_fast.evaluation.rows import sorted_batches
from easyedit_fast.metrics import IGNORED_LABEL, token_accuracy
from easyedit_fast.models.tracing import frozen

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from easyedit_fast.data import TokenBatch
    from easyedit_fast.evaluation.rows import Row


@dataclasses.dataclass(frozen=True, slots=True)
class Prediction:
    """What was predicted in one row.

    Attributes:
        tokens: Predicted ids: one a token of the answer, or the next one where there is none.
        accuracy: Share of them that are right; None without an answer.
    """

    tokens: list[int]
    accuracy: float | None


def predict_targets(
    model: PreTrainedModel,
    rows: Sequence[Row],
    batch: TokenBatch,
    updates: Sequence[Updates] | None,
    batch_size: int,
) -> list[Prediction]:
    """Predicts the answers' tokens, each from the true ones before it.

    Args:
        model: The model.
        rows: The n rows.
        batch: Their texts as tokens [n, t], padded on the right, with labels.
        updates: One edit a row, or None.
        batch_size: Rows in a forward pass.

    Returns:
        One prediction a row.
    """
    labels, wanted = _places(rows, batch)
    predicted = torch.full_like(labels, IGNORED_LABEL)
    for places in sorted_batches(batch.lengths.tolist(), batch_size):
        width = int(batch.lengths[places].max())
        edits = None if updates is None else [updates[place] for place in places]
        ids = torch.from_numpy(batch.input_ids[places, :width])
        mask = torch.from_numpy(batch.attention_mask[places, :width])
        read = wanted[places, :width]
        with own_updates(model, edits):
            tokens = _argmax_at(model, ids, mask, read)
        predicted[places, :width] = predicted[places, :width].masked_scatter(read, tokens)
    answered = [place for place, row in enumerate(rows) if row.target is not None]
    accuracies = token_accuracy(predicted[answered, :-1], labels[answered, 1:])
    accuracy_of = dict(zip(answered, accuracies, strict=True))
    return [
        Prediction(predicted[place][wanted[place]].tolist(), accuracy_of.get(place))
        for place in range(len(rows))
    ]


def _places(rows: Sequence[Row], batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """Labels [n, t] int64, and [n, t] bool: where what is predicted next is read."""
    assert batch.labels is not None
    labels = torch.from_numpy(batch.labels).clone()
    wanted = torch.zeros_like(labels, dtype=torch.bool)
    for place, row in enumerate(rows):
        if row.target is None:
            labels[place] = IGNORED_LABEL
            wanted[place, int(batch.lengths[place]) - 1] = True
    wanted[:, :-1] |= labels[:, 1:] != IGNORED_LABEL
    return labels, wanted


def _argmax_at(model: PreTrainedModel, ids: Tensor, mask: Tensor, read: Tensor) -> Tensor:
    """The most probable next token at the places that are read, row by row.

    Args:
        model: The model.
        ids: [n, t] int64.
        mask: [n, t] int64.
        read: [n, t] bool, with p places in all.

    Returns:
        [p] int64, on the CPU.
    """
    head = model.get_output_embeddings()
    with torch.no_grad(), frozen(model), _head_only_at(head, read):
        output = model(
            input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False
        )
    tokens: Tensor = output.logits[0].argmax(dim=-1)
    return tokens.cpu()


@contextlib.contextmanager
def _head_only_at(head: nn.Module, read: Tensor) -> Iterator[None]:
    """Feeds the head [1, p, d] instead of [n, t, d], so that [n, t, vocabulary] never exists."""

    def pick(_: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        hidden_states: Tensor = args[0]
        return hidden_states[read.to(hidden_states.device)].unsqueeze(0), *args[1:]

    handle = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()
