"""Native code or reference: the choice, its reasons, and what is said about it."""

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch

import easyedit_fast
from easyedit_fast import kernels
from easyedit_fast.errors import HparamsError, NativeModuleError
from easyedit_fast.kernels import native

PACKAGE = Path(easyedit_fast.__path__[0])

# Runs in a copy of the package: each operator twice, and the results against plain torch.
SCRIPT = """
import torch
from easyedit_fast import kernels

x = torch.arange(12.0).reshape(4, 3)
for _ in range(2):
    out = kernels.symmetrise_(kernels.second_moment_(torch.zeros(3, 3), x))
    assert torch.equal(out, x.T @ x)
    weight = kernels.rank_update_(torch.zeros(4, 3), x[:, :1], x[:1])
    assert torch.equal(weight, x[:, :1] @ x[:1])
status = kernels.kernel_status()
print(status.loaded, status.devices[0].path, status.reason)
"""


def run_copy(folder, damage=None):
    """Runs SCRIPT on a copy of the Python files whose native module is missing, or ``damage``."""
    copy = folder / "easyedit_fast"
    native_modules = shutil.ignore_patterns("*.so", "__pycache__", "hparams")
    shutil.copytree(PACKAGE, copy, ignore=native_modules)
    if damage is not None:
        (copy / next(PACKAGE.glob("_kernels*.so")).name).write_bytes(damage)
    return subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=os.environ | {"PYTHONPATH": str(folder), "EASYEDIT_FAST_KERNELS": "auto"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_a_missing_module_is_said_once_and_the_reference_computes(tmp_path):
    result = run_copy(tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("False reference the native module")
    assert result.stderr.count("RuntimeWarning: easyedit-fast computes with plain torch") == 1
    assert "No module named 'easyedit_fast._kernels'" in result.stderr


def test_a_damaged_module_gives_the_real_reason(tmp_path):
    result = run_copy(tmp_path, damage=b"not a shared object")
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("RuntimeWarning") == 1
    assert "file too short" in result.stderr or "invalid ELF header" in result.stderr


@pytest.fixture
def other_module(monkeypatch):
    """Puts another object in the place of the native module, and forgets what was loaded."""

    def replace(module):
        native.load.cache_clear()
        native.say_once.cache_clear()
        monkeypatch.setitem(sys.modules, "easyedit_fast._kernels", module)

    yield replace
    monkeypatch.undo()
    native.load.cache_clear()
    native.say_once.cache_clear()


def module_of_version(version):
    module = ModuleType("easyedit_fast._kernels")
    module.VERSION = version
    return module


def test_another_version_is_refused(other_module, monkeypatch):
    monkeypatch.setattr(native, "package_version", lambda: "0.1.0")
    other_module(module_of_version("0.0.9"))
    reason = "_kernels is of version 0.0.9 and the package of 0.1.0; reinstall"
    assert reason in kernels.kernel_status().reason
    with pytest.warns(RuntimeWarning, match=reason):
        kernels.second_moment_(torch.zeros(1, 1), torch.ones(1, 1))
    monkeypatch.setenv("EASYEDIT_FAST_KERNELS", "native")
    with pytest.raises(NativeModuleError, match=reason):
        kernels.second_moment_(torch.zeros(1, 1), torch.ones(1, 1))


def test_a_module_without_a_version_is_refused(other_module, monkeypatch):
    monkeypatch.setattr(native, "package_version", lambda: "0.1.0")
    other_module(ModuleType("easyedit_fast._kernels"))
    assert "of version None" in kernels.kernel_status().reason


def test_the_failure_is_remembered(other_module):
    other_module(None)
    first = native.load()
    assert isinstance(first, NativeModuleError)
    assert native.load() is first


def test_the_reference_can_be_chosen_in_silence(other_module, monkeypatch):
    other_module(None)
    monkeypatch.setenv("EASYEDIT_FAST_KERNELS", "reference")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = kernels.second_moment_(torch.zeros(1, 1), torch.ones(3, 1))
    assert out.item() == 3.0
    assert kernels.kernel_status().devices[0].reason == "EASYEDIT_FAST_KERNELS=reference"


def test_native_can_be_demanded(other_module, monkeypatch):
    other_module(None)
    monkeypatch.setenv("EASYEDIT_FAST_KERNELS", "native")
    with pytest.raises(NativeModuleError, match=r"KERNELS=native: .* cannot be loaded"):
        kernels.rank_update_(torch.zeros(2, 2), torch.ones(2, 1), torch.ones(1, 2))


def test_an_unknown_choice_is_named(monkeypatch):
    monkeypatch.setenv("EASYEDIT_FAST_KERNELS", "fast")
    message = "one of auto, native, reference, not 'fast'; set one of them, or unset it"
    with pytest.raises(HparamsError, match=message):
        kernels.symmetrise_(torch.zeros(2, 2))
    with pytest.raises(HparamsError, match=message):
        kernels.kernel_status()


def test_status_of_the_built_module(monkeypatch):
    monkeypatch.delenv("EASYEDIT_FAST_KERNELS", raising=False)
    status = kernels.kernel_status()
    assert status.loaded
    assert status.choice == "auto"
    assert status.reason is None
    assert status.cpu_path == native.load().cpu_paths()[-1]
    assert bool(status.cuda_targets) == status.cuda_built
    assert (status.devices[0].device, status.devices[0].path) == ("cpu", "native")


def pretend_card(monkeypatch, capability):
    """Lets torch describe a card that is not there; nothing is run on it."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla V100")


def test_an_old_card_takes_the_reference_and_says_so_once(other_module, monkeypatch):
    pretend_card(monkeypatch, (7, 0))
    module = module_of_version(native.package_version())
    module.CUDA_BUILT = True
    other_module(module)
    card = torch.device("cuda", 0)
    with pytest.warns(RuntimeWarning, match=r"V100 has compute capability 7.0, and .* need 8.0"):
        assert native.module_for(card) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert native.module_for(card) is None
    pretend_card(monkeypatch, (9, 0))
    assert native.module_for(card) is module


def test_a_build_without_cuda_takes_the_reference(other_module, monkeypatch):
    pretend_card(monkeypatch, (9, 0))
    module = module_of_version(native.package_version())
    module.CUDA_BUILT = False
    other_module(module)
    assert "build of easyedit-fast has no CUDA part" in native.unusable(torch.device("cuda", 0))
    assert "no native kernels for mps" in native.unusable(torch.device("mps"))
    assert native.unusable(torch.device("cpu")) is None
