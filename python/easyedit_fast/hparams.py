"""Hyperparameters: the base class of every method's, and how their YAML files are read.

Keys carry EasyEdit's spelling, so that its files load here and its scripts go on to work. Its files
write floats as ``5e-1``, which YAML 1.1 reads as text; a float field takes such text as a number.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.resources
import os
import reprlib
import warnings
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pydantic
import yaml

from easyedit_fast.errors import HparamsError, MissingFileError

if TYPE_CHECKING:
    from typing_extensions import Self

_MAX_BYTES = 1 << 20
_SUFFIXES = (".yaml", ".yml")
_NAMES_SHOWN = 12


def _number_of_text(value: object) -> object:
    """Turns text that reads as a number into that number; hands anything else on."""
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def _text_of_path(value: object) -> object:
    """Turns a path object into text; hands anything else on."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


PathText = Annotated[str, pydantic.BeforeValidator(_text_of_path)]
Float = Annotated[float, pydantic.BeforeValidator(_number_of_text)]
PositiveFloat = Annotated[Float, pydantic.Field(gt=0)]
NonNegativeFloat = Annotated[Float, pydantic.Field(ge=0)]
PositiveInt = Annotated[int, pydantic.Field(ge=1)]
NonNegativeInt = Annotated[int, pydantic.Field(ge=0)]


class Hparams(pydantic.BaseModel):
    """Base of all hyperparameters: typed, checked when made and whenever a field is set.

    A name that is no field only warns, and names the field that was probably meant: EasyEdit's
    scripts set attributes of their own. Such attributes can be read, and are never written to a
    file.

    Raises:
        HparamsError: A field is missing, of a wrong type or out of range; one line, all of them.
    """

    model_config = pydantic.ConfigDict(
        strict=True,
        extra="allow",
        validate_assignment=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )
    _source: str = pydantic.PrivateAttr(default="given")

    def __init__(self, /, **values: Any) -> None:
        """Makes and checks them; a name that is no field only warns."""
        for name in values:
            if name not in type(self).model_fields:
                self._warn_unknown(name)
        try:
            super().__init__(**values)
        except pydantic.ValidationError as error:
            raise HparamsError(_one_line(error)) from None

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets and checks one field; a name close to a field's warns."""
        known = name.startswith("_") or name in type(self).model_fields
        if not known and self._meant(name):
            self._warn_unknown(name)
        try:
            super().__setattr__(name, value)
        except pydantic.ValidationError as error:
            raise HparamsError(_one_line(error)) from None

    @property
    def source(self) -> str:
        """Where the values came from: a rule, a file, or the caller ("given")."""
        return self._source

    def came_from(self, source: str) -> Self:
        """Notes where the values came from, and returns `self`."""
        self._source = source
        return self

    @classmethod
    def from_hparams(cls, path_or_name: str | os.PathLike[str]) -> Self:
        """Reads a file by its path, or a shipped one by its name, such as ``ROME/llama-7b``.

        Args:
            path_or_name: Path or name; ``.yaml`` is added where it is missing.

        Returns:
            The hyperparameters.

        Raises:
            MissingFileError: There is no such file; the message lists near names.
            HparamsError: The file cannot be read, or a field of it cannot be used.
        """
        path = find_hparams_file(path_or_name)
        return cls.from_yaml(path).came_from(os.fspath(path_or_name))

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> Self:
        """Reads the YAML file at `path`; see `from_hparams` for the errors."""
        values = read_yaml(path)
        with named(os.fspath(path)):
            return cls(**values).came_from(os.fspath(path))

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values, from which ``type(self)(**values)`` makes them again."""
        return self.model_dump(mode="json", include=set(type(self).model_fields))

    def to_yaml(self) -> str:
        """The fields as the text of a YAML file that `from_yaml` reads."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    @classmethod
    def _meant(cls, name: str) -> str | None:
        """The field whose name is closest to `name`, or None where none is close."""
        near = difflib.get_close_matches(name, cls.model_fields, n=1, cutoff=0.8)
        return near[0] if near else None

    @classmethod
    def _warn_unknown(cls, name: str) -> None:
        meant = cls._meant(name)
        hint = f"; did you mean {meant!r}?" if meant else ""
        message = f"{name!r} is not a hyperparameter of {cls.__name__}, and has no effect{hint}"
        warnings.warn(message, UserWarning, stacklevel=3)


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a YAML file that maps names to plain values. Nothing in it is ever run.

    Args:
        path: Path of the file; at most 1 MiB.

    Returns:
        What the file holds, unchecked.

    Raises:
        MissingFileError: There is no such file.
        HparamsError: It is empty, too large, no YAML, no mapping of names, names a key twice, or
            uses anchors, which a file of hyperparameters has no need of.
    """
    name = os.fspath(path)
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise MissingFileError(f"{name}: there is no such file; check the path") from None
    except OSError as error:
        raise HparamsError(f"{name}: cannot be read ({error.strerror}); give a file") from None
    if len(data) > _MAX_BYTES:
        raise HparamsError(f"{name}: is larger than 1 MiB; is it a file of hyperparameters?")
    try:
        values = _Loader(data.decode("utf-8")).get_single_data()
    except UnicodeDecodeError as error:
        raise HparamsError(f"{name}: is not UTF-8 text (byte {error.start})") from None
    except yaml.YAMLError as error:
        raise HparamsError(f"{name}: is not valid YAML: {_yaml_reason(error)}") from None
    except (RecursionError, ValueError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else str(error)
        raise HparamsError(f"{name}: is not valid YAML: {reason}") from None
    return _require_mapping(values, name)


@contextlib.contextmanager
def named(source: str) -> Iterator[None]:
    """Puts where the values are from before the errors of a ``with`` block.

    Raises:
        HparamsError: The block's.
    """
    try:
        yield
    except HparamsError as error:
        raise HparamsError(f"{source}: {error}") from None


def require_method(values: Mapping[str, Any], method: str, source: str, folder: str = "") -> None:
    """Refuses hyperparameters that say that they are another method's.

    Args:
        values: What a file holds.
        method: The method that they are to be for.
        source: Path or name of the file.
        folder: Where the shipped files of this use are, such as ``TRAINING/MEND``; else those
            of the method.

    Raises:
        HparamsError: They are another method's.
    """
    alg = values.get("alg_name", method)
    if str(alg).lower() != method.lower():
        wanted = method.upper()
        raise HparamsError(
            f"{source}: is for {_short(alg)} (alg_name), not for {wanted}; give a file of your "
            f"own for {wanted}, or {_shipped_in(folder or wanted)}"
        )


def find_hparams_file(path_or_name: str | os.PathLike[str], folder: str = "") -> Path:
    """Finds a file of hyperparameters by its path, or by its name among the shipped ones.

    Args:
        path_or_name: A path, or a name such as ``ROME/llama-7b``; ``.yaml`` may be left out.
        folder: Where the shipped files are that fit the use, such as ``TRAINING/MEND``; an error
            names these alone.

    Returns:
        The path of a file that exists.

    Raises:
        MissingFileError: There is none; the message lists near names.
    """
    wanted = Path(path_or_name)
    names = [wanted]
    if wanted.suffix not in _SUFFIXES:
        names += [wanted.with_name(wanted.name + suffix) for suffix in _SUFFIXES if wanted.name]
    for place in (Path(), hparams_folder()):
        for name in names:
            if (place / name).is_file():
                return place / name
    near = difflib.get_close_matches(
        wanted.as_posix().removesuffix(".yaml"), shipped_names(), n=5, cutoff=0.5
    )
    shipped = (
        _shipped_in(folder) if folder else f"a shipped name: {', '.join(near or shipped_names())}"
    )
    raise MissingFileError(
        f"no hyperparameter file {os.fspath(path_or_name)!r}; give the path of a YAML file, or "
        f"{shipped}"
    )


def hparams_folder() -> Path:
    """The folder of the shipped files: in the source tree where we run from it, else installed.

    The source tree goes first, because an editable install leaves a copy in the package that does
    not follow later changes.
    """
    root = Path(__file__).resolve().parents[1]
    source = root.parent / "hparams"
    if root.name == "python" and source.is_dir():
        return source
    return Path(str(importlib.resources.files("easyedit_fast") / "hparams"))


def shipped_names() -> list[str]:
    """The names of the shipped files, sorted, such as ``ROME/llama-7b``."""
    folder = hparams_folder()
    return sorted(
        path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")
    )


def _shipped_in(folder: str) -> str:
    """The names of a folder's shipped files, in few words."""
    names = [name.removeprefix(f"{folder}/") for name in shipped_names()]
    own = [name for name in names if "/" not in name]
    more = ", …" if len(own) > _NAMES_SHOWN else ""
    return f"a shipped one, {folder}/ with one of: {', '.join(own[:_NAMES_SHOWN])}{more}"


