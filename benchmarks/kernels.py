"""The two CPU kernels against what torch and OpenBLAS offer for the same.

    python benchmarks/kernels.py

- ``second_moment_`` (out += xᵀ x, float32): against ``out.addmm_(x.T, x)`` and scipy's ``ssyrk``
  (of OpenBLAS), which counts a triangle too; on bfloat16 rows against ``torch.mm`` of them, which
  rounds the sum to bfloat16, so that it is less than what is asked for. Rates count the operations
  of the whole square, 2 n d²: a triangle alone would reach twice the processor's peak.
- ``rank_update_`` (weight += output_factor @ input_factor): against an in-place scaling of the
  weight, which reads and writes it once, and against ``addmm_``. Rates count one reading and one
  writing of the weight, the floor of every update. "Without torch's operator" is the call of the
  native module alone, without the checks and the dispatcher that every call from Python meets.

Every way is run in turn with the others; the ratio is the median over the rounds.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import time
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np
import report
import torch
from scipy.linalg import blas
from timing import median_ratio

from easyedit_fast import _kernels
from easyedit_fast.kernels import native, rank_update_, second_moment_

_ROWS = {1536: 4096, 4096: 2048}  # of x, by its columns
_WEIGHTS = [(576, 1536), (4096, 14336)]  # the demo model's, and that of an 8B Llama
_RANKS = [1, 8]
_PAUSE = 0.05  # seconds
_COLUMNS = ["kernel", "size", "dtype", "way", "milliseconds", "rate", "ours is faster by"]


def main() -> None:
    """Parses the options, times all, writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--without-bfloat16",
        action="store_true",
        help="bfloat16 as on processors that have no instructions for it, and nothing else",
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.without_bfloat16:
        _without_bfloat16(options)
        return
    rows = []
    for columns, count in _ROWS.items():
        rows += _second_moment_rows(columns, count, options.rounds)
    for shape in _WEIGHTS:
        for dtype in (torch.float32, torch.bfloat16):
            for rank in _RANKS:
                rows += _rank_update_rows(shape, dtype, rank, options.rounds)
    report.write(
        "kernels",
        "CPU kernels, against torch and OpenBLAS",
        f"python benchmarks/kernels.py --rounds {options.rounds} --threads {options.threads}",
        _COLUMNS,
        rows,
        _notes(options.threads),
    )


def _without_bfloat16(options: argparse.Namespace) -> None:
    """Times bfloat16 rows where torch (oneDNN) and we have AVX-512, or AVX2, and no more."""
    # oneDNN reads it once, so that a second set of instructions takes a second process.
    path = os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE").lower().split("_")[0]
    _kernels.use_cpu_path(name=path)
    rows = []
    for columns, count in _ROWS.items():
        rows += _bfloat16_rows(columns, count, options.rounds)
    for rank in _RANKS:
        rows += _rank_update_rows(_WEIGHTS[-1], torch.bfloat16, rank, options.rounds)
    report.write(
        f"kernels_{path}_bfloat16",
        f"bfloat16 rows on a processor that ends at {path}",
        f"ONEDNN_MAX_CPU_ISA={os.environ['ONEDNN_MAX_CPU_ISA']} python benchmarks/kernels.py "
        f"--without-bfloat16 --rounds {options.rounds} --threads {options.threads}",
        _COLUMNS,
        rows,
        [f"{options.threads} threads; oneDNN and our kernels were held to {path}."],
    )


