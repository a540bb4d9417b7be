"""Run only what an edit can change: later tokens, later layers.

Nothing below the edited layer depends on an edit of its MLP, and nothing before the edited token
does. `Tail.capture` runs the model once and keeps, for each row, the hidden states that enter the
edited layer from the edited token on, and the keys and values of the tokens before it.
`Tail.logits` then runs the edited layer and those above it on these tokens alone. The result is
that of the full forward pass, not an approximation of it.

How it fits every decoder of transformers: the model's own forward is run once over the tail with
every block replaced by one that notes its arguments (masks, position embeddings, the cache) and
hands its input on. The blocks are called with the noted arguments ever after; a step builds no
masks and waits for nothing on the host. The head is the model's own forward too, with blocks that
hand the hidden states on, so that norms, projections and soft-capping after the last block need
no description. A decoder that does something of its own between its blocks is refused.

While a call of this module runs, nothing else may run the same model.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from easyedit_fast.errors import ModelError
from easyedit_fast.models.architectures import (
    Architecture,
    block_list,
    edited_module,
    module,
)
from easyedit_fast.models.attention import shared_keys, sharing_configs
from easyedit_fast.models.passes import (
    call_with_cache,
    head_learning_at,
    reading_layers,
    run_decoder,
)
from easyedit_fast.models.prefix import Cut, PrefixCache, PrefixRecorder, StandInCache
from easyedit_fast.models.tracing import (
    edit_output,
    frozen,
    replaced,
    split_hidden_states,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclasses.dataclass(frozen=True, slots=True)
class _Call:
    """The arguments of one block beside its hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Tail:
    """Rows of tokens from their start column on, ready to be run from the edited layer up.

    Attributes:
        model: The model.
        architecture: Where its parts are.
        layer: The edited layer.
        key: ``[rows, d_in]``, input of the MLP output projection at the start column.
        value: ``[rows, d_out]``, output of it at the start column, bias included.
        entering: ``[rows, T, d_model]``, hidden states that enter the edited layer.
        prefix: Layer to the (keys, values) of the prefix, ``[rows, heads, P, head size]``.
        cut: Which columns are prefix and tail.
        outputs: Length of the tuple that a block returns; 0 where it returns a tensor.
    """

    model: PreTrainedModel
    architecture: Architecture
    layer: int
    key: Tensor
    value: Tensor
    entering: Tensor
    prefix: dict[int, tuple[Tensor, Tensor]]
    cut: Cut
    outputs: int

    @classmethod
    def capture(
        cls,
        model: PreTrainedModel,
        architecture: Architecture,
        layer: int,
        input_ids: Tensor,
        attention_mask: Tensor,
        start: Tensor,
    ) -> Tail:
        """Runs the whole model once and keeps what the tail needs.

        Args:
            model: The model, unedited.
            architecture: Where its parts are.
            layer: The edited layer, from 0.
            input_ids: ``[rows, columns]``, padded on the left, on the right or not at all.
            attention_mask: ``[rows, columns]``, 1 for tokens and 0 for pads.
            start: ``[rows]``, column of the edited token (ROME: the subject's last).

        Raises:
            ModelError: As `edited_module`, or rows that are not padded on one side, or a model
                that takes no cache.
        """
        tails = cls.capture_layers(model, architecture, [layer], input_ids, attention_mask, start)
        return tails[layer]

    @classmethod
    @torch.no_grad()
    def capture_layers(
        cls,
        model: PreTrainedModel,
        architecture: Architecture,
        layers: Sequence[int],
        input_ids: Tensor,
        attention_mask: Tensor,
        start: Tensor,
    ) -> dict[int, Tail]:
        """The tails of several layers, each edited alone, from one run; see `capture`.

        The keys and values of the prefix are shared: beside the lowest layer's tail another one
        takes the hidden states that enter it, and no more.

        Args:
            model: The model, unedited.
            architecture: Where its parts are.
            layers: The layers, from 0.
            input_ids: As for `capture`, like the rest.
            attention_mask: ``[rows, columns]``.
            start: ``[rows]``.
        """
        cut = Cut.at(attention_mask, start)
        recorder = PrefixRecorder(min(layers), cut)
        with (
            frozen(model),
            reading_layers(model, architecture, layers, start, cut.tail_columns) as seen,
        ):
            run_decoder(
                model,
                architecture,
                recorder,
                input_ids=input_ids,
                attention_mask=attention_mask,
                position_ids=cut.positions,
            )
        return {
            layer: cls(
                model=model,
                architecture=architecture,
                layer=layer,
                key=read.key,
                value=read.value,
                entering=entry.entering,
                prefix={at: kept for at, kept in recorder.states.items() if at >= layer},
                cut=cut,
                outputs=entry.outputs,
            )
            for layer, (read, entry) in seen.items()
        }

    @classmethod
    def of_entering(
        cls,
        model: PreTrainedModel,
        architecture: Architecture,
        layer: int,
        entering: Tensor,
        attention_mask: Tensor,
        outputs: int,
    ) -> Tail:
        """The tail of whole rows, from what is known to enter the layer; nothing below it is run.

        Its `key` and `value` are empty.

        Args:
            model: The model.
            architecture: Where its parts are.
            layer: The layer, from 0.
            entering: ``[rows, T, d_model]``, in the model's dtype, padded on the right.
            attention_mask: ``[rows, T]``, 1 for tokens and 0 for pads.
            outputs: As `block_outputs` gives it.
        """
        nothing = entering.new_empty(len(entering), 0)
        return cls(
            model=model,
            architecture=architecture,
            layer=layer,
            key=nothing,
            value=nothing,
            entering=entering,
            prefix={},
            cut=Cut.at(attention_mask, torch.zeros_like(attention_mask[:, 0])),
            outputs=outputs,
        )

    def hidden_states(self, delta: Tensor | None, rows: Tensor, columns: Tensor) -> Tensor:
        """What leaves the last block, with `delta` added to the MLP's output at the start columns.

        Gradients flow to `delta` alone.

        Args:
            delta: ``[rows, d_out]``, added to the output of the MLP output projection at the
                start column of each row; None for the unedited model. Where several rows share
                one request's delta, pass ``delta[request_of_row]``.
            rows: ``[n]``, the rows to read.
            columns: ``[n]``, the columns to read, as in the captured ``input_ids``; none may lie
                before its row's start or after its row's end.

        Returns:
            ``[n, d_model]``, in the model's dtype, for `head`.

        Raises:
            ModelError: A decoder that cannot be run block by block.
        """
        projection = edited_module(self.model, self.architecture, self.layer)
        blocks = block_list(self.model, self.architecture)[self.layer :]
        calls = self._calls
        with contextlib.ExitStack() as stack:
            stack.enter_context(frozen(self.model))
            stack.enter_context(shared_keys(self._sharing))
            if delta is not None:
                shift = _ShiftFirstToken(delta)
                stack.enter_context(edit_output(projection, shift))
            hidden = self.entering
            for part, call in zip(blocks, calls, strict=True):
                output = part(hidden, *call.args, **call.kwargs)
                hidden = output[0] if isinstance(output, tuple) else output
            rows = rows.to(hidden.device)
            places = columns.to(hidden.device) - self.cut.start.to(hidden.device)[rows]
            return hidden[rows, places]

    def logits(self, delta: Tensor | None, rows: Tensor, columns: Tensor) -> Tensor:
        """Logits of what `hidden_states` gives, ``[n, vocabulary]``."""
        return self.head(self.hidden_states(delta, rows, columns))

    def select(self, rows: Tensor) -> Tail:
        """The same for some of the rows; they are numbered anew, columns stay as they were.

        Args:
            rows: ``[n]``, the rows to keep.
        """
        cut = self.cut.select(rows)
        after, before = cut.tail_columns.shape[1], cut.prefix_columns.shape[1]
        first = self.cut.prefix_columns.shape[1] - before
        return dataclasses.replace(
            self,
            key=self.key[rows],
            value=self.value[rows],
            entering=self.entering[rows, :after],
            prefix={
                layer: (keys[rows, :, first:], values[rows, :, first:])
                for layer, (keys, values) in self.prefix.items()
            },
            cut=cut,
        )

    @functools.cached_property
    @torch.no_grad()
    def _calls(self) -> tuple[_Call, ...]:
        """How the model calls the edited block and those above it on these rows."""
        blocks = block_list(self.model, self.architecture)
        stand_ins = [_HandOn(part, self.outputs) for part in blocks]
        stand_ins[0].hidden = self.entering
        cache = PrefixCache(self.prefix, self.cut.prefix_columns.shape[1])
        with frozen(self.model), self._blocks_replaced(stand_ins):
            call_with_cache(
                module(self.model, self.architecture.decoder),
                cache,
                inputs_embeds=self._blank(*self.cut.tail_columns.shape),
                attention_mask=self.cut.mask,
                position_ids=self.cut.tail_positions,
            )
        _check_chain(stand_ins, self.model)
        return tuple(_Call(part.args, part.kwargs) for part in stand_ins[self.layer :])

    @functools.cached_property
    def _sharing(self) -> list[Any]:
        """Configurations of the blocks that read shared keys where they are: on a CPU alone."""
        blocks = block_list(self.model, self.architecture)[self.layer :]
        return sharing_configs(blocks) if self.entering.device.type == "cpu" else []

    def head(self, hidden: Tensor, others: Tensor | None = None) -> Tensor:
        """The model's own way from hidden states to logits.

        Args:
            hidden: ``[n, d_model]``.
            others: ``[m, d_model]``, states that need no gradient, on the same way: few rows
                take the head about as long as many, whose weight is read once.

        Returns:
            ``[n + m, vocabulary]``.
        """
        spared: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if others is not None:
            spared = head_learning_at(self.model, len(hidden))
            hidden = torch.cat([hidden, others])
        blocks = block_list(self.model, self.architecture)
        stand_ins = [_HandOn(part, self.outputs) for part in blocks]
        stand_ins[0].hidden = hidden[:, None]
        with frozen(self.model), self._blocks_replaced(stand_ins), spared:
            # A cache, however empty, spares the check for packed sequences, which waits for the
            # device.
            output = call_with_cache(
                self.model, StandInCache(), inputs_embeds=self._blank(hidden.shape[0], 1)
            )
        logits: Tensor = output.logits
        return logits.squeeze(1)

    def _blank(self, rows: int, tokens: int) -> Tensor:
        """Embeddings that no block will see, ``[rows, tokens, embedding size]``."""
        embeddings = module(self.model, self.architecture.embeddings)
        size = embeddings.embedding_dim
        assert isinstance(size, int)
        # On the rows' device, as the masks and positions that go with them.
        return torch.zeros(
            rows, tokens, size, dtype=self.entering.dtype, device=self.cut.start.device
        )

    def _blocks_replaced(
        self, stand_ins: Sequence[nn.Module]
    ) -> contextlib.AbstractContextManager[None]:
        parent, _, name = self.architecture.blocks.rpartition(".")
        return replaced(module(self.model, parent), name, nn.ModuleList(stand_ins))


