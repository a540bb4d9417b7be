"""The rule of accuracy: at most twice plain torch's error, both measured against float64."""

import torch

_FEW = 16
FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def dtype_name(value):
    """Readable test ids."""
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype) else None


def assert_error_within_twice(result, plain, exact, magnitude):
    """Holds ``result`` to the error of ``plain``, in the root mean square.

    Where torch is exact by luck, the bound is a rounding of the terms and one of the result. Of few
    elements luck says more than of many: there it is three roundings of the terms. ``magnitude`` is
    the sum of the terms' absolute values, float64, as ``exact``.
    """
    assert result.dtype == plain.dtype
    roundings = 3 if result.numel() <= _FEW else 1
    terms = roundings * magnitude.norm() * torch.finfo(torch.float32).eps / 2
    rounding = (exact.to(result.dtype).double() - exact).norm()
    bound = 2 * max((plain.double() - exact).norm(), terms + rounding)
    assert (result.double() - exact).norm() <= bound


def check_second_moment(result, start, x, mask):
    """Checks out [d, d] after second_moment_ added x [n, d] to ``start``: values and triangle."""
    rows = x if mask is None else x[mask]
    plain = start + rows.float().T @ rows.float()
    exact = start.double() + rows.double().T @ rows.double()
    magnitude = start.double().abs() + rows.double().abs().T @ rows.double().abs()
    assert_error_within_twice(result.tril(), plain.tril(), exact.tril(), magnitude.tril())
    upper = torch.ones_like(result, dtype=torch.bool).triu(1)
    assert torch.equal(result[upper], start[upper])


def check_rank_update(result, weight, output_factor, input_factor):
    """Checks weight [m, n] after rank_update_ with rounding to nearest."""
    plain = torch.addmm(weight.float(), output_factor, input_factor).to(weight.dtype)
    exact = weight.double() + output_factor.double() @ input_factor.double()
    magnitude = weight.double().abs() + output_factor.double().abs() @ input_factor.double().abs()
    assert_error_within_twice(result, plain, exact, magnitude)


def random_rank_update(m, n, k, dtype, *, transposed=False, seed=0):
    """weight [m, n] inside a larger tensor whose other elements are NaN, and its factors.

    Returns:
        The whole tensor, the weight as a view of it, output_factor [m, k], input_factor [k, n].
    """
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (n, m) if transposed else (m, n)
    whole = torch.full((rows, columns + 3), torch.nan, dtype=dtype)
    view = whole[:, 1 : columns + 1]
    view.copy_(torch.randn(rows, columns, generator=generator))
    weight = view.T if transposed else view
    output_factor = torch.randn(k, m, generator=generator).T  # strided on purpose
    input_factor = torch.randn(k, 2 * n, generator=generator)[:, ::2]
    return whole, weight, output_factor, input_factor


def gap_of(whole):
    """The elements of random_rank_update's whole tensor that are no part of the weight."""
    return torch.cat([whole[:, :1], whole[:, -2:]], dim=1)
