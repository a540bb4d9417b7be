"""Memory: how much is free, and work in batches that shrink where it runs out."""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

import torch

from easyedit_fast.errors import HparamsError, OutOfMemoryError

logger = logging.getLogger(__name__)

BatchSize: TypeAlias = int | Literal["auto"]
"""How much is run at once: so many, or as many as the memory at hand takes."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
# In memory.max's and memory.stat's words, of version 2 and of version 1.
_CGROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
_MESSAGES = (
    "out of memory",  # CUDA, HIP, MPS
    "not enough memory",  # torch's CPU allocator
    "can't allocate memory",  # the same
    "alloc_failed",  # CUBLAS_STATUS_ALLOC_FAILED
    "bad_alloc",
)
_ASKED = re.compile(r"tried to allocate ([\d.]+ \w+)", re.IGNORECASE)


def check_batch_size(batch_size: BatchSize) -> None:
    """Refuses what is no batch size.

    Raises:
        HparamsError: It is neither ``auto`` nor a whole number from 1.
    """
    whole = isinstance(batch_size, int) and not isinstance(batch_size, bool) and batch_size > 0
    if batch_size != "auto" and not whole:
        raise HparamsError(
            f"batch_size must be 'auto' or a whole number from 1, not {batch_size!r}"
        )


def available_bytes(device: torch.device) -> int:
    """Memory that could be allocated on a device now, in bytes.

    On a GPU that is what the driver has free and what torch's allocator holds free. Elsewhere it is
    the least of what Linux calls available and what the limits of the process's control groups
    (containers, batch systems) leave; files that the system only caches count as free.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(0, min([_system_bytes(), *_cgroup_bytes()]))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or one that it came from, says that memory ran out."""
    return any(_says_out_of_memory(link) for link in _chain(error))


def make_room_after(error: BaseException) -> None:
    """Where memory ran out, frees what the failed call still holds.

    That is the variables of the frames in its traceback; those that run still are left alone.
    """
    if not is_out_of_memory(error):
        return
    for link in _chain(error):
        traceback.clear_frames(link.__traceback__)
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def run_in_batches(
    items: Sequence[_Item],
    run: Callable[[Sequence[_Item]], _Result],
    batch_size: int,
    *,
    refuse: Callable[[_Item, OutOfMemoryError], None],
) -> Iterator[tuple[Sequence[_Item], _Result]]:
    """Runs items batch by batch; where memory runs out, goes on from there with half the size.

    Args:
        items: The items.
        run: Runs one batch. It may be called again with a part of the same items, so that what it
            keeps must be in its result alone.
        batch_size: Items in a batch.
        refuse: Called where one item alone is too much; it raises the error, or leaves the item
            out, and the next ones run in batches of the given size again.

    Yields:
        Each batch and its result, in the order of the items.

    """
    first, size, failed = 0, batch_size, 0
    while first < len(items):
        batch = items[first : first + size]
        try:
            result = run(batch)
        except Exception as error:
            if isinstance(error, OutOfMemoryError) or not is_out_of_memory(error):
                raise
            make_room_after(error)
            own = out_of_memory(error)
        else:
            if failed:
                logger.warning("out of memory with %d at once; going on with %d", failed, size)
                failed = 0
            yield batch, result
            first += len(batch)
            continue
        if len(batch) > 1:
            failed, size = failed or len(batch), -(-len(batch) // 2)
        else:
            refuse(batch[0], own)
            first, size, failed = first + 1, batch_size, 0


@contextlib.contextmanager
def out_of_memory_in_one_line() -> Iterator[None]:
    """Where memory runs out in a ``with`` block, raises our own error.

    Raises:
        OutOfMemoryError: The block's own, or in the place of any other that says so.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OutOfMemoryError) or not is_out_of_memory(error):
            raise
        make_room_after(error)
        raise out_of_memory(error) from error


def out_of_memory(error: BaseException) -> OutOfMemoryError:
    """Our own error for one that `is_out_of_memory`, in one line."""
    asked = _ASKED.search(str(error))
    wanted = f" ({asked[1]} were asked for)" if asked else ""
    return OutOfMemoryError(
        f"memory ran out{wanted}, and nothing was changed; shorten the prompts, use fewer context "
        "templates, load the model in bfloat16, or end other programs"
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was raised from.

    Its context is left out: that may be an error which the caller is handling, as in a second try.
    """
    link: BaseException | None = error
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        yield link
        seen.add(id(link))
        link = link.__cause__


def _says_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RuntimeError):
        text = str(error).lower()
        return isinstance(error, torch.OutOfMemoryError) or any(part in text for part in _MESSAGES)
    return isinstance(error, MemoryError)


def _system_bytes() -> int:
    try:
        return _numbers(_PROC / "meminfo")["MemAvailable:"] * 1024
    except (OSError, KeyError):  # no Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cgroup_bytes() -> Iterator[int]:
    """What the limits of the process's control group and those around it leave."""
    try:
        lines = (_PROC / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        version_1 = "memory" in controllers.split(",")
        if controllers and not version_1:
            continue
        root = _CGROUPS / "memory" if version_1 else _CGROUPS
        own = root / path.lstrip("/")
        for folder in (own, *own.parents):
            if folder.is_relative_to(root):
                yield from _group_bytes(folder, *_CGROUP_FILES[version_1])


def _group_bytes(folder: Path, limit: str, usage: str, cached: str) -> Iterator[int]:
    try:
        most, used = ((folder / name).read_text().strip() for name in (limit, usage))
        files = _numbers(folder / "memory.stat").get(cached, 0)
    except OSError:  # the root has no limit; in a container the path may be the host's
        return
    if most != "max":
        yield int(most) - int(used) + files


def _numbers(path: Path) -> dict[str, int]:
    """The lines ``name number …`` of a file of the kernel."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdigit()}