def _timed(ways: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way, round by round; a way is repeated until it takes 20 ms.

    Each begins after a pause, in which the threads of the last way go to sleep (OpenBLAS's spin on
    a core for a while after a call), and a call that is not counted, which wakes its own.
    """
    repeats = {}
    for name, way in ways.items():
        way()
        start = time.perf_counter()
        way()
        repeats[name] = max(1, round(0.02 / (time.perf_counter() - start)))
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways) if number % 2 == 0 else list(ways)[::-1]:
            time.sleep(_PAUSE)
            ways[name]()
            start = time.perf_counter()
            for _ in range(repeats[name]):
                ways[name]()
            seconds[name].append((time.perf_counter() - start) / repeats[name])
    return seconds


def _on_path(path: str, call: Callable[[], Any]) -> None:
    usual = _kernels.cpu_path()
    _kernels.use_cpu_path(name=path)
    try:
        call()
    finally:
        _kernels.use_cpu_path(name=usual)


def _second_moment_rows(columns: int, count: int, rounds: int) -> list[list[str]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, columns, generator=generator)
    out = torch.zeros(columns, columns)
    for_blas = np.zeros((columns, columns), dtype=np.float32, order="F")
    ways: dict[str, Callable[[], Any]] = {
        "addmm_": lambda: out.addmm_(x.T, x),
        "ssyrk": lambda: blas.ssyrk(1.0, x.numpy().T, beta=1.0, c=for_blas, overwrite_c=1),
        **{
            f"second_moment_, {path}": functools.partial(
                _on_path, path, lambda: second_moment_(out, x)
            )
            for path in _float_paths()
        },
    }
    rows = _rows(
        "second_moment_", f"{count} × {columns}", "float32", ways, rounds, 2 * count * columns**2
    )
    return rows + _bfloat16_rows(columns, count, rounds)


def _bfloat16_rows(columns: int, count: int, rounds: int) -> list[list[str]]:
    rounded = torch.randn(count, columns, generator=torch.Generator().manual_seed(0)).bfloat16()
    out = torch.zeros(columns, columns)
    best = _kernels.cpu_path()
    ways: dict[str, Callable[[], Any]] = {
        "torch.mm": lambda: rounded.T @ rounded,
        f"second_moment_, {best}": functools.partial(
            _on_path, best, lambda: second_moment_(out, rounded)
        ),
    }
    return _rows(
        "second_moment_", f"{count} × {columns}", "bfloat16", ways, rounds, 2 * count * columns**2
    )


def _float_paths() -> list[str]:
    """Instruction sets with a float32 kernel of their own, but for the plain one."""
    return [path for path in _kernels.cpu_paths() if path in ("avx2", "avx512")]


def _rank_update_rows(
    shape: tuple[int, int], dtype: torch.dtype, rank: int, rounds: int
) -> list[list[str]]:
    generator = torch.Generator().manual_seed(0)
    weight = (0.02 * torch.randn(shape, generator=generator)).to(dtype)
    copy = weight.clone()
    module = native.load()
    assert isinstance(module, ModuleType)
    left = 1e-6 * torch.randn(shape[0], rank, generator=generator)
    right = 1e-6 * torch.randn(rank, shape[1], generator=generator)
    ways: dict[str, Callable[[], Any]] = {
        "mul_": lambda: weight.mul_(1.0),
        "addmm_": lambda: weight.addmm_(left.to(dtype), right.to(dtype)),
        "rank_update_, checked first": lambda: rank_update_(weight, left, right),
        "without torch's operator": lambda: native.rank_update_(
            module, weight, left, right, "nearest", 0, copy
        ),
        "rank_update_, original given": lambda: rank_update_(weight, left, right, original=copy),
    }
    size = f"{shape[0]} × {shape[1]}, rank {rank}"
    moved = 2 * weight.numel() * weight.element_size()
    name = str(dtype).removeprefix("torch.")
    return _rows("rank_update_", size, name, ways, rounds, moved)


def _rows(
    kernel: str,
    size: str,
    dtype: str,
    ways: Mapping[str, Callable[[], Any]],
    rounds: int,
    amount: int,
) -> list[list[str]]:
    """A row a way; `amount` is in operations or bytes."""
    seconds = _timed(ways, rounds)
    ours = seconds[list(ways)[-1]]
    unit = "GFLOP/s" if kernel == "second_moment_" else "GB/s"
    rows = []
    for name, times in seconds.items():
        low, middle, high = (
            1e3 * value for value in (min(times), statistics.median(times), max(times))
        )
        rate = f"{amount / middle / 1e6:,.0f} {unit}"
        ratio = "" if times is ours else f"{median_ratio(times, ours):.2f}×"
        rows.append(
            [kernel, size, dtype, name, f"{middle:.3f} ({low:.3f} – {high:.3f})", rate, ratio]
        )
        print(" | ".join(rows[-1]), flush=True)
    return rows


def _notes(threads: int) -> list[str]:
    paths = ", ".join(_kernels.cpu_paths())
    return [
        f"{threads} threads; instruction sets of this processor: {paths}.",
        (
            "second_moment_ adds into float32 whatever the rows are. rank_update_ rounds once, and "
            "never leaves NaN or infinity in a weight: it looks before it writes, or restores the "
            "original that it is given, as where an edit is applied."
        ),
    ]


if __name__ == "__main__":
    main()
