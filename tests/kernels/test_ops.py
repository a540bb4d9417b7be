"""The operators as torch sees them: schemas, fakes, modes, checks of arguments."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from easyedit_fast import kernels
from tests.kernels.accuracy import FLOATS, dtype_name

OPS = torch.ops.easyedit_fast


@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_name)
def test_opcheck_second_moment(path, dtype):
    x = torch.randn(6, 4).to(dtype)
    mask = torch.tensor([True, False, True, True, False, True])
    for arguments in [(x,), (x, mask), (x[:0],), (torch.randn(4, 6).to(dtype).T, mask)]:
        torch.library.opcheck(OPS.second_moment_.default, (torch.zeros(4, 4), *arguments))


def test_opcheck_symmetrise(path):
    torch.library.opcheck(OPS.symmetrise_.default, (torch.randn(5, 5),))


@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_name)
def test_opcheck_rank_update(path, dtype):
    weight = torch.randn(5, 3).to(dtype)
    factors = torch.randn(5, 2), torch.randn(2, 3)
    torch.library.opcheck(OPS.rank_update_.default, (weight, *factors))
    torch.library.opcheck(OPS.rank_update_.default, (weight, *factors, "stochastic", 4))
    factors = torch.randn(3, 2), torch.randn(2, 5)
    torch.library.opcheck(OPS.rank_update_.default, (weight.T, *factors))


def test_an_update_counts_as_a_change_for_autograd(path):
    weight = torch.zeros(2, 2)
    version = weight._version
    kernels.rank_update_(weight, torch.ones(2, 1), torch.ones(1, 2))
    assert weight._version > version


def test_fake_tensors_pass_and_are_checked():
    with FakeTensorMode():
        out, x = torch.empty(4, 4), torch.empty(9, 4)
        assert kernels.symmetrise_(kernels.second_moment_(out, x)) is out
        kernels.rank_update_(torch.empty(3, 4), torch.empty(3, 2), torch.empty(2, 4))
        with pytest.raises(ValueError, match=r"x must be \[n, 4\]"):
            kernels.second_moment_(out, torch.empty(9, 5))


def test_meta_tensors_pass():
    out = kernels.second_moment_(torch.empty(4, 4, device="meta"), torch.empty(9, 4, device="meta"))
    assert out.shape == (4, 4)


def test_autocast_changes_nothing(path):
    x = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    weight, output_factor, input_factor = torch.zeros(50, 50), x[:, :4].contiguous(), x.T[:4]
    plain = torch.zeros(20, 20), weight.clone()
    cast = torch.zeros(20, 20), weight.clone()
    kernels.second_moment_(plain[0], x)
    kernels.rank_update_(plain[1], output_factor, input_factor)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kernels.second_moment_(cast[0], x)
        kernels.rank_update_(cast[1], output_factor, input_factor)
    assert torch.equal(plain[0], cast[0])
    assert torch.equal(plain[1], cast[1])


def test_inference_mode(path):
    with torch.inference_mode():
        out = kernels.second_moment_(torch.zeros(3, 3), torch.ones(2, 3))
        assert out.tolist() == [[2.0, 0.0, 0.0], [2.0, 2.0, 0.0], [2.0, 2.0, 2.0]]


def test_compile_keeps_the_change(path):
    def update(weight, output_factor, input_factor):
        kernels.rank_update_(weight, output_factor, input_factor)
        return weight * 2

    compiled = torch.compile(update, backend="aot_eager", fullgraph=True)
    result = compiled(torch.ones(2, 2), torch.ones(2, 1), torch.ones(1, 2))
    assert result.tolist() == [[4.0, 4.0], [4.0, 4.0]]


D4 = torch.zeros(4, 4)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((D4.double(), torch.zeros(2, 4)), TypeError, "out must be float32, not torch.float64"),
        ((D4, torch.zeros(2, 4).double()), TypeError, "x must be float32, float16, bfloat16"),
        ((D4[:3], torch.zeros(2, 4)), ValueError, r"out must be square \[d, d\], not \[3, 4\]"),
        ((D4.expand(4, 4)[:, :1].expand(4, 4), torch.zeros(2, 4)), ValueError, "contiguous"),
        ((D4, torch.zeros(2, 3)), ValueError, r"x must be \[n, 4\] .* not \[2, 3\]"),
        ((D4, torch.zeros(4)), ValueError, r"x must be \[n, d\], not \[4\]"),
        ((D4, torch.zeros(2, 4), torch.ones(2)), TypeError, "mask must be bool"),
        ((D4, torch.zeros(2, 4), torch.ones(3) > 0), ValueError, r"mask must be \[2\]"),
        ((D4, torch.zeros(2, 4, device="meta")), ValueError, "x must be on cpu, not on meta"),
    ],
)
def test_second_moment_refuses(arguments, kind, message):
    with pytest.raises(kind, match=f"second_moment_: .*{message}"):
        kernels.second_moment_(*arguments)


W = torch.zeros(4, 6)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((W.double(), W[:, :2], W[:2]), TypeError, "weight must be float32, float16, bfloat16"),
        ((W, W[:, :2].half(), W[:2]), TypeError, "output_factor must be float32"),
        ((W, W[:3, :2], W[:2]), ValueError, r"must fit weight \[4, 6\], not \[3, 2\] and \[2, 6\]"),
        ((W, W[:, :2], W[:3]), ValueError, r"must fit weight \[4, 6\]"),
        ((W, W[:, 0], W[:1]), ValueError, r"output_factor must be \[m, k\], not \[4\]"),
        ((W[:, ::2], W[:, :2], W[:2, :3]), ValueError, r"stride of 1 .* not strides \[6, 2\]"),
        ((W[:1].expand(4, 6), W[:, :2], W[:2]), ValueError, "no overlap"),
        ((W, W[:, :2], W[:2], "up"), ValueError, "one of nearest, stochastic, not 'up'"),
    ],
)
def test_rank_update_refuses(arguments, kind, message):
    with pytest.raises(kind, match=f"rank_update_: .*{message}"):
        kernels.rank_update_(*arguments)


def test_symmetrise_refuses():
    with pytest.raises(ValueError, match=r"symmetrise_: out must be square \[d, d\], not \[4, 6\]"):
        kernels.symmetrise_(W)
