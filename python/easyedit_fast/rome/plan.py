"""How many requests ROME optimises at once: as many as the memory at hand takes.

What the optimisation holds was counted for a decoder in the order of Llama's: for every token of a
row the keys and values above the edited layer, which attention keeps for the backward pass as
wide as its queries, and once more for each group of rows; for every token from the subject on the
states that the backward pass needs of each layer; for every place whose logits are read a row of
the vocabulary in float32, four times over.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from easyedit_fast.data import RequestTokenizer
from easyedit_fast.models.architectures import Architecture, block_list, key_size
from easyedit_fast.models.memory import available_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from easyedit_fast.requests import EditRequest
    from easyedit_fast.rome.hparams import FactToken

_MOST_ROWS = {"cpu": 128}
_OTHER_MOST_ROWS = 4096
"""Rows above which a batch is no faster.

The first is measured on two cores: from 14 rows on, the time a row stays the same. The other is a
guess.
"""

_SHARE = 0.8
"""Of the free memory; the rest is for what allocators lose between blocks, and for others."""

_FLOAT32 = 4
_LOGIT_COPIES = 4  # logits, their float32 copy and log-softmax, and a gradient
_ESSENCE_COPIES = 8  # the same, p_0, and the terms of the divergence


@dataclasses.dataclass(frozen=True)
class Lengths:
    """How long the rows of a request are at most, in tokens.

    Attributes:
        rows: Rows of a request.
        row: Tokens of a row.
        tail: Tokens of a row from the edited one on.
        target: Tokens of the target.
    """

    rows: int
    row: int
    tail: int
    target: int

    @classmethod
    def of(
        cls,
        tokenizer: RequestTokenizer,
        requests: Sequence[EditRequest],
        templates: Sequence[str],
        fact_token: FactToken,
    ) -> Lengths:
        """Those of the longest of some requests, by their characters, under the longest template.

        A template that is no valid Unicode is counted all the same: it is refused later.
        """
        before = max(templates, key=len)
        wholes = [f"{request.prompt} {request.target_new}" for request in requests]
        end = fact_token != "subject_first"
        tails = [
            whole[request.subject_span[end] :]
            for whole, request in zip(wholes, requests, strict=True)
        ]
        targets = [f" {request.target_new}" for request in requests]
        texts = [before.replace("{}", _longest(wholes)), _longest(tails), _longest(targets)]
        plain = [text.encode(errors="replace").decode() for text in texts]
        row, tail, target = tokenizer.encode(plain).lengths.tolist()
        return cls(len(templates) + 1, row, min(tail + 1, row), target)


def requests_per_batch(
    model: PreTrainedModel, architecture: Architecture, layer: int, lengths: Lengths
) -> int:
    """Requests that are optimised at once, at least one.

    Args:
        model: The model.
        architecture: Where its parts are.
        layer: The lowest layer that is edited.
        lengths: Those of the requests' rows.
    """
    devices = {parameter.device for parameter in model.parameters()}
    free = min(available_bytes(device) for device in devices)
    fitting = int(_SHARE * free) // bytes_per_request(model, architecture, layer, lengths)
    most = _MOST_ROWS.get(model.device.type, _OTHER_MOST_ROWS) // lengths.rows
    return max(1, min(fitting, most))


def bytes_per_request(
    model: PreTrainedModel, architecture: Architecture, layer: int, lengths: Lengths
) -> int:
    """Memory that the optimisation of one request takes at its peak, beside the model, in bytes.

    Args:
        model: The model.
        architecture: Where its parts are.
        layer: The edited layer; a higher one takes less.
        lengths: Those of the request's rows.
    """
    config = model.config.get_text_config()
    states: int = config.hidden_size
    heads: int = config.num_attention_heads
    # Where keys and values have as many heads as queries, some configs do not say so.
    key_heads: int = getattr(config, "num_key_value_heads", None) or heads
    head: int = getattr(config, "head_dim", None) or states // heads
    inner = key_size(model, architecture, layer)
    blocks = len(block_list(model, architecture))
    above = blocks - layer
    # The prefix as a whole and in groups, and what attention made of it.
    attended = 2 * above * head * (2 * key_heads + heads)
    # The trunk's pass: the prefix of all layers and its copies, and what is in one layer.
    entering = 2 * blocks * head * 3 * key_heads + 3 * inner + 6 * states
    passed = above * (3 * inner + 4 * states)
    tokens = max(lengths.row * entering, lengths.row * attended + lengths.tail * passed)
    vocabulary: int = config.vocab_size
    reads = vocabulary * (lengths.rows * lengths.target * _LOGIT_COPIES + _ESSENCE_COPIES)
    return lengths.rows * tokens * model.dtype.itemsize + reads * _FLOAT32


def _longest(texts: Iterable[str]) -> str:
    return max(texts, key=len)
