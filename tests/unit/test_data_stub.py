"""The stub `_loader.pyi` and the Rust module have the same names and signatures."""

import ast
import inspect
from pathlib import Path

import easyedit_fast
from easyedit_fast import _loader

STUB = Path(easyedit_fast.__path__[0]) / "_loader.pyi"


def stub_members(body):
    """Maps each public name to its signature, or to "property", "class" or "value"."""
    members = {}
    for node in body:
        if isinstance(node, ast.FunctionDef):
            decorators = [ast.unparse(item) for item in node.decorator_list]
            members[node.name] = "property" if decorators == ["property"] else stub_signature(node)
        elif isinstance(node, ast.ClassDef):
            members[node.name] = "class"
            members |= {f"{node.name}.{k}": v for k, v in stub_members(node.body).items()}
        elif isinstance(node, ast.AnnAssign):
            members[node.target.id] = "value"
    return members


def stub_signature(node):
    names = [argument.arg for argument in node.args.args]
    keywords = [
        (argument.arg, None if default is None else ast.literal_eval(default))
        for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    ]
    assert not node.args.defaults
    return [name for name in names if name not in ("self", "cls")], keywords


def module_members():
    members = {"__version__": "value"}
    for name, value in vars(_loader).items():
        if inspect.isclass(value):
            members[name] = "class"
            members |= {f"{name}.{k}": v for k, v in class_members(value).items()}
        elif callable(value):
            members[name] = signature(value)
    return members


def class_members(cls):
    members = {}
    for name, value in vars(cls).items():
        if inspect.isgetsetdescriptor(value) or inspect.ismemberdescriptor(value):
            members[name] = "property"
        elif name == "__new__":
            members[name] = signature(cls)
        elif name in ("__iter__", "__next__") or not name.startswith("_"):
            members[name] = signature(value)
    return members


def signature(function):
    parameters = inspect.signature(function).parameters.values()
    kinds = inspect.Parameter
    names = [p.name for p in parameters if p.kind == kinds.POSITIONAL_OR_KEYWORD]
    keywords = [
        (p.name, None if p.default is p.empty else p.default)
        for p in parameters
        if p.kind == kinds.KEYWORD_ONLY
    ]
    others = [
        p for p in parameters if p.kind not in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
    ]
    assert [p.name for p in others] in ([], ["self"])
    return names, keywords


def test_stub_and_module_agree():
    stub = stub_members(ast.parse(STUB.read_text(encoding="utf-8")).body)
    module = {name: value for name, value in module_members().items() if name != "__all__"}
    assert stub == module


def test_every_public_name_is_documented():
    for name, value in vars(_loader).items():
        if inspect.isclass(value):
            assert value.__doc__, name
            for member, descriptor in vars(value).items():
                if not member.startswith("_"):
                    assert descriptor.__doc__, f"{name}.{member}"
        elif callable(value):
            assert value.__doc__, name
