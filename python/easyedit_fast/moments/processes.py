"""This process among those of ``accelerate launch``; alone without it."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
from torch import Tensor


def rank_and_ranks() -> tuple[int, int]:
    """This process's number, from 0, and the number of processes."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    from accelerate import PartialState

    state = PartialState()
    return state.process_index, state.num_processes


def own_device() -> torch.device | None:
    """The device that the launcher means for this process; None where it is alone."""
    if rank_and_ranks()[1] == 1:
        return None
    from accelerate import PartialState

    device: torch.device = PartialState().device
    return device


def sum_over_ranks(tensors: Iterable[Tensor]) -> None:
    """Puts the sum over all processes into each tensor."""
    if rank_and_ranks()[1] > 1:
        for tensor in tensors:
            torch.distributed.all_reduce(tensor)


def wait_for_all() -> None:
    """Waits until every process has come here."""
    if rank_and_ranks()[1] > 1:
        torch.distributed.barrier()
