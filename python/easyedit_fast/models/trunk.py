"""The tails of many rows, with little of their trunk computed twice, and little padding.

`Tail.capture_layers` runs every row whole, padded to the longest, through all layers. The tails
need less: keys and values of the prefixes, and the tails' own tokens up to the edited layer. So
three passes are made here:

1. the leading tokens that several rows share (a context template before every request), once;
2. the rest of each prefix, after its lead;
3. the tails, after their prefixes, up to the last edited layer.

In the second and the third, rows of about the same length go together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from easyedit_fast.models.architectures import Architecture, block
from easyedit_fast.models.passes import reading_layers, run_decoder
from easyedit_fast.models.prefix import Cut, PrefixCache, RecordingCache
from easyedit_fast.models.ragged import group_cost, partition
from easyedit_fast.models.shared_leads import find_leads
from easyedit_fast.models.tail import Tail
from easyedit_fast.models.tracing import frozen, stop_after

if TYPE_CHECKING:
    from transformers import PreTrainedModel

States: TypeAlias = dict[int, tuple[Tensor, Tensor]]
"""Layer to (keys, values), each ``[rows, heads, columns, head size]``."""

_Entry: TypeAlias = tuple[Tensor, Tensor, Tensor, int]
"""Key, value, hidden states and outputs, as `Tail` has them."""


@torch.no_grad()
def capture_tails(
    model: PreTrainedModel,
    architecture: Architecture,
    layers: Sequence[int],
    input_ids: Tensor,
    attention_mask: Tensor,
    start: Tensor,
) -> dict[int, Tail]:
    """The tails of several layers; arguments, result and errors are `Tail.capture_layers`'s."""
    cut = Cut.at(attention_mask, start)
    before = cut.tail_positions[:, 0]
    columns = (start - before)[:, None] + torch.arange(input_ids.shape[1], device=start.device)
    tokens = input_ids.take_along_dim(columns.clamp(max=input_ids.shape[1] - 1), dim=1)
    passes = _Passes(model, architecture, tokens)
    with frozen(model):
        prefix = passes.prefix(before, cut.prefix_columns.shape[1])
        entries = passes.entries(layers, cut, prefix)
    return {
        layer: Tail(
            model=model,
            architecture=architecture,
            layer=layer,
            key=key,
            value=value,
            entering=entering,
            prefix={at: kept for at, kept in prefix.items() if at >= layer},
            cut=cut,
            outputs=outputs,
        )
        for layer, (key, value, entering, outputs) in entries.items()
    }