class _Loader(yaml.SafeLoader):
    """A safe loader that also refuses keys named twice, and anchors (and so alias bombs)."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise yaml.MarkedYAMLError(
                problem="anchors and aliases are not allowed; write the value out",
                problem_mark=event.start_mark,
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):
                if key in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key!r} stands there twice; drop one",
                        problem_mark=key_node.start_mark,
                    )
                seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _require_mapping(values: object, name: str) -> dict[str, Any]:
    if values is None:
        raise HparamsError(f"{name}: is empty; write 'key: value' lines")
    if not isinstance(values, Mapping):
        kind = type(values).__name__
        raise HparamsError(f"{name}: must hold 'key: value' lines, not a {kind}")
    for key in values:
        if not isinstance(key, str):
            raise HparamsError(f"{name}: the key {_short(key)} is not a name")
    return dict(values)


def _yaml_reason(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    mark = error.problem_mark or error.context_mark
    place = f" (line {mark.line + 1})" if mark else ""
    return f"{error.problem or error.context}{place}"


def _one_line(error: pydantic.ValidationError) -> str:
    """All faults in one line, a key once: what it must be, and what was given."""
    faults: dict[str, list[str]] = {}
    given: dict[str, object] = {}
    for fault in error.errors(include_url=False):
        # A fault of several keys together names them itself; its input would be all that was given.
        key = str(fault["loc"][0]) if fault["loc"] else ""
        text = fault["msg"].removeprefix("Value error, ")
        text = text.replace("Input should be", "must be").replace("Field required", "is missing")
        wanted = faults.setdefault(key, [])
        wanted.append(text.removeprefix("must be ") if wanted else text)
        if key and fault["type"] != "missing":
            given[key] = fault["input"]
    parts = []
    for key, wanted in faults.items():
        got = f", got {_short(given[key])}" if key in given else ""
        named_ = f"{key}: " if key else ""
        parts.append(f"{named_}{' or '.join(dict.fromkeys(wanted))}{got}")
    return "; ".join(parts)


def _short(value: object) -> str:
    return reprlib.repr(value)
