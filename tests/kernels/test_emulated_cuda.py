"""The CUDA kernels, compiled against csrc/emulator: tested without a GPU."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from easyedit_fast.kernels import reference
from tests.kernels.accuracy import (
    FLOATS,
    check_rank_update,
    check_second_moment,
    dtype_name,
    gap_of,
    random_rank_update,
)
from tests.kernels.emulation import RefusedError

ANY_SHAPE = settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
LAYOUTS = pytest.mark.parametrize("transposed", [False, True], ids=["out_in", "in_out"])


def random_rows(n, d, dtype, *, masked=False):
    generator = torch.Generator().manual_seed(n * 1000 + d)
    x = torch.full((n, d + 5), torch.nan, dtype=dtype)[:, 2 : d + 2]
    x.copy_(torch.randn(n, d, generator=generator))
    mask = torch.rand(n, generator=generator) > 0.4 if masked else None
    return torch.randn(d, d, generator=generator), x, mask


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_name)
@pytest.mark.parametrize(("n", "d"), [(1, 1), (3, 7), (151, 65), (97, 129)])
def test_second_moment(emulator, n, d, dtype, masked):
    start, x, mask = random_rows(n, d, dtype, masked=masked)
    out = start.clone()
    emulator.second_moment_(out, x, mask)
    check_second_moment(out, start, x, mask)


@ANY_SHAPE
@given(n=st.integers(0, 70), d=st.integers(1, 140), masked=st.booleans())
def test_second_moment_of_any_shape(emulator, n, d, masked):
    start, x, mask = random_rows(n, d, torch.float16, masked=masked)
    out = start.clone()
    emulator.second_moment_(out, x, mask)
    check_second_moment(out, start, x, mask)


def test_second_moment_of_transposed_rows_and_stepped_mask(emulator):
    base = torch.randn(70, 33, generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(66) % 5 > 1)[::2]
    out = torch.zeros(70, 70)
    emulator.second_moment_(out, base.T, mask)
    check_second_moment(out, torch.zeros(70, 70), base.T, mask)


def test_masked_rows_may_hold_nan(emulator):
    x = torch.tensor([[1.0, 2.0], [torch.nan, torch.inf], [3.0, 4.0]])
    out = torch.zeros(2, 2)
    emulator.second_moment_(out, x, torch.tensor([True, False, True]))
    assert out.tolist() == [[10.0, 0.0], [14.0, 20.0]]


@pytest.mark.parametrize("d", [1, 3, 31, 32, 33, 151])
def test_symmetrise(emulator, d):
    start = torch.randn(d, d, generator=torch.Generator().manual_seed(d))
    out = start.clone()
    emulator.symmetrise_(out)
    assert torch.equal(out, out.T)
    assert torch.equal(out.tril(), start.tril())


@LAYOUTS
@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_name)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (7, 1, 3), (65, 129, 1), (130, 67, 85)])
def test_rank_update(emulator, m, n, k, dtype, transposed):
    whole, weight, output_factor, input_factor = random_rank_update(
        m, n, k, dtype, transposed=transposed
    )
    before = weight.clone()
    emulator.rank_update_(weight, output_factor, input_factor)
    check_rank_update(weight, before, output_factor, input_factor)
    assert gap_of(whole).isnan().all()


@ANY_SHAPE
@given(m=st.integers(1, 140), n=st.integers(1, 140), k=st.integers(1, 40), transposed=st.booleans())
def test_rank_update_of_any_shape(emulator, m, n, k, transposed):
    _, weight, *factors = random_rank_update(m, n, k, torch.bfloat16, transposed=transposed)
    before = weight.clone()
    emulator.rank_update_(weight, *factors)
    check_rank_update(weight, before, *factors)


@pytest.mark.parametrize(("m", "n", "k"), [(0, 4, 2), (4, 0, 2), (4, 3, 0)])
def test_rank_update_of_nothing(emulator, m, n, k):
    weight = torch.ones(m, n)
    emulator.rank_update_(weight, torch.ones(m, k), torch.ones(k, n))
    assert torch.equal(weight, torch.ones(m, n))


@LAYOUTS
@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_name)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_non_finite_is_refused_and_nothing_changes(emulator, dtype, transposed, rounding):
    _, weight, output_factor, input_factor = random_rank_update(
        90, 70, 3, dtype, transposed=transposed
    )
    weight[-1, -1] = torch.finfo(dtype).max
    output_factor[-1] = torch.finfo(dtype).max / 4
    input_factor[:, -1] = 1.0
    before = weight.clone()
    with pytest.raises(RefusedError):
        emulator.rank_update_(weight, output_factor, input_factor, rounding)
    assert torch.equal(weight, before)


@LAYOUTS
@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_name)
@pytest.mark.parametrize("seed", [7, -1])
def test_stochastic_noise_is_the_reference_bit_for_bit(emulator, dtype, seed, transposed):
    _, weight, output_factor, input_factor = random_rank_update(
        67, 131, 1, dtype, transposed=transposed
    )
    output_factor.fill_(0.125)
    expected = weight.clone()
    reference.rank_update_(expected, output_factor, input_factor, "stochastic", seed)
    emulator.rank_update_(weight, output_factor, input_factor, "stochastic", seed)
    assert torch.equal(weight, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=dtype_name)
def test_nearest_rounding_is_that_of_torch(emulator, dtype):
    generator = torch.Generator().manual_seed(5)
    scale = torch.exp2(torch.randint(-30, 15, (1, 2000), generator=generator).float())
    values = torch.randn(1, 2000, generator=generator) * scale
    weight = torch.zeros(1, 2000, dtype=dtype)
    emulator.rank_update_(weight, torch.ones(1, 1), values)
    assert torch.equal(weight, values.to(dtype))


def test_the_order_of_threads_does_not_change_a_bit(emulated_build):
    emulator = emulated_build.emulator
    results = []
    for emulator.backward in (False, True):
        _, weight, *factors = random_rank_update(70, 70, 100, torch.float32)
        out = torch.zeros(70, 70)
        emulator.second_moment_(out, weight)
        emulator.rank_update_(weight, *factors)
        results.append((out, weight))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_bad_arguments_are_named(emulator):
    with pytest.raises(Exception, match=r"weight \[m, n\] must have a stride of 1"):
        emulator.rank_update_(torch.zeros(4, 6)[:, ::2], torch.zeros(4, 1), torch.zeros(1, 3))
