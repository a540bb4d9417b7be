import pytest
import torch

from tests.kernels.emulation import Build


@pytest.fixture(scope="session")
def emulated_build(tmp_path_factory):
    """The emulated kernels, compiled once."""
    return Build(tmp_path_factory.mktemp("emulated"))


@pytest.fixture(params=["forward", "backward"])
def emulator(request, emulated_build):
    """The emulated kernels, in both orders; buffers touch a guard page at their end or start."""
    emulated_build.emulator.backward = request.param == "backward"
    emulated_build.emulator.at_end = request.param == "forward"
    return emulated_build.emulator


@pytest.fixture(
    params=["generic", "avx2", "avx512", "avx512_bf16", "amx_bf16", "reference"],
)
def path(request, monkeypatch):
    """Every implementation on the CPU: the native code for each instruction set, the reference."""
    monkeypatch.setenv("EASYEDIT_FAST_KERNELS", "native")
    if request.param == "reference":
        monkeypatch.setenv("EASYEDIT_FAST_KERNELS", "reference")
        yield request.param
        return
    from easyedit_fast import _kernels

    best = _kernels.cpu_path()
    if request.param not in _kernels.cpu_paths():
        pytest.skip(f"this processor has no {request.param}")
    _kernels.use_cpu_path(name=request.param)
    assert _kernels.cpu_path() == request.param
    yield request.param
    _kernels.use_cpu_path(name=best)


@pytest.fixture
def threads():
    """Sets the number of torch's threads, and puts the former one back."""
    former = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(former)
