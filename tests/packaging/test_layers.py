"""Imports point to lower levels only, and the native modules have one door each."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "python" / "easyedit_fast"

# A module may import those of lower levels, and the rest of its own folder. CONTRIBUTING.md shows
# the same order.
LEVELS = (
    {"errors"},
    {"failures", "files", "hparams", "plots", "processes", "requests", "timings", "version"},
    {"kernels", "models", "result_files", "sequence", "tensor_files", "updates"},
    {"data", "edit_files", "ledger", "metrics"},
    {"edits", "evaluation", "moments", "training"},
    {"mend", "results", "rome", "serac"},
    {"methods"},
    {"editing", "trainers"},
    {"editor"},
    {"profiling", "runs", "serving", "sweeps"},
    {"cli", "easyeditor"},
    {"__main__"},
)
# Type annotations alone, below TYPE_CHECKING: the ledger of a model records edits.
FOR_TYPES = {("ledger", "edits")}
NATIVE_DOORS = {"_loader": "data", "_kernels": "kernels/native.py"}
# Everything that a plain `pip install easyedit-fast` does not bring.
OPTIONAL = {
    "datasets",
    "fastapi",
    "gguf",
    "matplotlib",
    "peft",
    "starlette",
    "tensorboard",
    "usearch",
    "uvicorn",
}


def level(unit):
    for number, units in enumerate(LEVELS):
        if unit in units:
            return number
    pytest.fail(f"easyedit_fast.{unit} has no level: add it to LEVELS")


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def below(tree, wanted):
    """The nodes inside those that `wanted` picks."""
    return {child for node in ast.walk(tree) if wanted(node) for child in ast.walk(node)}


def imports(tree):
    """(node, dotted name) of every import, by statement or by a constant to import_module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            assert node.names[0].name != "*", f"line {node.lineno}: a star import"
            yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            constants = (value for value in node.args if isinstance(value, ast.Constant))
            yield from ((node, value.value) for value in constants)


def faults(path, tree):
    """One line for each import that the layout forbids; `path` is relative to the package."""
    unit = path.removesuffix(".py").split("/")[0]
    typing = below(tree, is_type_checking)
    functions = below(tree, lambda node: isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    for node, name in imports(tree):
        first, *rest = name.split(".")
        if first in OPTIONAL and node not in typing | functions:
            yield f"{path} imports {first} outside a function"
        if first != "easyedit_fast" or not rest or rest[0] == unit:
            continue
        target = rest[0]
        if target in NATIVE_DOORS:
            if not path.startswith(NATIVE_DOORS[target]):
                yield f"{path} imports {target}: only {NATIVE_DOORS[target]} may"
        elif level(target) >= level(unit) and not ((unit, target) in FOR_TYPES and node in typing):
            yield f"{path} (level {level(unit)}) imports {target} (level {level(target)})"


# The package's own namespace names modules of every level, lazily.
SOURCES = sorted(set(PACKAGE.rglob("*.py")) - {PACKAGE / "__init__.py"})


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: str(source.relative_to(PACKAGE)))
def test_imports_point_downwards(source):
    tree = ast.parse(source.read_text(encoding="utf-8"))
    assert not list(faults(source.relative_to(PACKAGE).as_posix(), tree))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("errors.py", "from easyedit_fast import files"),
        ("models/tail.py", "import easyedit_fast.rome.rome"),
        ("rome/rome.py", "from easyedit_fast.mend import editor"),
        ("rome/rome.py", "def f():\n    from easyedit_fast.editor import Editor"),
        ("kernels/ops.py", "from easyedit_fast import _kernels"),
        ("kernels/ops.py", "importlib.import_module('easyedit_fast._kernels')"),
        ("rome/rome.py", "from easyedit_fast._loader import Tokenizer"),
        ("edits.py", "import peft"),
        ("edits.py", "from peft.tuners import lora"),
        ("ledger.py", "from easyedit_fast.edits import Edit"),
        ("models/tail.py", "if TYPE_CHECKING:\n    from easyedit_fast.editor import Editor"),
    ],
)
def test_a_forbidden_import_is_seen(path, source):
    assert len(list(faults(path, ast.parse(source)))) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("rome/rome.py", "from easyedit_fast.rome import solve\nimport torch"),
        ("edits.py", "def f():\n    import peft"),
        ("edits.py", "if TYPE_CHECKING:\n    import peft"),
        ("ledger.py", "if TYPE_CHECKING:\n    from easyedit_fast.edits import Edit"),
        ("kernels/native.py", "importlib.import_module('easyedit_fast._kernels')"),
        ("data/native.py", "from easyedit_fast import _loader"),
    ],
)
def test_an_allowed_import_is_let_through(path, source):
    assert not list(faults(path, ast.parse(source)))


@pytest.mark.parametrize("source", ["from . import x", "from os import *"])
def test_relative_and_star_imports_are_refused(source):
    with pytest.raises(AssertionError, match="import"):
        list(imports(ast.parse(source)))
