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


@pytest.fixture(params=["native", "reference"])
def path(request, monkeypatch):
    """Both implementations on the CPU, chosen as a user would."""
    monkeypatch.setenv("EASYEDIT_FAST_KERNELS", request.param)
    return request.param


@pytest.fixture
def threads():
    """Sets the number of torch's threads, and puts the former one back."""
    former = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(former)
