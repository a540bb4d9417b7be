"""What a model can read: how many tokens, and which."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from easyedit_fast.errors import RequestError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def context_length(model: PreTrainedModel) -> int | None:
    """The most tokens that the model reads, where its config tells."""
    length: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return length


def embedding_rows(model: PreTrainedModel) -> int:
    """How many token ids the model has an embedding for."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return weight.shape[0]


def tokens_without_embedding(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> dict[int, str]:
    """Added tokens that the model has no embedding for, such as an image token, by their ids.

    Only a text that holds one literally gives its id; looking that up would fail, and on a GPU
    would leave the device unusable.
    """
    rows = embedding_rows(model)
    added = tokenizer.get_added_vocab().items()
    return {number: token for token, number in added if number >= rows}


def find_token(
    input_ids: NDArray[np.int64], tokens: Mapping[int, str]
) -> tuple[int, int, str] | None:
    """The first place of one of `tokens_without_embedding`.

    Args:
        input_ids: ``[rows, columns]``, on the host.
        tokens: Names by id.

    Returns:
        Row, column and what to say of it; None where no row holds one.
    """
    if not tokens:
        return None
    places = np.argwhere(np.isin(input_ids, list(tokens)))
    if len(places) == 0:
        return None
    row, column = places[0].tolist()
    number = int(input_ids[row, column])
    reason = (
        f"holds {tokens[number]!r} (token {number}), which the model has no embedding for; "
        "leave it out, or give the model one (resize_token_embeddings)"
    )
    return row, column, reason


def refuse_unknown_tokens(
    input_ids: NDArray[np.int64],
    labels: NDArray[np.int64],
    records: NDArray[np.int64],
    unknown: Mapping[int, str],
) -> None:
    """Refuses rows of prompts with targets that hold one of `tokens_without_embedding`.

    Args:
        input_ids: ``[rows, columns]``.
        labels: ``[rows, columns]``; -100 outside the targets.
        records: ``[rows]``, the request of each row.
        unknown: Names by id.

    Raises:
        RequestError: A row holds one; request and field are named.
    """
    found = find_token(input_ids, unknown)
    if found is not None:
        row, column, reason = found
        field = "prompt" if labels[row, column] == -100 else "target_new"
        raise RequestError(reason, record=int(records[row]), field=field)


def refuse_long_rows(
    lengths: NDArray[np.int64], records: NDArray[np.int64], limit: int | None, within: str
) -> None:
    """Refuses rows that are longer than what the model reads.

    Args:
        lengths: ``[rows]``, tokens that are run.
        records: ``[rows]``, the request of each row.
        limit: See `context_length`.
        within: What a row holds beside the prompt, for the message.

    Raises:
        RequestError: A row is; its request is named.
    """
    if limit is not None and lengths.max() > limit:
        row = int(lengths.argmax())
        raise RequestError(
            f"with {within} it takes {lengths[row]} tokens, and the model reads {limit} at most; "
            "shorten it",
            record=int(records[row]),
            field="prompt",
        )
