"""The door to the native module ``easyedit_fast._kernels``: load it once, choose, call it.

``EASYEDIT_FAST_KERNELS`` is read here and nowhere else: ``auto`` (default) uses native code where
it can and says once why it cannot; ``native`` raises instead; ``reference`` never uses it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import os
import warnings
from types import ModuleType

import torch

from easyedit_fast.errors import HparamsError, NativeModuleError, NonFiniteError
from easyedit_fast.kernels.reference import non_finite_message

VARIABLE = "EASYEDIT_FAST_KERNELS"
CHOICES = ("auto", "native", "reference")
MINIMUM_CAPABILITY = (8, 0)
"""Oldest compute capability that the CUDA kernels are built for."""

# The numbers of csrc/common/dtype.h and csrc/rank_update/rank_update.h.
_DTYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_ROUNDING_CODES = {"nearest": 0, "stochastic": 1}


def choice() -> str:
    """The value of ``EASYEDIT_FAST_KERNELS``.

    Raises:
        HparamsError: The value is unknown.
    """
    value = os.environ.get(VARIABLE, "").strip().lower() or "auto"
    if value not in CHOICES:
        raise HparamsError(
            f"{VARIABLE} must be one of {', '.join(CHOICES)}, not {value!r}; "
            "set one of them, or unset it"
        )
    return value


def package_version() -> str | None:
    """The version of the installed package, or None in a source tree that is not installed."""
    try:
        return importlib.metadata.version("easyedit-fast")
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def load() -> ModuleType | NativeModuleError:
    """The native module, or the reason why there is none; tried once a process."""
    try:
        module = importlib.import_module("easyedit_fast._kernels")
    except ImportError as error:
        return NativeModuleError(
            f"the native module easyedit_fast._kernels cannot be loaded ({error}); "
            "reinstall easyedit-fast, or run `make build` in a source tree"
        )
    expected = package_version()
    found = getattr(module, "VERSION", None)
    if expected is not None and found != expected:
        return NativeModuleError(
            f"easyedit_fast._kernels is of version {found} and the package of {expected}; "
            "reinstall easyedit-fast, or run `make build` in a source tree"
        )
    return module


def unusable(device: torch.device) -> str | None:
    """Why native code cannot serve ``device``, or None where it can."""
    module = load()
    if isinstance(module, NativeModuleError):
        return str(module)
    if device.type == "cpu":
        return None
    if device.type != "cuda" or torch.version.cuda is None:
        return f"there are no native kernels for {device.type} devices of this torch"
    if not module.CUDA_BUILT:
        return "this build of easyedit-fast has no CUDA part"
    capability = torch.cuda.get_device_capability(device)
    if capability < MINIMUM_CAPABILITY:
        needed = ".".join(map(str, MINIMUM_CAPABILITY))
        return (
            f"{torch.cuda.get_device_name(device)} has compute capability "
            f"{capability[0]}.{capability[1]}, and the kernels need {needed}"
        )
    return None


def module_for(device: torch.device) -> ModuleType | None:
    """The native module where it serves ``device``, or None for the reference.

    Raises:
        NativeModuleError: Native code was demanded and cannot be had.
        HparamsError: ``EASYEDIT_FAST_KERNELS`` has an unknown value.
    """
    wanted = choice()
    if wanted == "reference":
        return None
    reason = unusable(device)
    if reason is None:
        module = load()
        assert isinstance(module, ModuleType)
        return module
    if wanted == "native":
        raise NativeModuleError(f"{VARIABLE}=native: {reason}")
    say_once(f"easyedit-fast computes with plain torch on {device.type}: {reason}")
    return None


@functools.cache
def say_once(message: str) -> None:
    """Warn of a message, the first time in this process that it comes up."""
    warnings.warn(message, RuntimeWarning, stacklevel=2)


def second_moment_(
    module: ModuleType, out: torch.Tensor, x: torch.Tensor, mask: torch.Tensor | None
) -> None:
    """Native twin of `reference.second_moment_`."""
    arguments = {
        "out": out.data_ptr(),
        "x": x.data_ptr(),
        "rows": x.shape[0],
        "columns": x.shape[1],
        "row_stride": x.stride(0),
        "column_stride": x.stride(1),
        "dtype": _DTYPE_CODES[x.dtype],
        "mask": 0 if mask is None else mask.data_ptr(),
        "mask_stride": 0 if mask is None else mask.stride(0),
    }
    if out.device.type == "cpu":
        module.second_moment_cpu(**arguments, threads=torch.get_num_threads())
    else:
        module.second_moment_cuda(**arguments, **_cuda_place(out))


def symmetrise_(module: ModuleType, out: torch.Tensor) -> None:
    """Native twin of `reference.symmetrise_`."""
    arguments = {"out": out.data_ptr(), "size": out.shape[0]}
    if out.device.type == "cpu":
        module.symmetrise_cpu(**arguments, threads=torch.get_num_threads())
    else:
        module.symmetrise_cuda(**arguments, **_cuda_place(out))


def rank_update_(
    module: ModuleType,
    weight: torch.Tensor,
    output_factor: torch.Tensor,
    input_factor: torch.Tensor,
    rounding: str,
    seed: int,
    original: torch.Tensor | None,
) -> None:
    """Native twin of `reference.rank_update_`; `original` spares a pass over the weight.

    Raises:
        NonFiniteError: A result would be NaN or infinite; ``weight`` was left as it was.
    """
    arguments = {
        "weight": weight.data_ptr(),
        "rows": weight.shape[0],
        "columns": weight.shape[1],
        "weight_strides": weight.stride(),
        "dtype": _DTYPE_CODES[weight.dtype],
        "output_factor": output_factor.data_ptr(),
        "output_factor_strides": output_factor.stride(),
        "input_factor": input_factor.data_ptr(),
        "input_factor_strides": input_factor.stride(),
        "rank": output_factor.shape[1],
        "rounding": _ROUNDING_CODES[rounding],
        "seed": seed,
    }
    if weight.device.type == "cpu":
        finite = module.rank_update_cpu(
            **arguments, check_first=original is None, threads=torch.get_num_threads()
        )
        if not finite and original is not None:
            weight.copy_(original)
    else:
        status = torch.zeros(1, dtype=torch.int32, device=weight.device)
        module.rank_update_cuda(**arguments, status=status.data_ptr(), **_cuda_place(weight))
        finite = status.item() == 0
    if not finite:
        raise NonFiniteError(non_finite_message(weight))


def _cuda_place(tensor: torch.Tensor) -> dict[str, int]:
    return {
        "device": tensor.device.index,
        "stream": torch.cuda.current_stream(tensor.device).cuda_stream,
    }
