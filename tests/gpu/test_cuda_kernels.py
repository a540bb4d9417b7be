"""The CUDA kernels on a real card, against the reference and float64."""

import pytest
import torch

from easyedit_fast import kernels
from easyedit_fast.errors import NonFiniteError
from easyedit_fast.kernels import reference
from tests.kernels.accuracy import (
    FLOATS,
    check_rank_update,
    check_second_moment,
    dtype_name,
    gap_of,
    random_rank_update,
)

pytestmark = pytest.mark.gpu
LAYOUTS = pytest.mark.parametrize("transposed", [False, True], ids=["out_in", "in_out"])


@pytest.fixture(autouse=True)
def native_only(monkeypatch):
    monkeypatch.setenv("EASYEDIT_FAST_KERNELS", "native")


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_name)
@pytest.mark.parametrize(("n", "d"), [(1, 1), (3, 7), (151, 129), (5000, 1536)])
def test_second_moment(n, d, dtype, masked):
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, d + 5, generator=generator).to(dtype).cuda()[:, 2 : d + 2]
    mask = torch.rand(n, generator=generator).cuda() > 0.4 if masked else None
    start = torch.randn(d, d, generator=generator).cuda()
    out = start.clone()
    kernels.second_moment_(out, x, mask)
    check_second_moment(out, start, x, mask)
    lower = out.tril()
    kernels.symmetrise_(out)
    assert torch.equal(out, out.T)
    assert torch.equal(out.tril(), lower)


def on_card(m, n, k, dtype, transposed):
    whole, weight, output_factor, input_factor = random_rank_update(
        m, n, k, dtype, transposed=transposed
    )
    whole = whole.cuda()
    columns = m if transposed else n
    view = whole[:, 1 : columns + 1]
    weight = view.T if transposed else view
    return whole, weight, output_factor.cuda(), input_factor.cuda()


@LAYOUTS
@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_name)
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (7, 1, 3), (129, 151, 85), (1536, 576, 40)])
def test_rank_update(m, n, k, dtype, transposed):
    whole, weight, *factors = on_card(m, n, k, dtype, transposed)
    before = weight.clone()
    kernels.rank_update_(weight, *factors)
    check_rank_update(weight, before, *factors)
    assert gap_of(whole).isnan().all()


@LAYOUTS
@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_name)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_non_finite_is_refused_and_nothing_changes(dtype, transposed, rounding):
    _, weight, output_factor, input_factor = on_card(900, 700, 3, dtype, transposed)
    weight[-1, -1] = torch.finfo(dtype).max
    output_factor[-1] = torch.finfo(dtype).max / 4
    input_factor[:, -1] = 1.0
    before = weight.clone()
    with pytest.raises(NonFiniteError):
        kernels.rank_update_(weight, output_factor, input_factor, rounding)
    assert torch.equal(weight, before)


@LAYOUTS
@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_name)
def test_stochastic_noise_is_that_of_the_reference_on_the_cpu(dtype, transposed):
    _, weight, output_factor, input_factor = on_card(167, 131, 1, dtype, transposed)
    output_factor.fill_(0.125)
    expected = weight.cpu()
    reference.rank_update_(expected, output_factor.cpu(), input_factor.cpu(), "stochastic", -5)
    kernels.rank_update_(weight, output_factor, input_factor, "stochastic", -5)
    assert torch.equal(weight.cpu(), expected)


def test_the_same_bits_every_time():
    results = []
    for _ in range(3):
        _, weight, *factors = on_card(700, 900, 70, torch.bfloat16, transposed=False)
        out = torch.zeros(900, 900, device="cuda")
        kernels.second_moment_(out, weight)
        kernels.rank_update_(weight, *factors, rounding="stochastic", seed=1)
        results.append((out, weight))
    for out, weight in results[1:]:
        assert torch.equal(out, results[0][0])
        assert torch.equal(weight, results[0][1])


def test_runs_on_the_current_stream():
    stream = torch.cuda.Stream()
    x = torch.ones(4096, 2048, device="cuda")
    out = torch.zeros(2048, 2048, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        x.mul_(2)
        kernels.second_moment_(out, x)
        total = out[-1, 0].clone()
    stream.synchronize()
    assert total.item() == 4 * 4096
