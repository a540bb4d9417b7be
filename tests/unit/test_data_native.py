"""The door to the Rust module: its failure has its own reason, and versions must agree."""

import subprocess
import sys
import textwrap

import pytest

from easyedit_fast import _loader
from easyedit_fast.data import LoaderStatus, loader_status, native


def run(script):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_status_of_a_module_that_fits():
    assert loader_status() == LoaderStatus(loaded=True, version=_loader.__version__, reason=None)


@pytest.mark.parametrize(
    ("module", "package", "fault"),
    [
        ("0.1.0", "0.1.0", None),
        ("0.1.0", None, None),
        ("0.1.0", "0.2.0", "the module is of version 0.1.0, the Python package of version 0.2.0"),
    ],
)
def test_versions(module, package, fault):
    assert native.version_fault(module, package) == fault


def test_a_missing_module_gives_its_reason_at_first_use():
    done = run("""
        import sys
        sys.modules["easyedit_fast._loader"] = None
        from easyedit_fast.data import loader_status, read_requests
        from easyedit_fast.errors import NativeModuleError
        print(loader_status().loaded, loader_status().version)
        for _ in range(2):
            try:
                read_requests("x.json")
            except NativeModuleError as error:
                print(error)
    """)
    assert done.returncode == 0, done.stderr
    first, *errors = done.stdout.splitlines()
    assert first == "False None"
    assert len(errors) == 2
    assert all("_loader" in line and "make build" in line for line in errors)
    assert "easyedit_fast._loader halted" in errors[0] or "cannot import name" in errors[0]


def test_a_module_of_another_version_is_refused():
    done = run("""
        import importlib.metadata
        real = importlib.metadata.version
        importlib.metadata.version = (
            lambda name: "99.0.0" if name == "easyedit-fast" else real(name)
        )
        from easyedit_fast.data import RequestTokenizer
        from easyedit_fast.errors import NativeModuleError
        try:
            RequestTokenizer("{}", pad_id=0)
        except NativeModuleError as error:
            print(error)
    """)
    assert done.returncode == 0, done.stderr
    assert "the Python package of version 99.0.0" in done.stdout
    assert "make build" in done.stdout


def test_the_door_needs_neither_torch_nor_transformers():
    done = run("""
        import sys
        import easyedit_fast.data
        easyedit_fast.data.loader_status()
        print(sorted({"torch", "transformers"} & set(sys.modules)))
    """)
    assert done.stdout.strip() == "[]", done.stderr
