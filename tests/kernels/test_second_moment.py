"""second_moment_ and symmetrise_ on the CPU: native code and reference under the same tests."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from easyedit_fast import kernels
from tests.kernels.accuracy import FLOATS, check_second_moment, dtype_name

SHAPES = [(1, 1), (1, 3), (3, 1), (7, 129), (129, 7), (151, 129), (300, 151), (1000, 25)]


def random_case(n, d, dtype, *, masked=False):
    """Start [d, d], x [n, d] with odd strides, mask [n] or None."""
    generator = torch.Generator().manual_seed(n * 1000 + d)
    start = torch.randn(d, d, generator=generator)
    x = torch.randn(n, d + 5, generator=generator).to(dtype)[:, 2 : d + 2]
    mask = torch.rand(n, generator=generator) > 0.4 if masked else None
    return start, x, mask


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_name)
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_values(path, n, d, dtype, masked):
    start, x, mask = random_case(n, d, dtype, masked=masked)
    out = start.clone()
    assert kernels.second_moment_(out, x, mask) is out
    check_second_moment(out, start, x, mask)


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    n=st.integers(0, 90), d=st.integers(1, 60), dtype=st.sampled_from(FLOATS), masked=st.booleans()
)
def test_any_shape(path, n, d, dtype, masked):
    start, x, mask = random_case(n, d, dtype, masked=masked)
    out = start.clone()
    kernels.second_moment_(out, x, mask)
    check_second_moment(out, start, x, mask)


@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_name)
@pytest.mark.parametrize("view", ["transposed", "steps", "broadcast"])
def test_strided_views(path, view, dtype):
    base = torch.randn(60, 80, generator=torch.Generator().manual_seed(1)).to(dtype)
    x = {"transposed": base.T, "steps": base[::3, 1::2], "broadcast": base[:1].expand(40, 80)}[view]
    start = torch.zeros(x.shape[1], x.shape[1])
    out = start.clone()
    kernels.second_moment_(out, x)
    check_second_moment(out, start, x, None)


def test_many_rows_keep_the_error_small(path):
    x = torch.randn(40_000, 8, generator=torch.Generator().manual_seed(2)) + 1
    start = torch.zeros(8, 8)
    out = start.clone()
    kernels.second_moment_(out, x)
    check_second_moment(out, start, x, None)


def test_a_mask_is_the_same_as_leaving_rows_out(path):
    start, x, mask = random_case(300, 50, torch.bfloat16, masked=True)
    masked, selected = start.clone(), start.clone()
    kernels.second_moment_(masked, x, mask)
    kernels.second_moment_(selected, x[mask])
    assert torch.equal(masked, selected)


def test_masked_rows_may_hold_nan(path):
    x = torch.tensor([[1.0, 2.0], [torch.nan, torch.inf], [3.0, 4.0]])
    out = torch.zeros(2, 2)
    kernels.second_moment_(out, x, torch.tensor([True, False, True]))
    assert out.tolist() == [[10.0, 0.0], [14.0, 20.0]]


def test_mask_with_strides(path):
    mask = torch.tensor([True, False, False, True, True, False])[::2]
    out = torch.zeros(1, 1)
    kernels.second_moment_(out, torch.tensor([[1.0], [2.0], [4.0]]), mask)
    assert out.item() == 17.0


@pytest.mark.parametrize(("n", "d"), [(0, 5), (5, 0), (0, 0)])
def test_empty(path, n, d):
    out = torch.ones(d, d)
    kernels.second_moment_(out, torch.ones(n, d))
    kernels.symmetrise_(out)
    assert torch.equal(out, torch.ones(d, d))


def test_all_rows_masked(path):
    out = torch.ones(3, 3)
    kernels.second_moment_(out, torch.ones(4, 3), torch.zeros(4, dtype=torch.bool))
    assert torch.equal(out, torch.ones(3, 3))


@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_name)
def test_native_bits_do_not_depend_on_the_number_of_threads(monkeypatch, threads, dtype):
    monkeypatch.setenv("EASYEDIT_FAST_KERNELS", "native")
    start, x, mask = random_case(517, 151, dtype, masked=True)
    results = []
    for count in (1, 2, 3, 5):
        threads(count)
        out = start.clone()
        kernels.second_moment_(out, x, mask)
        kernels.symmetrise_(out)
        results.append(out)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("d", [1, 3, 31, 32, 33, 151, 300])
def test_symmetrise(path, d):
    start = torch.randn(d, d, generator=torch.Generator().manual_seed(d))
    out = start.clone()
    assert kernels.symmetrise_(out) is out
    assert torch.equal(out, out.T)
    assert torch.equal(out.tril(), start.tril())


def test_symmetrise_copies_without_arithmetic(path):
    out = torch.tensor([[1.0, 5.0], [torch.inf, 2.0]])
    kernels.symmetrise_(out)
    assert out.tolist() == [[1.0, torch.inf], [torch.inf, 2.0]]
