"""The kernels in plain torch: the fallback, the oracle of the tests and the baseline to beat.

Every function here has the same name, arguments and result as its native twin. All arithmetic is
in float32 and outside autocast.
"""

from __future__ import annotations

import torch

from easyedit_fast.errors import NonFiniteError

ROWS_PER_BLOCK = 4096
"""Rows of activations that are converted to float32 and multiplied at a time."""

_ELEMENTS_PER_BLOCK = 1 << 20
_WORD = 0xFFFFFFFF

# Philox2x32-10: multiplier, Weyl increment and rounds of Salmon, Moraes, Dror and Shaw, "Parallel
# random numbers: as easy as 1, 2, 3" (SC 2011), table 2.
_PHILOX_MULTIPLIER = 0xD256D193
_PHILOX_WEYL = 0x9E3779B9
_PHILOX_ROUNDS = 10


def second_moment_(out: torch.Tensor, x: torch.Tensor, mask: torch.Tensor | None = None) -> None:
    """Add xᵀx over the unmasked rows to the lower triangle of ``out``.

    Args:
        out: Sum so far [d, d], float32. The strict upper triangle stays as it is.
        x: Activations [n, d], float32, float16 or bfloat16.
        mask: Rows to count [n], bool, or None for all.
    """
    rows = x if mask is None else x[mask]
    with torch.autocast(out.device.type, enabled=False):
        for block in rows.split(ROWS_PER_BLOCK):
            block32 = block.to(torch.float32)
            out.add_((block32.mT @ block32).tril_())


def symmetrise_(out: torch.Tensor) -> None:
    """Copy the lower triangle of ``out`` [d, d] onto its upper one."""
    index = torch.arange(out.shape[0], device=out.device)
    out.copy_(torch.where(index[:, None] < index, out.mT, out))


def rank_update_(
    weight: torch.Tensor,
    output_factor: torch.Tensor,
    input_factor: torch.Tensor,
    rounding: str = "nearest",
    seed: int = 0,
) -> None:
    """Add output_factor @ input_factor to ``weight``: float32 sum, rounded once.

    Args:
        weight: Weight [m, n], float32, float16 or bfloat16.
        output_factor: Left factor [m, k], float32.
        input_factor: Right factor [k, n], float32.
        rounding: ``"nearest"`` (ties to even) or ``"stochastic"``.
        seed: Seed of the stochastic rounding.

    Raises:
        NonFiniteError: A result would be NaN or infinite; ``weight`` was left as it was.
    """
    with torch.autocast(weight.device.type, enabled=False):
        updated = torch.addmm(weight.to(torch.float32), output_factor, input_factor)
    if rounding == "stochastic":
        updated = stochastic_round(updated, weight.dtype, seed)
    rounded = updated.to(weight.dtype)
    if not bool(torch.isfinite(rounded).all()):
        raise NonFiniteError(non_finite_message(weight))
    weight.copy_(rounded)


def non_finite_message(weight: torch.Tensor) -> str:
    """One line for a refused update of ``weight`` [m, n]."""
    return (
        f"rank_update_: the updated {str(weight.dtype).removeprefix('torch.')} weight "
        f"{list(weight.shape)} would hold NaN or infinity, so it was left as it was; check the "
        "weight and the factors, or use a wider dtype"
    )


def random_words(index: torch.Tensor, seed: int) -> torch.Tensor:
    """Random 32-bit words by counter: Philox2x32-10, first output word.

    The counter is (low word of the index, high word of the index xor high word of the seed) and
    the key is the low word of the seed, so a word depends on the index and the seed alone.

    Args:
        index: Element numbers, row by row, int64, any shape.
        seed: Any 64-bit integer.

    Returns:
        Words in [0, 2³²), int64, shape of ``index``.
    """
    low = index & _WORD
    high = ((index >> 32) & _WORD) ^ ((seed >> 32) & _WORD)
    key = seed & _WORD
    for _ in range(_PHILOX_ROUNDS):
        # The 64-bit product may wrap into the sign bit; its bits are right all the same.
        product = low * _PHILOX_MULTIPLIER
        low = ((product >> 32) & _WORD) ^ key ^ high
        high = product & _WORD
        key = (key + _PHILOX_WEYL) & _WORD
    return low


def stochastic_round(values: torch.Tensor, dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Round to one of the two neighbours in ``dtype``, the nearer one more often.

    A value goes up with the probability (value - lower) / (upper - lower), so the expected result
    is the value itself. float32 has nothing to round.

    Args:
        values: Values [m, n], float32.
        dtype: float32, float16 or bfloat16.
        seed: Seed of the noise; the noise of an element also depends on its number, row by row.

    Returns:
        Float32 values [m, n] that ``dtype`` holds exactly (or that overflow in it).
    """
    if dtype == torch.float32 or values.numel() == 0:
        return values
    round_block = _round_to_bfloat16 if dtype == torch.bfloat16 else _round_to_float16
    flat = values.reshape(-1)
    rounded = torch.empty_like(flat)
    for start in range(0, flat.numel(), _ELEMENTS_PER_BLOCK):
        block = flat[start : start + _ELEMENTS_PER_BLOCK]
        index = torch.arange(start, start + block.numel(), device=flat.device)
        noise = random_words(index, seed)
        rounded[start : start + _ELEMENTS_PER_BLOCK] = torch.where(
            torch.isfinite(block), round_block(block, noise), block
        )
    return rounded.reshape(values.shape)


def _drop_bits(values: torch.Tensor, noise: torch.Tensor, bits: int) -> torch.Tensor:
    """Add noise below the last kept bit of float32 ``values``, then cut ``bits`` bits."""
    word = values.view(torch.int32) + (noise >> (32 - bits)).to(torch.int32)
    return (word & -(1 << bits)).view(torch.float32)


def _round_to_bfloat16(values: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    return _drop_bits(values, noise, 16)


def _round_to_float16(values: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    # Below 2⁻¹⁴ the spacing of float16 is 2⁻²⁴ and no longer follows the exponent.
    scaled = values.abs() * 2.0**24
    floor = scaled.floor()
    up = (noise >> 8).to(torch.float32) * 2.0**-24 < scaled - floor
    small = torch.copysign((floor + up) * 2.0**-24, values)
    return torch.where(values.abs() < 2.0**-14, small, _drop_bits(values, noise, 13))
