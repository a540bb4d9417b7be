"""Checksums of weights, which every change of a bit changes."""

from __future__ import annotations

import hashlib

import torch

BITS = {2: torch.int16, 4: torch.int32}
"""The integers of a weight's bit patterns, by its element size."""

_ROWS_AT_ONCE = 256  # the sum casts them to int64


def weight_checksum(parameter: torch.Tensor) -> str:
    """SHA-256 over the sums of the rows' bit patterns.

    Sums of integers are exact, hence the same in whatever order a device takes them. One sum a
    row, since roundings up and down cancel in the sum of a whole weight.

    Args:
        parameter: float32, bfloat16 or float16, of any shape; a vector is one row.
    """
    bits = bits_of(parameter)
    rows = (bits if bits.dim() > 1 else bits[None]).flatten(1).contiguous()
    together = torch.int64.itemsize // bits.element_size()
    if rows.shape[1] % together == 0:
        # Several patterns are one integer; sums that overflow wrap round, and stay exact so.
        aligned = rows if rows.storage_offset() % together == 0 else rows.clone()
        sums = aligned.view(torch.int64).sum(dim=1)
    else:
        blocks = rows.split(_ROWS_AT_ONCE)
        sums = torch.cat([block.sum(dim=1, dtype=torch.int64) for block in blocks])
    return hashlib.sha256(sums.cpu().numpy().tobytes()).hexdigest()


def bits_of(parameter: torch.Tensor) -> torch.Tensor:
    """The weight's bit patterns as integers: of these, equal ones are the same."""
    return parameter.detach().view(BITS[parameter.element_size()])