@dataclasses.dataclass(frozen=True)
class _Passes:
    """The passes over some rows.

    Attributes:
        model: The model.
        architecture: Where its parts are.
        tokens: ``[rows, columns]``, the ids, each row from its first token on.
    """

    model: PreTrainedModel
    architecture: Architecture
    tokens: Tensor

    def prefix(self, lengths: Tensor, width: int) -> States:
        """Keys and values of each row's first ``lengths [rows]`` tokens, in all layers.

        Returns:
            `width` columns, aligned on the right, with anything where a row has no token; empty
            where `width` is 0.
        """
        if width == 0:
            return {}
        pairs = zip(self.tokens.tolist(), lengths.tolist(), strict=True)
        leads = find_leads([row[:length] for row, length in pairs])
        shared = self._leads(leads.tokens)
        of_row = torch.tensor(leads.of_row, device=lengths.device).clamp(min=0)
        led = torch.tensor(leads.lengths, device=lengths.device)
        # A row that is all lead runs a token of its tail, so that none needs a case of its own.
        rest = (lengths - led).clamp(min=1)
        groups = _groups(rest)
        parts = []
        for rows in groups:
            lead = _rows(shared, of_row[rows])
            columns = led[rows, None] + torch.arange(int(rest[rows].max()), device=rows.device)
            ids = self.tokens[rows].take_along_dim(columns.clamp(max=self.tokens.shape[1] - 1), 1)
            both = _joined([lead, self._after(lead, led[rows], ids, rest[rows])], dim=2)
            wanted = lengths[rows, None] + torch.arange(-width, 0, device=rows.device)
            parts.append(_columns(both, wanted - led[rows, None] + _width(lead)))
        return _rows(_joined(parts, dim=0), torch.argsort(torch.cat(groups)))

    def _leads(self, leads: Sequence[Sequence[int]]) -> States:
        """Keys and values of the leads, aligned on the right; empty where there is none."""
        if not leads:
            return {}
        device = self.tokens.device
        lengths = torch.tensor([len(lead) for lead in leads], device=device)
        width = int(lengths.max())
        ids = torch.tensor([[*lead, *[0] * (width - len(lead))] for lead in leads], device=device)
        states = self._after({}, torch.zeros_like(lengths), ids, lengths)
        return _columns(states, lengths[:, None] + torch.arange(-width, 0, device=device))

    def _after(self, before: States, befores: Tensor, ids: Tensor, lengths: Tensor) -> States:
        """Runs the first ``lengths [rows]`` of ``ids [rows, n]`` after what is before them.

        Args:
            before: Keys and values, aligned on the right.
            befores: ``[rows]``, how many of these columns are tokens.
            ids: The new tokens.
            lengths: How many of them count.

        Returns:
            Keys and values of the n columns, in all layers.
        """
        columns = torch.arange(ids.shape[1], device=ids.device)
        ahead = torch.arange(-_width(before), 0, device=ids.device)
        mask = torch.cat([ahead >= -befores[:, None], columns < lengths[:, None]], dim=1)
        cache = RecordingCache(before, _width(before))
        run_decoder(
            self.model,
            self.architecture,
            cache,
            input_ids=ids,
            attention_mask=mask.long(),
            position_ids=befores[:, None] + columns.minimum(lengths[:, None] - 1),
        )
        return cache.new

    def entries(self, layers: Sequence[int], cut: Cut, prefix: States) -> dict[int, _Entry]:
        """Runs the tails up to the last of some layers: what each of these starts from."""
        groups = _groups(cut.lengths)
        parts = [
            self._group_entries(layers, cut.select(rows), _rows(prefix, rows), rows)
            for rows in groups
        ]
        order = torch.argsort(torch.cat(groups))
        width = cut.tail_columns.shape[1]
        found = {}
        for layer in layers:
            keys, values, entering, outputs = zip(*(part[layer] for part in parts), strict=True)
            padded = [torch.nn.functional.pad(e, (0, 0, 0, width - e.shape[1])) for e in entering]
            at = order.to(keys[0].device)
            found[layer] = (
                torch.cat(keys)[at],
                torch.cat(values)[at],
                torch.cat(padded)[at],
                outputs[0],
            )
        return found

    def _group_entries(
        self, layers: Sequence[int], cut: Cut, prefix: States, rows: Tensor
    ) -> dict[int, _Entry]:
        width = cut.prefix_columns.shape[1]
        narrow = {
            layer: (keys[:, :, keys.shape[2] - width :], values[:, :, values.shape[2] - width :])
            for layer, (keys, values) in prefix.items()
        }
        own = torch.arange(cut.tail_columns.shape[1], device=rows.device).expand(len(rows), -1)
        last = block(self.model, self.architecture, max(layers))
        with (
            reading_layers(self.model, self.architecture, layers, own[:, 0], own) as seen,
            stop_after(last),
        ):
            run_decoder(
                self.model,
                self.architecture,
                PrefixCache(narrow, width),
                input_ids=self.tokens[rows].take_along_dim(cut.tail_positions, dim=1),
                attention_mask=cut.mask,
                position_ids=cut.tail_positions,
            )
        return {
            layer: (read.key, read.value, entry.entering, entry.outputs)
            for layer, (read, entry) in seen.items()
        }


def _groups(lengths: Tensor) -> list[Tensor]:
    """Rows ``[n]`` in groups of about the same length."""
    groups = partition(lengths.tolist(), group_cost(lengths.device))
    return [torch.tensor(group, device=lengths.device) for group in groups]


def _width(states: States) -> int:
    return next(iter(states.values()))[0].shape[2] if states else 0


def _mapped(states: States, change: Callable[[Tensor], Tensor]) -> States:
    return {layer: (change(keys), change(values)) for layer, (keys, values) in states.items()}


def _rows(states: States, rows: Tensor) -> States:
    return _mapped(states, lambda kept: kept[rows.to(kept.device)])


def _columns(states: States, columns: Tensor) -> States:
    """The ``columns [rows, n]`` of each row; below the first, the first."""
    index = columns.clamp(min=0)[:, None, :, None]
    return _mapped(states, lambda kept: kept.take_along_dim(index.to(kept.device), dim=2))


def _joined(parts: Sequence[States], dim: int) -> States:
    full = [part for part in parts if part]
    joined = {}
    for layer in full[0]:
        keys, values = zip(*(part[layer] for part in full), strict=True)
        joined[layer] = torch.cat(keys, dim), torch.cat(values, dim)
    return joined
