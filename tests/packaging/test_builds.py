"""Whole builds, as a user makes them: minutes each."""

import os
import subprocess
import sys
import zipfile

import pytest

from tests.packaging.archives import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def target(tmp_path_factory):
    """One folder for what cargo builds, so that the dependencies are compiled once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CARGO_TARGET_DIR", str(tmp_path_factory.mktemp("target")))
        yield


def run(*command, folder=ROOT, **environment):
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wheel_of(source, folder, **environment):
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", folder, source, **environment)
    (path,) = folder.glob("*.whl")
    return path


def cuda_built(wheel, folder):
    """Unpacks a wheel and asks its own native module, in a process that sees nothing else."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    script = (
        "import sys; sys.path.insert(0, '.'); from easyedit_fast import _kernels, _loader;"
        "assert _kernels.VERSION == _loader.__version__; print(_kernels.CUDA_BUILT)"
    )
    return run(sys.executable, "-I", "-c", script, folder=folder).strip()


def test_wheel_without_cuda(tmp_path):
    wheel = wheel_of(ROOT, tmp_path / "wheel", EASYEDIT_FAST_CUDA="0")
    assert cuda_built(wheel, tmp_path / "unpacked") == "False"


def test_wheel_from_the_sdist(tmp_path):
    run(sys.executable, "-m", "build", "--sdist", "--outdir", tmp_path)
    (sdist,) = tmp_path.glob("*.tar.gz")
    wheel = wheel_of(sdist, tmp_path / "wheel", EASYEDIT_FAST_CUDA="1")
    assert cuda_built(wheel, tmp_path / "unpacked") == "True"


def test_editable_twice(tmp_path):
    """The second install finds what the first left in the package."""
    copy = tmp_path / "checkout"
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard")
    for name in listed.splitlines():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--no-deps", "--editable", copy]
    for _ in range(2):
        run(*install, folder=copy, EASYEDIT_FAST_CUDA="0")
    script = "from easyedit_fast import _kernels, _loader; print(_kernels.__file__)"
    assert str(copy) in run(python, "-c", script, folder=tmp_path)
