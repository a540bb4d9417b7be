"""Tests of the emulator itself: the real kernels with one fault each, which must be found."""

import pytest
import torch

from tests.kernels.accuracy import check_rank_update, check_second_moment, random_rank_update
from tests.kernels.emulation import EmulatorError, RefusedError

TILE = "common/tile.cuh"
SECOND_MOMENT = "second_moment/second_moment_cuda.cu"
RANK_UPDATE = "rank_update/rank_update_cuda.cu"


def check_kernels(emulator):
    """What a kernel with any fault below must fail: values, bounds, refusal, in both orders."""
    for emulator.backward in (False, True):
        for emulator.at_end in (True, False):
            check_moments(emulator)
            check_updates(emulator)


def check_moments(emulator):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(37, 67, generator=generator)
    start = torch.randn(67, 67, generator=generator)
    out = start.clone()
    emulator.second_moment_(out, x)
    check_second_moment(out, start, x, None)
    lower = out.clone()
    emulator.symmetrise_(out)
    assert torch.equal(out, out.T)
    assert torch.equal(out.tril(), lower.tril())


def check_updates(emulator):
    _, weight, output_factor, input_factor = random_rank_update(66, 70, 35, torch.float32)
    weight, output_factor = weight.contiguous(), output_factor.contiguous()
    input_factor = input_factor.contiguous()
    before = weight.clone()
    emulator.rank_update_(weight, output_factor, input_factor)
    check_rank_update(weight, before, output_factor, input_factor)
    weight[-1, -1] = torch.inf
    before = weight.clone()
    with pytest.raises(RefusedError):
        emulator.rank_update_(weight, output_factor, input_factor)
    assert torch.equal(weight, before)


def test_the_kernels_themselves_pass(emulated_build):
    check_kernels(emulated_build.emulator)


# name: (file, what is there, what stands there instead, what must be raised)
FAULTS = {
    "barrier_before_reading_removed": (
        TILE,
        "__syncthreads();  // the chunks are whole before anyone reads them",
        "",
        AssertionError,
    ),
    "barrier_before_overwriting_removed": (
        TILE,
        "__syncthreads();  // everyone has read them before they are overwritten",
        "",
        AssertionError,
    ),
    "barrier_of_symmetrise_removed": (
        SECOND_MOMENT,
        "__syncthreads();  // the tile is whole before its columns are read",
        "",
        AssertionError,
    ),
    "barrier_of_one_warp_only": (
        TILE,
        "__syncthreads();  // the chunks are whole before anyone reads them",
        "if (threadIdx.x < 32) __syncthreads();",
        EmulatorError,
    ),
    "tile_off_by_one": (
        SECOND_MOMENT,
        "const int64_t column = tile.column * kTile + column_of(c);",
        "const int64_t column = tile.column * kTile + column_of(c) + 1;",
        AssertionError,
    ),
    "last_tile_forgotten": (
        SECOND_MOMENT,
        "(size + tile - 1) / tile;",
        "size / tile;",
        AssertionError,
    ),
    "tile_columns_off_by_one": (
        RANK_UPDATE,
        "const int64_t tile_columns = (params.columns + kTile - 1) / kTile;",
        "const int64_t tile_columns = (params.columns + kTile - 1) / kTile + 1;",
        AssertionError,
    ),
    "row_read_out_of_bounds": (
        SECOND_MOMENT,
        "row < params.rows &&",
        "row <= params.rows &&",
        EmulatorError,
    ),
    "factor_read_out_of_bounds": (RANK_UPDATE, "k < rank &&", "k <= rank &&", EmulatorError),
    "weight_written_out_of_bounds": (
        RANK_UPDATE,
        "row >= params.rows ||",
        "row > params.rows ||",
        EmulatorError,
    ),
    "shared_memory_read_out_of_bounds": (
        TILE,
        "b[c] = chunks.b[k][column_of(c)]",
        "b[c] = chunks.b[k + 1][column_of(c)]",
        EmulatorError,
    ),
    "refusal_ignored": (
        RANK_UPDATE,
        "if (kPass == Pass::kWrite && *status != 0) return;",
        "",
        AssertionError,
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_a_kernel_is_found(emulated_build, name):
    file, old, new, expected = FAULTS[name]
    mutant = emulated_build.mutant(name, file, old, new)
    with pytest.raises(expected):
        check_kernels(mutant)


def test_a_fault_leaves_the_process_usable(emulated_build):
    name = "factor_read_out_of_bounds"
    mutant = emulated_build.mutant(name, *FAULTS[name][:3])
    factors = torch.ones(5, 3), torch.ones(3, 4)
    for _ in range(3):
        with pytest.raises(EmulatorError, match=r"outside a buffer by thread \d+ of block 0"):
            mutant.rank_update_(torch.zeros(5, 4), *factors)
    check_kernels(emulated_build.emulator)
