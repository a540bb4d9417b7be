"""csrc/build.py by itself: a failure is one line with the remedy, and choices are honoured."""

import os
import subprocess
import sys

import pytest

from tests.packaging.archives import ROOT, files_of_checkout

SCRIPT = ROOT / "csrc" / "build.py"


def run(*arguments, **environment):
    inherited = {name: value for name, value in os.environ.items() if "EASYEDIT_FAST" not in name}
    return subprocess.run(
        [sys.executable, "-B", SCRIPT, *arguments],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def requirements(**environment):
    done = run("--requirements", **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_requirements_with_and_without_cuda():
    without = requirements(EASYEDIT_FAST_CUDA="0")
    compiler = set(requirements()) - set(without)
    assert [name.partition(">")[0] for name in without] == ["maturin", "ninja", "pybind11"]
    assert all(name.startswith("nvidia-") and "==13.0." in name for name in compiler)
    if sys.platform == "linux" and os.confstr("CS_GNU_LIBC_VERSION"):
        assert len(compiler) == 5


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"EASYEDIT_FAST_CUDA": "no"}, "EASYEDIT_FAST_CUDA is 'no'; set it to 0 or 1"),
        ({"CXX": "no-such-compiler"}, "CXX is 'no-such-compiler', which is not found; install g++"),
        ({"PATH": "/nonexistent"}, "no C++ compiler found; install g++"),
    ],
)
def test_a_failure_is_one_line_with_the_remedy(tmp_path, environment, said):
    # Where pybind11 is not installed, that would be said first.
    (tmp_path / "pybind11.py").write_text("get_include = lambda: '/usr/include'\n")
    environment = {"PYTHONPATH": str(tmp_path), "EASYEDIT_FAST_CUDA": "0", **environment}
    environment.setdefault("CXX", "")
    done = run("--out", tmp_path / "out", **environment)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {said}")


def test_every_source_is_named_in_the_script():
    listed = SCRIPT.read_text(encoding="utf-8")
    sources = {name for name in files_of_checkout("csrc") if name.endswith((".cpp", ".cu"))}
    built = {name.removeprefix("csrc/") for name in sources if "/emulator/" not in name}
    assert built
    assert {name for name in built if f'"{name}"' not in listed} == set()
