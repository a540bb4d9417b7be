"""`import easyedit_fast` is quick, and brings in nothing heavy."""

import importlib.metadata
import json
import subprocess
import sys

import easyedit_fast

HEAVY = {"accelerate", "numpy", "pydantic", "torch", "transformers"}
OPTIONAL = {"gguf", "matplotlib", "peft", "tensorboard", "usearch"}

IMPORT_ALONE = """
import json, sys, time
started = time.perf_counter()
import easyedit_fast
print(json.dumps({"seconds": time.perf_counter() - started, "modules": list(sys.modules)}))
"""
IMPORT_ALL_NAMES = """
import json, sys
import easyedit_fast
for name in easyedit_fast.__all__:
    getattr(easyedit_fast, name)
print(json.dumps({"modules": list(sys.modules)}))
"""


def in_new_process(script):
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    return json.loads(done.stdout)


def test_import_is_quick():
    # The best of three: another process may hold the processor.
    assert min(in_new_process(IMPORT_ALONE)["seconds"] for _ in range(3)) < 0.3


def test_import_brings_in_nothing_heavy():
    modules = set(in_new_process(IMPORT_ALONE)["modules"])
    assert "easyedit_fast" in modules
    assert not (HEAVY | OPTIONAL) & modules


def test_public_names_need_no_optional_package():
    modules = set(in_new_process(IMPORT_ALL_NAMES)["modules"])
    assert {"torch", "easyedit_fast.editor"} <= modules
    assert not OPTIONAL & modules


def test_version_is_that_of_the_installed_package():
    assert easyedit_fast.__version__ == importlib.metadata.version("easyedit-fast")