class _HandOn(nn.Module):
    """Stands in for a block: notes its arguments and hands its input (or `hidden`) on."""

    def __init__(self, replaced_block: nn.Module, outputs: int) -> None:
        super().__init__()
        # Decoders read plain attributes of their blocks, such as attention_type.
        for name, value in vars(replaced_block).items():
            if name not in vars(self) and name != "forward":
                vars(self)[name] = value
        self.outputs = outputs
        self.hidden: Tensor | None = None
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}
        self.received: Tensor | None = None
        self.handed_on: Tensor | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor | None, ...]:
        self.received, self.args, self.kwargs = split_hidden_states(args, kwargs)
        self.handed_on = self.received if self.hidden is None else self.hidden
        if self.outputs == 0:
            return self.handed_on
        return (self.handed_on, *[None] * (self.outputs - 1))


class _ShiftFirstToken:
    """Adds ``delta [rows, d_out]`` to the first token's output of each row."""

    def __init__(self, delta: Tensor) -> None:
        self.delta = delta

    def __call__(self, _: Tensor, output: Tensor) -> Tensor:
        tokens = output.reshape(self.delta.shape[0], -1, output.shape[-1])
        first = tokens[:, :1] + self.delta.to(output.device, output.dtype)[:, None]
        return torch.cat([first, tokens[:, 1:]], dim=1).reshape(output.shape)


def _check_chain(stand_ins: Sequence[_HandOn], model: nn.Module) -> None:
    for before, after in itertools.pairwise(stand_ins):
        if after.received is None or after.received is not before.handed_on:
            raise ModelError(
                f"{type(model).__name__} does more between its blocks than to hand the hidden "
                "states on, so its tail cannot be run by itself; use another model"
            )
