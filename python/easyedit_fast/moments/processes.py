"""This process among those of ``accelerate launch`` or ``torchrun``; alone without them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import PartialState


def rank_and_ranks() -> tuple[int, int]:
    """This process's number, from 0, and the number of processes."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    state = _state()
    return state.process_index, state.num_processes


def own_device() -> torch.device | None:
    """The device that the launcher means for this process; None where it is alone."""
    if rank_and_ranks()[1] == 1:
        return None
    device: torch.device = _state().device
    return device


def sum_over_ranks(tensors: Iterable[Tensor]) -> None:
    """Puts the sum over all processes into each tensor."""
    if rank_and_ranks()[1] > 1:
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)


def first_decides(flags: Sequence[bool]) -> list[bool]:
    """The flags of the first process, in all of them; each has as many."""
    if rank_and_ranks()[1] == 1:
        return list(flags)
    told = torch.tensor(flags, dtype=torch.uint8, device=own_device())
    torch.distributed.broadcast(told, 0)
    return [bool(flag) for flag in told.tolist()]


def wait_for_all() -> None:
    """Waits until every process has come here."""
    if rank_and_ranks()[1] > 1:
        torch.distributed.barrier()


def _state() -> PartialState:
    from accelerate import PartialState

    # Without a GPU it must be told so, or it takes each process for the only one.
    return PartialState(cpu=not torch.cuda.is_available())
