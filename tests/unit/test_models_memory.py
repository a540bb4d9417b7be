"""How much memory is free, what running out of it looks like, and batches that shrink."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from easyedit_fast.errors import OutOfMemoryError
from easyedit_fast.models import memory
from easyedit_fast.models.memory import available_bytes, is_out_of_memory, run_in_batches

CPU = torch.device("cpu")
TOO_MUCH = 10**15


def caught(function: Any) -> Exception:
    with pytest.raises(Exception) as error:  # noqa: PT011 - any: the test looks at it
        function()
    return error.value


def chained(raised_from: bool) -> None:
    try:
        torch.empty(TOO_MUCH)
    except RuntimeError as error:
        if raised_from:
            raise KeyError("other") from error
        # A second try that fails for a reason of its own.
        raise KeyError("other")  # noqa: B904


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda: torch.empty(TOO_MUCH), True),
        (lambda: np.empty(TOO_MUCH), True),
        (lambda: bytearray(TOO_MUCH * 1000), True),
        (lambda: chained(raised_from=True), True),
        (lambda: chained(raised_from=False), False),
        (lambda: torch.ones(2) @ torch.ones(3), False),
        (lambda: open("/no/such/file"), False),  # noqa: PTH123, SIM115
    ],
)
def test_real_errors_are_told_apart(function: Any, expected: bool) -> None:
    assert is_out_of_memory(caught(function)) is expected


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail] . DefaultCPUAllocator: not enough memory: you tried to"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_errors_of_other_devices_and_releases(error: Exception) -> None:
    assert is_out_of_memory(error)


def test_the_error_is_one_line_with_what_was_asked_for() -> None:
    error = caught(lambda: torch.empty(TOO_MUCH))
    told = str(memory.out_of_memory(error).at(3))
    assert told.startswith("record 3: memory ran out (4000000000000000 bytes were asked for), ")
    assert "\n" not in told


def raised(item: int, error: OutOfMemoryError) -> None:
    raise error.at(item)


class Room:
    """Work that takes more than there is where a batch is larger than `room`."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.tried: list[list[int]] = []
        self.held: list[weakref.ref[torch.Tensor]] = []

    def run(self, batch: Sequence[int]) -> int:
        assert all(held() is None for held in self.held), "the failed attempt is held still"
        self.tried.append(list(batch))
        states = torch.ones(len(batch))
        self.held.append(weakref.ref(states))
        if len(batch) > self.room:
            torch.empty(TOO_MUCH)
        return sum(batch)


def test_running_out_halves_the_batch_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    room = Room(2)
    with caplog.at_level(logging.WARNING, "easyedit_fast"):
        done = list(run_in_batches(range(7), room.run, 64, refuse=raised))
    assert [(list(batch), result) for batch, result in done] == [
        ([0, 1], 1),
        ([2, 3], 5),
        ([4, 5], 9),
        ([6], 6),
    ]
    assert room.tried[:3] == [list(range(7)), [0, 1, 2, 3], [0, 1]]
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory with 7 at once; going on with 2"
    ]


def test_what_is_done_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    room = Room(4)
    done = []
    for batch, _ in run_in_batches(range(12), room.run, 4, refuse=raised):
        done.extend(batch)
        room.room = 3  # less memory from the second batch on
    assert done == list(range(12))
    assert room.tried == [[0, 1, 2, 3], [4, 5, 6, 7], [4, 5], [6, 7], [8, 9], [10, 11]]
    assert "with 4 at once; going on with 2" in caplog.text


def test_one_item_that_is_too_much_is_named() -> None:
    room, done = Room(1), []
    with pytest.raises(OutOfMemoryError, match=r"^record 12: memory ran out") as error:
        for batch, _ in run_in_batches([10, 11, 12, 13], room.run, 1, refuse=raised):
            done.extend(batch)
            room.room = 0 if batch[0] == 11 else 1
    assert (done, error.value.record) == ([10, 11], 12)
    assert isinstance(error.value, MemoryError)


def test_other_errors_are_not_swallowed() -> None:
    def fail(_: Sequence[int]) -> None:
        raise KeyError("other")

    with pytest.raises(KeyError):
        list(run_in_batches(range(4), fail, 2, refuse=raised))


def test_an_inner_errors_record_is_kept() -> None:
    def fail(_: Sequence[int]) -> None:
        raise OutOfMemoryError("no room", record=5)

    with pytest.raises(OutOfMemoryError, match="record 5"):
        list(run_in_batches(range(4), fail, 2, refuse=raised))


def test_available_bytes_are_what_could_be_allocated() -> None:
    available = available_bytes(CPU)
    installed = memory._numbers(Path("/proc/meminfo"))["MemTotal:"] * 1024
    assert 0 < available <= installed


GIB = 2**30


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/job/step\n", {"memory__max": "max\n"}, 16 * GIB),
        ("0::/job/step\n", {"memory__max": f"{4 * GIB}\n"}, 2 * GIB),
        ("1:cpu:/x\n0::/../host\n", {"memory__max": f"{4 * GIB}\n"}, 16 * GIB),
        ("0::/other\n", {"memory__max": f"{4 * GIB}\n"}, 16 * GIB),
    ],
)
def test_the_limits_of_version_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: str, files: dict[str, str], expected: int
) -> None:
    """3 GiB are used, 1 GiB of them cached files."""
    monkeypatch.setattr(memory, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "cgroup")
    write(tmp_path / "proc", meminfo=f"MemTotal: 1 kB\nMemAvailable: {16 * 2**20} kB\n")
    write(tmp_path / "proc" / "self", cgroup=own)
    used = {"memory__current": f"{3 * GIB}\n", "memory__stat": f"anon 7\ninactive_file {GIB}\n"}
    write(tmp_path / "cgroup" / "job", **used, **files)  # the group around the process's own
    write(tmp_path / "cgroup" / "job" / "step", **used, memory__max="max\n")
    assert available_bytes(CPU) == expected


def test_the_limits_of_version_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "cgroup")
    write(tmp_path / "proc", meminfo=f"MemAvailable: {16 * 2**20} kB\n")
    write(tmp_path / "proc" / "self", cgroup="9:cpuset:/\n4:memory:/job\n0::/\n")
    write(
        tmp_path / "cgroup" / "memory" / "job",
        memory__limit_in_bytes=f"{5 * GIB}\n",
        memory__usage_in_bytes=f"{3 * GIB}\n",
        memory__stat=f"cache 9\ntotal_inactive_file {GIB}\n",
    )
    assert available_bytes(CPU) == 3 * GIB
    assert available_bytes(torch.device("meta")) == 3 * GIB


def test_without_proc_the_installed_memory_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_PROC", tmp_path)
    assert available_bytes(CPU) > 2**20


@pytest.mark.gpu
def test_a_real_card_runs_out_and_goes_on() -> None:
    device = torch.device("cuda")
    free = available_bytes(device)
    bytes_each = free // 4

    def run(batch: Sequence[int]) -> float:
        states = torch.empty(bytes_each * len(batch), dtype=torch.uint8, device=device)
        return float(states[:1].float().sum() * 0)

    done = [list(batch) for batch, _ in run_in_batches(range(8), run, 8, refuse=raised)]
    assert [place for batch in done for place in batch] == list(range(8))
    assert max(map(len, done)) <= 4
    assert available_bytes(device) > 0.9 * free
