"""What a measurement asks of the devices that hold a model: waiting, peak memory, speed."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from easyedit_fast.timings import Recorder

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): the peak resident size is set to the current one
_MATMUL_SIZE = {"cpu": 1024}
_OTHER_MATMUL_SIZE = 8192
_MATMUL_RUNS = 5


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices of a model.

    Attributes:
        main: Where its inputs go.
        gpus: Its GPUs; empty where it is on the CPU.
    """

    main: torch.device
    gpus: tuple[torch.device, ...]

    @classmethod
    def of(cls, model: torch.nn.Module) -> Devices:
        """The devices that hold the parameters of a model."""
        found = list(dict.fromkeys(weight.device for weight in model.parameters()))
        return cls(found[0], tuple(device for device in found if device.type == "cuda"))

    def settle(self) -> None:
        """Waits until all that was asked of the GPUs is done."""
        for device in self.gpus:
            torch.cuda.synchronize(device)

    def held(self) -> int | None:
        """Bytes in use: by torch on the GPUs, else by the process; None where nothing tells."""
        if self.gpus:
            return sum(torch.cuda.memory_allocated(device) for device in self.gpus)
        _give_back()
        return _status_bytes("VmRSS")

    def reset_peak(self) -> bool:
        """Lets the peak begin anew at what is in use; whether that can be done here."""
        for device in self.gpus:
            torch.cuda.reset_peak_memory_stats(device)
        if self.gpus:
            return True
        _give_back()
        try:
            _CLEAR_REFS.write_text(_RESET_PEAK)
        except OSError:  # no Linux, or a container that forbids it
            return False
        return True

    def peak(self) -> int | None:
        """The most bytes in use since `reset_peak`; None where nothing tells."""
        if self.gpus:
            return sum(torch.cuda.max_memory_allocated(device) for device in self.gpus)
        return _status_bytes("VmHWM")

    def matmul_rate(self, dtype: torch.dtype) -> float:
        """Operations a second of a large square product, the best of some: what is reachable."""
        size = _MATMUL_SIZE.get(self.main.type, _OTHER_MATMUL_SIZE)
        generator = torch.Generator().manual_seed(0)
        left, right = (
            torch.randn(size, size, generator=generator).to(self.main, dtype) for _ in range(2)
        )
        seconds = []
        for _ in range(_MATMUL_RUNS):
            self.settle()
            start = time.perf_counter()
            torch.mm(left, right)
            self.settle()
            seconds.append(time.perf_counter() - start)
        return 2.0 * size**3 / min(seconds)


class PeakRecorder(Recorder):
    """Also notes the peak memory of the outermost spans, under ``peak_memory`` in their details.

    It is counted from what was held when the recorder was made. Resetting it takes time, so that
    times and memory are measured in different runs.
    """

    def __init__(self, devices: Devices) -> None:
        super().__init__(devices.settle)
        self._devices = devices
        self._held = devices.held()

    @contextlib.contextmanager
    def span(self, name: str, details: Mapping[str, Any]) -> Iterator[None]:
        """As `Recorder.span`."""
        outermost = self._depth == 0
        known = outermost and self._held is not None and self._devices.reset_peak()
        with super().span(name, details):
            noted = self.spans[-1]
            yield
        peak = self._devices.peak() if known else None
        if peak is not None and self._held is not None:
            noted.details["peak_memory"] = max(0, peak - self._held)


def _status_bytes(field: str) -> int | None:
    """A size in the process's status file."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    sizes = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(sizes[0]) * 1024 if sizes else None


def _give_back() -> None:
    """Lets the C library hand freed memory back to the system, so that it counts no longer."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
