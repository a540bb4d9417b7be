"""Trained editors: their files, those that come with the package, their hyperparameters."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from easyedit_fast.errors import DataFileError, HparamsError
from easyedit_fast.hparams import Hparams, find_hparams_file, read_yaml
from easyedit_fast.tensor_files import TensorFile
from easyedit_fast.training.checkpoint import EDITOR

_Kind = TypeVar("_Kind", bound=Hparams)


@dataclasses.dataclass(frozen=True, eq=False)
class EditorFile:
    """What a file holds.

    Attributes:
        tensors: What is trained, by names of the method's own.
        hparams: The hyperparameters, as plain JSON values; empty in a checkpoint of the peers.
        card: What else is told of the editor: model, data, steps, scores.
    """

    tensors: dict[str, Tensor]
    hparams: dict[str, Any]
    card: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class EditorFormat:
    """The files of one method's editors.

    Attributes:
        method: The method's name, e.g. ``MEND``.
    """

    method: str

    @property
    def _file(self) -> TensorFile:
        return TensorFile(
            f"{self.method} editor",
            written_by="easyedit-fast",
            mistaken={"training checkpoint": f"name the {EDITOR} beside it"},
        )

    def write(self, path: Path, editor: EditorFile) -> None:
        """Writes a file, whole or not at all.

        Raises:
            MissingFileError: The folder of `path` is not there.
        """
        self._file.write(path, editor.tensors, {"hparams": editor.hparams, "card": editor.card})

    def read(self, path: Path) -> EditorFile:
        """Reads a file. Nothing in it is run.

        Raises:
            MissingFileError: There is no such file.
            DataFileError: It is damaged, a folder, or holds no such editor.
        """
        refuse_folder(path)
        tensors, told = self._file.read(path)
        for key in ("hparams", "card"):
            if not isinstance(told.get(key), dict):
                raise DataFileError(
                    f"{path}: header field {key!r} is missing; get the editor again"
                )
        return EditorFile(tensors, told["hparams"], told["card"])

    def card(self, path: Path) -> dict[str, Any]:
        """What is told of an editor, without its tensors.

        Raises:
            MissingFileError: There is no such file.
            DataFileError: It is damaged, or no such editor.
        """
        card = self._file.told(path).get("card")
        return card if isinstance(card, dict) else {}

    def shipped(self, folder: Path, fingerprint: str) -> Path | None:
        """The editor in a folder that was trained for a model; None: there is none.

        Args:
            folder: The folder.
            fingerprint: Of the model.
        """
        for path in sorted(folder.glob("*.safetensors")):
            if self.card(path).get("model_fingerprint") == fingerprint:
                return path
        return None


def refuse_folder(path: Path) -> None:
    """Refuses a folder in the place of an editor's file.

    Raises:
        DataFileError: It is one; where it is a run's, its editor is named.
    """
    if path.is_dir():
        own = path / EDITOR
        remedy = f"name its editor: {own}" if own.is_file() else "name the file of an editor"
        raise DataFileError(f"{path} is a folder; {remedy}")


def resolve_editor(
    kind: type[_Kind],
    hparams: str | os.PathLike[str] | Mapping[str, Any] | Hparams | None,
    read: Callable[[Path], EditorFile],
    shipped: Callable[[], Path | None],
    own: Callable[[Path, EditorFile, Mapping[str, Any]], Mapping[str, Any]],
    what: str,
) -> tuple[_Kind, EditorFile]:
    """The hyperparameters, from whatever form the user gave them in, and the editor they name.

    Args:
        kind: The class of the hyperparameters.
        hparams: What the user gave.
        read: Reads an editor's file.
        shipped: Gives the editor that is taken where none is named.
        own: The hyperparameters of the file that those given go over; it may refuse them.
        what: What the method needs, for the message where there is none.

    Raises:
        HparamsError: No editor is named, or a value cannot be used.
        MissingFileError: A file is not there.
        DataFileError: The editor's file is damaged, or not one.
    """
    method = kind.model_fields["alg_name"].default
    if isinstance(hparams, Hparams):
        if not isinstance(hparams, kind):
            raise HparamsError(
                f"{type(hparams).__name__} is not for {method}; give {kind.__name__}"
            )
        path = _archive(hparams.to_dict()["archive"], shipped, method, what)
        return hparams.model_copy(deep=True, update={"archive": str(path)}), read(path)
    if hparams is None or isinstance(hparams, Mapping):
        given = dict(hparams or {})
        own_keys = ", ".join(name for name in given if name != "archive")
        source = f"given: {own_keys}" if own_keys else ""
    else:
        given, source = read_yaml(find_hparams_file(hparams)), os.fspath(hparams)
    archive = _archive(given.get("archive"), shipped, method, what)
    editor = read(archive)
    try:
        resolved = kind(**{**own(archive, editor, given), **given, "archive": str(archive)})
    except HparamsError as error:
        theirs = "the hyperparameters given" if isinstance(hparams, Mapping) else source
        over = f"{theirs}, over those of {archive}" if source else str(archive)
        raise HparamsError(f"{over}: {error}") from None
    return resolved.came_from("; ".join(filter(None, [str(archive), source]))), editor


def warn_of_another_model(archive: str | None, editor: EditorFile, fingerprint: str) -> None:
    """Warns where an editor was trained for another model than the one that it is for now."""
    trained_for = editor.card.get("model_fingerprint", fingerprint)
    if trained_for != fingerprint:
        warnings.warn(
            f"the editor {archive} was trained for another model "
            f"({editor.card.get('model') or 'unnamed'}); its edits may do anything here",
            stacklevel=5,
        )


def _archive(path: object, shipped: Callable[[], Path | None], method: str, what: str) -> Path:
    if path is None:
        path = shipped()
    if not isinstance(path, str | os.PathLike):
        raise HparamsError(
            f"{method} needs {what}, and none for this model comes with the package; name the "
            "file of one as archive (--archive), or train it: easyedit-fast train --method "
            f"{method.lower()}"
        )
    return Path(path)
