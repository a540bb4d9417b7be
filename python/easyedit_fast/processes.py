"""This process among those of ``accelerate launch`` or ``torchrun``; alone without them."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from easyedit_fast.errors import EasyEditFastError

if TYPE_CHECKING:
    from accelerate import PartialState

_Told = TypeVar("_Told")
_PATIENCE = dt.timedelta(days=1)
"""How long a process waits for another, which may be preparing data for all."""


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


def gathered(tensor: Tensor) -> list[Tensor]:
    """The tensor of each process, of one shape in all of them; its own alone where it is alone."""
    ranks = rank_and_ranks()[1]
    if ranks == 1:
        return [tensor]
    parts = [torch.empty_like(tensor) for _ in range(ranks)]
    torch.distributed.all_gather(parts, tensor.contiguous())
    return parts


def first_tells(value: _Told) -> _Told:
    """What the first process has, in all of them."""
    if rank_and_ranks()[1] == 1:
        return value
    told: list[_Told] = [value]
    torch.distributed.broadcast_object_list(told, 0, device=own_device())
    return told[0]


def is_first_of_machine() -> bool:
    """Whether this process is the first one on its machine."""
    return rank_and_ranks()[1] == 1 or bool(_state().is_local_main_process)


def together(act: Callable[[], _Told]) -> _Told:
    """What an action gives in this process; where it fails in one process it fails in all.

    So no process waits for one that has ended.

    Raises:
        EasyEditFastError: It failed in another process; that one raises its own error.
    """
    if rank_and_ranks()[1] == 1:
        return act()
    failure: Exception | None = None
    try:
        done = act()
    except Exception as error:  # noqa: BLE001  raised below, when the others know of it
        failure = error
    told: list[str | None] = [None] * rank_and_ranks()[1]
    torch.distributed.all_gather_object(told, None if failure is None else str(failure))
    if failure is not None:
        raise failure
    for rank, text in enumerate(told):
        if text is not None:
            raise EasyEditFastError(f"process {rank} failed: {text}")
    return done


def wait_for_all() -> None:
    """Waits until every process has come here."""
    if rank_and_ranks()[1] > 1:
        torch.distributed.barrier()


def _state() -> PartialState:
    from accelerate import PartialState

    # Without a GPU it must be told so, or it takes each process for the only one.
    return PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)
