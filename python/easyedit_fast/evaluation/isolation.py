"""Every row of a batch in its own edited model, in one forward pass."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from easyedit_fast.models.tracing import row_updates
from easyedit_fast.updates import LowRankUpdate

Updates = Mapping[str, LowRankUpdate]
"""One edit: low-rank updates by the name of the parameter."""


class RowUpdates:
    """The edits of rows, ready to be added while some of the rows run."""

    def __init__(self, model: nn.Module, updates: Sequence[Updates] | None) -> None:
        """Stacks the edits.

        Args:
            model: The model; its weights stay as they are.
            updates: One edit a row; None for no edits.
        """
        self._factors: list[tuple[nn.Module, Tensor, Tensor]] = []
        for name in dict.fromkeys(name for edit in updates or () for name in edit):
            module = model.get_submodule(name.removesuffix(".weight"))
            device = next(module.parameters()).device
            factors = _stacked([edit.get(name) for edit in updates or ()], device)
            self._factors.append((module, *factors))

    @contextlib.contextmanager
    def applied(self, rows: Sequence[int]) -> Iterator[None]:
        """Gives each row of the batch its own edit for the time of a ``with`` block.

        Args:
            rows: The rows of which the batch consists, in its order.
        """
        with contextlib.ExitStack() as stack:
            for module, output_factor, input_factor in self._factors:
                index = torch.tensor(rows, device=output_factor.device)
                stack.enter_context(row_updates(module, output_factor[index], input_factor[index]))
            yield


def _stacked(
    updates: Sequence[LowRankUpdate | None], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Factors [rows, d_out, r] and [rows, r, d_in] float32; zeros fill up lower ranks."""
    present = [update for update in updates if update is not None]
    rank = max(update.rank for update in present)
    outputs, inputs = present[0].shape
    output_factor = torch.zeros(len(updates), outputs, rank, device=device)
    input_factor = torch.zeros(len(updates), rank, inputs, device=device)
    for row, update in enumerate(updates):
        if update is not None:
            output_factor[row, :, : update.rank] = update.output_factor
            input_factor[row, : update.rank] = update.input_factor
    return output_factor, input_factor
