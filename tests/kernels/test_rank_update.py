"""rank_update_ on the CPU: native code and reference under the same tests."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from easyedit_fast import kernels
from easyedit_fast.errors import NonFiniteError
from easyedit_fast.kernels import reference
from tests.kernels.accuracy import (
    FLOATS,
    check_rank_update,
    dtype_name,
    gap_of,
    random_rank_update,
)

SHAPES = [(1, 1, 1), (1, 7, 3), (7, 1, 3), (3, 129, 1), (129, 151, 70), (97, 130, 300)]
LAYOUTS = pytest.mark.parametrize("transposed", [False, True], ids=["out_in", "in_out"])


def same_bits(a, b):
    """Equality that also holds for NaN and tells 0 from -0."""
    kind = torch.int32 if a.dtype == torch.float32 else torch.int16
    return torch.equal(a.contiguous().view(kind), b.contiguous().view(kind))


@LAYOUTS
@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_name)
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_values(path, m, n, k, dtype, transposed):
    whole, weight, output_factor, input_factor = random_rank_update(
        m, n, k, dtype, transposed=transposed
    )
    before = weight.clone()
    assert kernels.rank_update_(weight, output_factor, input_factor) is weight
    check_rank_update(weight, before, output_factor, input_factor)
    assert gap_of(whole).isnan().all()


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    m=st.integers(1, 60),
    n=st.integers(1, 60),
    k=st.integers(1, 40),
    dtype=st.sampled_from(FLOATS),
    transposed=st.booleans(),
)
def test_any_shape(path, m, n, k, dtype, transposed):
    _, weight, output_factor, input_factor = random_rank_update(
        m, n, k, dtype, transposed=transposed
    )
    before = weight.clone()
    kernels.rank_update_(weight, output_factor, input_factor)
    check_rank_update(weight, before, output_factor, input_factor)


@pytest.mark.parametrize(("m", "n", "k"), [(0, 4, 2), (4, 0, 2), (4, 3, 0), (0, 0, 0)])
def test_empty(path, m, n, k):
    weight = torch.ones(m, n)
    kernels.rank_update_(weight, torch.ones(m, k), torch.ones(k, n))
    assert torch.equal(weight, torch.ones(m, n))


@LAYOUTS
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_name)
def test_native_bits_do_not_depend_on_the_number_of_threads(
    monkeypatch, threads, dtype, rounding, transposed
):
    monkeypatch.setenv("EASYEDIT_FAST_KERNELS", "native")
    results = []
    for count in (1, 2, 3, 5):
        threads(count)
        _, weight, *factors = random_rank_update(301, 260, 5, dtype, transposed=transposed)
        kernels.rank_update_(weight, *factors, rounding=rounding, seed=9)
        results.append(weight)
    assert all(torch.equal(results[0], other) for other in results[1:])


@LAYOUTS
@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_name)
@pytest.mark.parametrize("culprit", ["weight", "output_factor", "input_factor", "overflow"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_non_finite_is_refused_and_nothing_changes(path, culprit, dtype, transposed, rounding):
    _, weight, output_factor, input_factor = random_rank_update(
        90, 70, 3, dtype, transposed=transposed
    )
    # The last row: all before it would have been written by then.
    if culprit == "weight":
        weight[-1, -1] = -torch.inf
    elif culprit == "overflow":
        weight[-1, -1] = torch.finfo(dtype).max
        output_factor[-1] = torch.finfo(dtype).max / 4
        input_factor[:, -1] = 1.0
    else:
        {"output_factor": output_factor, "input_factor": input_factor}[culprit][-1, -1] = torch.nan
    before = weight.clone()
    for original in (None, before):
        with pytest.raises(NonFiniteError, match=r"\[90, 70\] would hold NaN or infinity"):
            kernels.rank_update_(
                weight, output_factor, input_factor, rounding=rounding, original=original
            )
        assert same_bits(weight, before)


@LAYOUTS
@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_name)
def test_an_original_changes_nothing_but_the_time(path, dtype, transposed):
    for m, n, k in SHAPES:
        _, weight, *factors = random_rank_update(m, n, k, dtype, transposed=transposed)
        original = weight.clone()
        other = weight.clone()
        kernels.rank_update_(weight, *factors)
        kernels.rank_update_(other, *factors, original=original)
        assert same_bits(weight, other)
    with pytest.raises(ValueError, match="original must be"):
        kernels.rank_update_(other, *factors, original=original[:-1])
    with pytest.raises(TypeError, match="original"):
        kernels.rank_update_(other, *factors, original=original.double())


def test_the_largest_number_is_no_overflow(path):
    for dtype in FLOATS:
        largest = torch.finfo(dtype).max
        weight = torch.tensor([[largest / 2, 1.0]], dtype=dtype)
        kernels.rank_update_(weight, torch.tensor([[largest / 2]]), torch.tensor([[1.0, 0.0]]))
        assert weight.tolist() == [[largest, 1.0]]


def test_rounds_once_and_to_even(path):
    # 1 + 2⁻⁸ lies halfway between two bfloat16 numbers; the factors need float32.
    weight = torch.tensor([[1.0, 1.0, 1.0]], dtype=torch.bfloat16)
    update = torch.tensor([[2**-8, 2**-8 + 2**-20, 3 * 2**-8]])
    kernels.rank_update_(weight, torch.ones(1, 1), update)
    assert weight.tolist() == [[1.0, 1 + 2**-7, 1 + 2**-6]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=dtype_name)
def test_every_half_number_survives(path, dtype):
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    weight = bits.view(dtype)
    weight = weight[torch.isfinite(weight)].reshape(1, -1)
    before = weight.clone()
    zeros = torch.zeros(1, 1), torch.zeros(1, weight.shape[1])
    for rounding in ("nearest", "stochastic"):
        kernels.rank_update_(weight, *zeros, rounding, 3)
        assert torch.equal(weight, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=dtype_name)
def test_nearest_rounding_is_that_of_torch(path, dtype):
    generator = torch.Generator().manual_seed(5)
    scale = torch.exp2(torch.randint(-30, 15, (1, 4000), generator=generator).float())
    values = torch.randn(1, 4000, generator=generator) * scale
    weight = torch.zeros(1, 4000, dtype=dtype)
    kernels.rank_update_(weight, torch.ones(1, 1), values)
    assert torch.equal(weight, values.to(dtype))


@pytest.mark.parametrize("value", [1.0003, 3e-6, -0.7001, 1e-7])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=dtype_name)
def test_stochastic_rounding_is_unbiased(path, dtype, value):
    count = 200_000
    weight = torch.zeros(1, count, dtype=dtype)
    kernels.rank_update_(weight, torch.ones(1, 1), torch.full((1, count), value), "stochastic", 11)
    levels = weight.unique().double()
    exact = torch.tensor(value, dtype=torch.float32).double()
    assert len(levels) == 2
    assert levels[0] < exact < levels[1]
    probability = (exact - levels[0]) / (levels[1] - levels[0])
    share = (weight.double() == levels[1]).double().mean()
    deviation = (probability * (1 - probability) / count).sqrt()
    assert (share - probability).abs() < 5 * deviation


@LAYOUTS
@pytest.mark.parametrize("dtype", FLOATS, ids=dtype_name)
@pytest.mark.parametrize("seed", [0, 7, -1, 2**63 - 1])
def test_stochastic_noise_is_the_reference_bit_for_bit(monkeypatch, dtype, seed, transposed):
    monkeypatch.setenv("EASYEDIT_FAST_KERNELS", "native")
    # Products of one term with a power of two: both sides then sum to the same float32.
    _, weight, output_factor, input_factor = random_rank_update(
        67, 131, 1, dtype, transposed=transposed
    )
    output_factor.fill_(0.125)
    expected = weight.clone()
    reference.rank_update_(expected, output_factor, input_factor, "stochastic", seed)
    kernels.rank_update_(weight, output_factor, input_factor, "stochastic", seed)
    assert torch.equal(weight, expected)


def test_seed_decides(path):
    _, weight, *factors = random_rank_update(40, 40, 2, torch.bfloat16)
    results = [weight.clone() for _ in range(3)]
    for result, seed in zip(results, (1, 1, 2), strict=True):
        kernels.rank_update_(result, *factors, rounding="stochastic", seed=seed)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_random_words_are_philox():
    # Known answers of Random123 (kat_vectors, philox2x32 10): counter, key, first output word.
    for counter, key, word in [
        ((0, 0), 0, 0xFF1DAE59),
        ((0xFFFFFFFF, 0xFFFFFFFF), 0xFFFFFFFF, 0x2C3F628B),
        ((0x243F6A88, 0x85A308D3), 0x13198A2E, 0xDD7CE038),
    ]:
        # The high counter word comes in through the high word of the seed.
        seed = (counter[1] << 32) | key
        assert reference.random_words(torch.tensor([counter[0]]), seed).item() == word


def test_a_parameter_that_requires_grad_can_be_updated(path):
    weight = torch.nn.Parameter(torch.zeros(3, 2))
    kernels.rank_update_(weight, torch.ones(3, 1), torch.ones(1, 2, requires_grad=True))
    assert weight.tolist() == [[1.0, 1.0]] * 3
    assert weight.requires_grad
    assert weight.is_leaf
