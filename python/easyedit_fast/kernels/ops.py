"""The operators ``torch.ops.easyedit_fast.*``: schema, checks, choice of kernel and fake.

Every operator changes a tensor that the caller allocated and returns nothing. The checks run in
the fakes too, so tracing refuses what running would refuse.
"""

from __future__ import annotations

import torch

from easyedit_fast.kernels import native, reference

ROUNDINGS = ("nearest", "stochastic")

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@torch.library.custom_op(
    "easyedit_fast::second_moment_",
    mutates_args=("out",),
    schema="(Tensor(a!) out, Tensor x, Tensor? mask=None) -> ()",
)
def second_moment_(out: torch.Tensor, x: torch.Tensor, mask: torch.Tensor | None = None) -> None:
    """Lower triangle of out [d, d] += xᵀx of the rows of x [n, d] where mask [n] is true."""
    _check_second_moment(out, x, mask)
    if x.numel() == 0:
        return
    module = native.module_for(out.device)
    if module is None:
        reference.second_moment_(out, x, mask)
    else:
        native.second_moment_(module, out, x, mask)


@second_moment_.register_fake
def _second_moment_fake(
    out: torch.Tensor, x: torch.Tensor, mask: torch.Tensor | None = None
) -> None:
    _check_second_moment(out, x, mask)


@torch.library.custom_op(
    "easyedit_fast::symmetrise_", mutates_args=("out",), schema="(Tensor(a!) out) -> ()"
)
def symmetrise_(out: torch.Tensor) -> None:
    """Copy the lower triangle of out [d, d] onto its upper one."""
    _check_moment("symmetrise_", out)
    if out.numel() == 0:
        return
    module = native.module_for(out.device)
    if module is None:
        reference.symmetrise_(out)
    else:
        native.symmetrise_(module, out)


@symmetrise_.register_fake
def _symmetrise_fake(out: torch.Tensor) -> None:
    _check_moment("symmetrise_", out)


@torch.library.custom_op(
    "easyedit_fast::rank_update_",
    mutates_args=("weight",),
    schema='(Tensor(a!) weight, Tensor output_factor, Tensor input_factor, str rounding="nearest", '
    "int seed=0, Tensor? original=None) -> ()",
)
def rank_update_(
    weight: torch.Tensor,
    output_factor: torch.Tensor,
    input_factor: torch.Tensor,
    rounding: str = "nearest",
    seed: int = 0,
    original: torch.Tensor | None = None,
) -> None:
    """Do weight [m, n] += output_factor [m, k] @ input_factor [k, n], rounded once."""
    _check_rank_update(weight, output_factor, input_factor, rounding, original)
    if weight.numel() == 0 or output_factor.shape[1] == 0:
        return
    module = native.module_for(weight.device)
    if module is None:
        reference.rank_update_(weight, output_factor, input_factor, rounding, seed)
    else:
        native.rank_update_(module, weight, output_factor, input_factor, rounding, seed, original)


@rank_update_.register_fake
def _rank_update_fake(
    weight: torch.Tensor,
    output_factor: torch.Tensor,
    input_factor: torch.Tensor,
    rounding: str = "nearest",
    seed: int = 0,  # noqa: ARG001  (the schema's, nothing to check)
    original: torch.Tensor | None = None,
) -> None:
    _check_rank_update(weight, output_factor, input_factor, rounding, original)


def _check_second_moment(out: torch.Tensor, x: torch.Tensor, mask: torch.Tensor | None) -> None:
    _check_moment("second_moment_", out)
    _check_tensor("second_moment_", "x", x, "[n, d]", _FLOATS, out.device)
    if x.shape[1] != out.shape[0]:
        raise ValueError(
            f"second_moment_: x must be [n, {out.shape[0]}] for out {list(out.shape)}, "
            f"not {list(x.shape)}"
        )
    if mask is None:
        return
    _check_tensor("second_moment_", "mask", mask, "[n]", (torch.bool,), out.device)
    if mask.shape[0] != x.shape[0]:
        raise ValueError(
            f"second_moment_: mask must be [{x.shape[0]}] for x {list(x.shape)}, "
            f"not {list(mask.shape)}"
        )


def _check_moment(op: str, out: torch.Tensor) -> None:
    _check_tensor(op, "out", out, "[d, d]", (torch.float32,), out.device)
    if out.shape[0] != out.shape[1]:
        raise ValueError(f"{op}: out must be square [d, d], not {list(out.shape)}")
    if not out.is_contiguous():
        raise ValueError(f"{op}: out must be contiguous, not of strides {list(out.stride())}")


def _check_rank_update(
    weight: torch.Tensor,
    output_factor: torch.Tensor,
    input_factor: torch.Tensor,
    rounding: str,
    original: torch.Tensor | None,
) -> None:
    op = "rank_update_"
    device = weight.device
    if original is not None:
        _check_tensor(op, "original", original, "[m, n]", (weight.dtype,), device)
        if original.shape != weight.shape:
            raise ValueError(
                f"{op}: original must be {list(weight.shape)} as weight is, "
                f"not {list(original.shape)}"
            )
    _check_tensor(op, "weight", weight, "[m, n]", _FLOATS, device)
    _check_tensor(op, "output_factor", output_factor, "[m, k]", (torch.float32,), device)
    _check_tensor(op, "input_factor", input_factor, "[k, n]", (torch.float32,), device)
    rows, columns = weight.shape
    rank = output_factor.shape[1]
    if output_factor.shape[0] != rows or input_factor.shape != (rank, columns):
        raise ValueError(
            f"{op}: output_factor [m, k] and input_factor [k, n] must fit weight "
            f"{[rows, columns]}, not {list(output_factor.shape)} and {list(input_factor.shape)}"
        )
    if rounding not in ROUNDINGS:
        raise ValueError(f"{op}: rounding must be one of {', '.join(ROUNDINGS)}, not {rounding!r}")
    if not _has_plain_layout(weight):
        raise ValueError(
            f"{op}: weight must have a stride of 1 along rows or columns and no overlap, "
            f"not strides {list(weight.stride())} for {[rows, columns]}"
        )


def _has_plain_layout(weight: torch.Tensor) -> bool:
    """Whether weight [m, n] is row-major, or the transpose of such, possibly with a longer row."""
    rows, columns = weight.shape
    row_stride, column_stride = weight.stride()
    row_major = (columns <= 1 or column_stride == 1) and (rows <= 1 or row_stride >= columns)
    column_major = (rows <= 1 or row_stride == 1) and (columns <= 1 or column_stride >= rows)
    return row_major or column_major


def _check_tensor(
    op: str,
    name: str,
    tensor: torch.Tensor,
    shape: str,
    dtypes: tuple[torch.dtype, ...],
    device: torch.device,
) -> None:
    if tensor.dim() != shape.count(",") + 1:
        raise ValueError(f"{op}: {name} must be {shape}, not {list(tensor.shape)}")
    if tensor.dtype not in dtypes:
        accepted = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{op}: {name} must be {accepted}, not {tensor.dtype}")
    if tensor.device != device:
        raise ValueError(f"{op}: {name} must be on {device}, not on {tensor.device}")
