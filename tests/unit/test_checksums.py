"""Checksums of weights: every bit counts, and nothing else does."""

from __future__ import annotations

import pytest
import torch

from easyedit_fast.models.checksums import bits_of, weight_checksum


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(6, 8), (6, 7), (5,), (8,), (2, 3, 4), (300, 2)])
def test_every_bit_changes_it(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    whole = weight_checksum(weight)
    assert weight_checksum(weight.clone()) == whole
    flat = bits_of(weight).view(-1)
    for place in range(0, flat.numel(), max(1, flat.numel() // 11)):
        for bit in (0, 3, 8 * weight.element_size() - 1):
            mask = torch.tensor(1, dtype=torch.int64) << bit
            before = flat[place].clone()
            flat[place] = (before.long() ^ mask).to(flat.dtype)
            assert weight_checksum(weight) != whole, (place, bit)
            flat[place] = before
    assert weight_checksum(weight) == whole


def test_how_a_weight_lies_does_not_change_it() -> None:
    buffer = torch.randn(1 + 6 * 8)
    weight = buffer[1:].view(6, 8)
    assert weight_checksum(weight) == weight_checksum(weight.clone())
    turned = weight.T.contiguous().T
    assert weight_checksum(turned) == weight_checksum(weight)


def test_roundings_that_cancel_in_the_whole_are_seen() -> None:
    weight = torch.ones(4, 8)
    whole = weight_checksum(weight)
    bits = bits_of(weight)
    bits[0, 0] += 1
    bits[1, 0] -= 1
    assert weight_checksum(weight) != whole
