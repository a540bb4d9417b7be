"""The native module itself: its stub, its own checks, the GIL."""

import ast
import re
import threading
import time
from pathlib import Path

import pytest
import torch

import easyedit_fast
from easyedit_fast import _kernels

STUB = Path(easyedit_fast.__path__[0]) / "_kernels.pyi"
KINDS = {"SupportsInt": "int", "bool": "bool", "str": "str", "Annotated": "tuple[int, int]"}


def stub_members():
    members = {}
    for node in ast.parse(STUB.read_text()).body:
        if isinstance(node, ast.AnnAssign):
            members[node.target.id] = "value"
        elif isinstance(node, ast.FunctionDef):
            assert not node.args.args
            arguments = [(a.arg, ast.unparse(a.annotation)) for a in node.args.kwonlyargs]
            members[node.name] = (arguments, ast.unparse(node.returns))
    return members


def module_members():
    members = {}
    for name, value in vars(_kernels).items():
        if name.startswith("_"):
            continue
        members[name] = described(value) if callable(value) else "value"
    return members


def described(function):
    """Arguments and result of a function, from the signature that pybind11 writes."""
    signature, result = re.fullmatch(r"\w+\((.*)\) -> (\S+)\n", function.__doc__).groups()
    arguments = re.findall(r"(\w+): (?:typing\.)?(\w+)", signature)
    assert signature.startswith("*, ") == bool(arguments)
    return [(name, KINDS[kind]) for name, kind in arguments], result


def test_the_stub_is_the_module():
    assert stub_members() == module_members()


def test_null_and_wrong_layouts_are_refused_by_name():
    moment = {"rows": 2, "columns": 3, "row_stride": 3, "column_stride": 1, "dtype": 0}
    with pytest.raises(ValueError, match=r"out \[d, d\] and x \[n, d\] must not be null"):
        _kernels.second_moment_cpu(out=0, x=0, **moment, mask=0, mask_stride=0, threads=1)
    with pytest.raises(ValueError, match=r"out must be \[d, d\] with d >= 0"):
        _kernels.symmetrise_cpu(out=0, size=-1, threads=1)
    weight = torch.zeros(4, 6)
    address = weight.data_ptr()
    update = {"weight": address, "rows": 4, "columns": 3, "rank": 1, "seed": 0, "threads": 1}
    update |= {"output_factor": address, "output_factor_strides": (1, 1)}
    update |= {"input_factor": address, "input_factor_strides": (1, 1), "check_first": True}
    with pytest.raises(ValueError, match=r"weight \[m, n\] must have a stride of 1"):
        _kernels.rank_update_cpu(**update, weight_strides=(6, 2), dtype=0, rounding=0)
    with pytest.raises(ValueError, match="rounding must be 0"):
        _kernels.rank_update_cpu(**update, weight_strides=(6, 1), dtype=0, rounding=2)
    with pytest.raises(ValueError, match="dtype must be 0"):
        _kernels.rank_update_cpu(**update, weight_strides=(6, 1), dtype=9, rounding=0)


def test_a_path_that_the_processor_lacks_is_refused():
    assert _kernels.cpu_path() == _kernels.cpu_paths()[-1]
    with pytest.raises(ValueError, match="this processor has no path 'sse9'"):
        _kernels.use_cpu_path(name="sse9")


def test_the_gil_is_free_during_the_work():
    x = torch.ones(12_000, 700)
    out = torch.zeros(700, 700)
    started, times = threading.Event(), []

    def work():
        arguments = {"rows": x.shape[0], "columns": x.shape[1], "row_stride": x.stride(0)}
        arguments |= {"column_stride": 1, "dtype": 0, "mask": 0, "mask_stride": 0, "threads": 1}
        started.set()
        begin = time.perf_counter()
        _kernels.second_moment_cpu(out=out.data_ptr(), x=x.data_ptr(), **arguments)
        times.extend([begin, time.perf_counter()])

    worker = threading.Thread(target=work)
    worker.start()
    assert started.wait(10)
    ticks = [time.perf_counter()]
    while worker.is_alive():
        time.sleep(0.001)
        ticks.append(time.perf_counter())
    worker.join()
    during = [tick for tick in ticks if times[0] < tick < times[1]]
    # With the GIL held, this thread could wake only at the very beginning.
    assert max(during, default=0) > times[0] + (times[1] - times[0]) / 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card, so the launch would run")
def test_without_a_card_the_real_reason_comes():
    weight = torch.zeros(4, 4)
    address = weight.data_ptr()
    with pytest.raises(RuntimeError, match=r"cudaGetDevice: .+|has no CUDA part"):
        _kernels.symmetrise_cuda(out=address, size=4, device=0, stream=0)
    assert torch.equal(weight, torch.zeros(4, 4))
