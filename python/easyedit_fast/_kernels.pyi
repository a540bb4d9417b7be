"""Types of the C++ module; `tests/kernels/test_native_module.py` holds them to the module itself.

Tensors come as addresses, shapes and strides in elements; the caller keeps the memory alive.
"""

VERSION: str
CUDA_BUILT: bool
CUDA_TARGETS: tuple[str, ...]

def cpu_features() -> list[str]: ...
def cpu_path() -> str: ...
def cpu_paths() -> list[str]: ...
def use_cpu_path(*, name: str) -> None: ...
def second_moment_cpu(
    *,
    out: int,
    x: int,
    rows: int,
    columns: int,
    row_stride: int,
    column_stride: int,
    dtype: int,
    mask: int,
    mask_stride: int,
    threads: int,
) -> None: ...
def second_moment_cuda(
    *,
    out: int,
    x: int,
    rows: int,
    columns: int,
    row_stride: int,
    column_stride: int,
    dtype: int,
    mask: int,
    mask_stride: int,
    device: int,
    stream: int,
) -> None: ...
def symmetrise_cpu(*, out: int, size: int, threads: int) -> None: ...
def symmetrise_cuda(*, out: int, size: int, device: int, stream: int) -> None: ...
def rank_update_cpu(
    *,
    weight: int,
    rows: int,
    columns: int,
    weight_strides: tuple[int, int],
    dtype: int,
    output_factor: int,
    output_factor_strides: tuple[int, int],
    input_factor: int,
    input_factor_strides: tuple[int, int],
    rank: int,
    rounding: int,
    seed: int,
    check_first: bool,
    threads: int,
) -> bool: ...
def rank_update_cuda(
    *,
    weight: int,
    rows: int,
    columns: int,
    weight_strides: tuple[int, int],
    dtype: int,
    output_factor: int,
    output_factor_strides: tuple[int, int],
    input_factor: int,
    input_factor_strides: tuple[int, int],
    rank: int,
    rounding: int,
    seed: int,
    status: int,
    device: int,
    stream: int,
) -> None: ...
