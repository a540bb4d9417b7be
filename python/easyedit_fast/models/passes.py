"""One pass through a model's decoder with a cache of ours, and what is read on the way."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from easyedit_fast.errors import ModelError
from easyedit_fast.models.architectures import Architecture, block, edited_module, module
from easyedit_fast.models.prefix import StandInCache
from easyedit_fast.models.tracing import frozen, watch_block, watch_call

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CACHE_ARGUMENTS = ("cache", "past_key_values")


class KeyAndValue:
    """Copies input and output of the MLP output projection at one column of each row.

    At once, for some blocks go on to add to the very tensor (Falcon with parallel attention).

    Attributes:
        key: ``[rows, d_in]``, the input.
        value: ``[rows, d_out]``, the output.
    """

    def __init__(self, columns: Tensor) -> None:
        """Takes the column of each row, ``[rows]``."""
        self.columns = columns[:, None]
        self.key = self.value = torch.empty(0)

    def keep(self, inputs: Tensor, output: Tensor) -> None:
        """Reads one call of the projection."""
        self.key, self.value = self._read(inputs), self._read(output)

    def _read(self, states: Tensor) -> Tensor:
        # Some models flatten rows and tokens before the MLP.
        tokens = states.reshape(self.columns.shape[0], -1, states.shape[-1])
        return columns_of(tokens, self.columns).squeeze(1)


class BlockEntry:
    """Copies some columns of what enters a block, and notes how the block returns its output.

    Attributes:
        entering: ``[rows, n, d_model]``.
        outputs: Length of the tuple that the block returns; 0 where it returns a tensor.
    """

    def __init__(self, columns: Tensor) -> None:
        """Takes the columns of each row, ``[rows, n]``."""
        self.columns = columns
        self.entering = torch.empty(0)
        self.outputs = 0

    def enter(self, hidden: Tensor) -> None:
        """Reads what enters the block."""
        self.entering = columns_of(hidden, self.columns)

    def leave(self, output: Any) -> None:
        """Notes what leaves it."""
        self.outputs = len(output) if isinstance(output, tuple) else 0


@contextlib.contextmanager
def reading_layers(
    model: PreTrainedModel,
    architecture: Architecture,
    layers: Sequence[int],
    columns: Tensor,
    tail_columns: Tensor,
) -> Iterator[dict[int, tuple[KeyAndValue, BlockEntry]]]:
    """Reads what the tails of some layers start from, in the passes of a ``with`` block.

    Args:
        model: The model.
        architecture: Where its parts are.
        layers: The layers, from 0.
        columns: ``[rows]``, the column of the edited token.
        tail_columns: ``[rows, n]``, the columns of the tail.

    Raises:
        ModelError: As `edited_module`.
    """
    seen = {layer: (KeyAndValue(columns), BlockEntry(tail_columns)) for layer in layers}
    with contextlib.ExitStack() as stack:
        for layer, (read, entry) in seen.items():
            projection = edited_module(model, architecture, layer)
            stack.enter_context(watch_call(projection, read.keep))
            blocks = watch_block(block(model, architecture, layer), entry.enter, entry.leave)
            stack.enter_context(blocks)
        yield seen


def run_decoder(
    model: PreTrainedModel, architecture: Architecture, cache: StandInCache, **arguments: Tensor
) -> None:
    """Runs the decoder, without the head, for what hooks and the cache take from it.

    Args:
        model: The model.
        architecture: Where its parts are.
        cache: What stands in for the model's cache.
        arguments: ``input_ids`` or ``inputs_embeds``, ``attention_mask`` and ``position_ids``.

    Raises:
        ModelError: The decoder takes no cache.
    """
    call_with_cache(module(model, architecture.decoder), cache, **arguments)


def call_with_cache(part: nn.Module, cache: StandInCache, **arguments: Any) -> Any:
    """Calls a decoder or a model, with the names that its release of transformers uses.

    Raises:
        ModelError: It takes no cache, or keeps more of the past than keys and values.
    """
    names = inspect.signature(type(part).forward).parameters
    cache_name = next((name for name in _CACHE_ARGUMENTS if name in names), None)
    if cache_name is None or getattr(part, "_is_stateful", False):
        raise ModelError(
            f"{type(part).__name__} keeps no cache of keys and values alone, so it cannot be run "
            "in parts; use a model with attention layers"
        )
    if "position_ids" not in names:
        arguments.pop("position_ids", None)  # Bloom: its positions are in the mask
    arguments[cache_name] = cache
    return part(**arguments, use_cache=True, return_dict=True)


@torch.no_grad()
def block_outputs(model: PreTrainedModel, architecture: Architecture, layer: int) -> int:
    """Length of the tuple that a block returns, found with one token; 0 where it is a tensor."""
    token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    part, entry = block(model, architecture, layer), BlockEntry(token)
    with frozen(model), watch_block(part, entry.enter, entry.leave):
        model(input_ids=token, use_cache=False)
    return entry.outputs


def padded_rows(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Rows padded on the right ``[n, t]``, and their attention mask ``[n, t]``, both int64."""
    lengths = torch.tensor([[len(row)] for row in rows])
    width = int(lengths.max())
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    return ids, (torch.arange(width) < lengths).long()


@contextlib.contextmanager
def head_only_at(
    model: PreTrainedModel, read: Tensor, others: Tensor | None = None
) -> Iterator[list[Tensor]]:
    """Feeds the head [1, p, d] instead of [n, t, d], so that [n, t, vocabulary] never exists.

    Args:
        model: The model; in the ``with`` block its logits are ``[1, p, vocabulary]``.
        read: ``[n, t]`` bool, the p places whose logits are wanted.
        others: ``[m, d]``, such states from before; their logits ``[m, vocabulary]`` come after
            those of the p.

    Yields:
        The states ``[p, d]`` of each pass, as they come.
    """
    states: list[Tensor] = []

    def pick(_: nn.Module, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        hidden_states: Tensor = args[0]
        states.append(hidden_states[read.to(hidden_states.device)])
        wanted = states[-1] if others is None else torch.cat([states[-1], others])
        return wanted.unsqueeze(0), *args[1:]

    handle = model.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        yield states
    finally:
        handle.remove()


@contextlib.contextmanager
def head_learning_at(model: PreTrainedModel, places: int) -> Iterator[None]:
    """Spares the head's backward pass the places that have no gradient.

    A head that is no plain linear module, or that somebody has taken over, stays as it is.

    Args:
        model: The model, with frozen weights.
        places: How many have one: the first.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or "forward" in vars(head):
        yield
        return

    def forward(hidden: Tensor) -> Tensor:
        output: Tensor = _LinearAtFirst.apply(hidden, head.weight, head.bias, places)
        return output

    vars(head)["forward"] = forward
    try:
        yield
    finally:
        del vars(head)["forward"]


class _LinearAtFirst(torch.autograd.Function):
    """A linear module whose output has a gradient in the first rows alone."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, rows: int) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.rows = rows
        return nn.functional.linear(hidden, weight, bias)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        gradient = outer[0].new_zeros(*outer[0].shape[:-1], weight.shape[1])
        gradient[: ctx.rows] = outer[0][: ctx.rows].to(weight.dtype) @ weight
        return gradient, None, None, None


def columns_of(states: Tensor, columns: Tensor) -> Tensor:
    """Of ``states [rows, columns, d]``, the ``columns [rows, n]`` of each row: ``[rows, n, d]``."""
    return states.take_along_dim(columns.to(states.device)[..., None], dim=1)
