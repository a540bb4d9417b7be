"""Kernels: second moments of activations and low-rank updates of weights.

Each function calls an operator ``torch.ops.easyedit_fast.<name>``, which runs native code on the
CPU and on NVIDIA cards from compute capability 8.0 on, and plain torch (`reference`) elsewhere.
``EASYEDIT_FAST_KERNELS`` chooses: ``auto`` (the default), ``native`` or ``reference``.
"""

from __future__ import annotations

import torch

from easyedit_fast.kernels import ops
from easyedit_fast.kernels.status import DeviceStatus, KernelStatus, kernel_status

__all__ = [
    "DeviceStatus",
    "KernelStatus",
    "kernel_status",
    "rank_update_",
    "second_moment_",
    "symmetrise_",
]


def second_moment_(
    out: torch.Tensor, x: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Add the uncentred second moment of activations: out += Σ_t mask_t · x_t x_tᵀ.

    Only the lower triangle of ``out`` is written; call `symmetrise_` once at the end. The sum is
    in float32, block by block of rows, whatever the dtype of ``x``. A masked row may hold NaN.
    Not differentiable.

    Args:
        out: Sum so far [d, d], float32, contiguous.
        x: Activations [n, d], float32, float16 or bfloat16; any strides; n may be 0.
        mask: Rows to count [n], bool, or None for all.

    Returns:
        ``out``.

    Raises:
        TypeError: A tensor has another dtype.
        ValueError: A shape, device or layout does not fit.
        NativeModuleError: ``EASYEDIT_FAST_KERNELS=native`` and the native module cannot be used.
    """
    with torch.no_grad():
        ops.second_moment_(out, x, mask)
    return out


def symmetrise_(out: torch.Tensor) -> torch.Tensor:
    """Copy the lower triangle of a matrix onto its upper one: out_ij = out_ji for i < j.

    Args:
        out: Matrix [d, d], float32, contiguous, as `second_moment_` leaves it.

    Returns:
        ``out``.

    Raises:
        TypeError: ``out`` is not float32.
        ValueError: ``out`` is not square or not contiguous.
        NativeModuleError: ``EASYEDIT_FAST_KERNELS=native`` and the native module cannot be used.
    """
    with torch.no_grad():
        ops.symmetrise_(out)
    return out


def rank_update_(
    weight: torch.Tensor,
    output_factor: torch.Tensor,
    input_factor: torch.Tensor,
    rounding: str = "nearest",
    seed: int = 0,
    original: torch.Tensor | None = None,
) -> torch.Tensor:
    """Add a low-rank update to a weight in place: weight += output_factor @ input_factor.

    The product and the sum are in float32 and rounded once to the dtype of ``weight``. The result
    has the same bits whatever the number of threads. Not differentiable.

    With ``rounding="stochastic"`` a result goes to the upper or the lower neighbour, by a
    probability that makes the expected value exact; the noise of element (i, j) is Philox2x32-10
    of ``seed`` and i·n + j, so it is the same on every device and in every layout. A float32
    weight has nothing to round.

    Args:
        weight: Weight [m, n], float32, float16 or bfloat16; one of its strides is 1 (a Linear's
            weight, or a Conv1D's weight seen through ``.T``).
        output_factor: Left factor [m, k], float32.
        input_factor: Right factor [k, n], float32.
        rounding: ``"nearest"`` (ties to even) or ``"stochastic"``.
        seed: Seed of the stochastic rounding, a 64-bit integer.
        original: A copy of ``weight``, if there is one. It spares the pass over the weight that
            looks for results that are not finite before the first is written: where there are
            any, the weight is restored from it.

    Returns:
        ``weight``.

    Raises:
        NonFiniteError: A result would be NaN or infinite (also by overflow of float16);
            ``weight`` is bit for bit as it was.
        TypeError: A tensor has another dtype.
        ValueError: A shape, device or layout does not fit, or ``rounding`` is unknown.
        NativeModuleError: ``EASYEDIT_FAST_KERNELS=native`` and the native module cannot be used.
    """
    with torch.no_grad():
        ops.rank_update_(weight, output_factor, input_factor, rounding, seed, original)
    return weight
