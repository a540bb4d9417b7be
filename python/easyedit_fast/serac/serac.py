"""SERAC: edits in a memory, a scope that routes prompts to them, a model that answers from them."""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easyedit_fast.errors import HparamsError
from easyedit_fast.files import digest
from easyedit_fast.hparams import Hparams, find_hparams_file, read_yaml
from easyedit_fast.models.architectures import Architecture, architecture_of
from easyedit_fast.models.fingerprint import model_fingerprint
from easyedit_fast.serac.counterfactual import (
    CounterfactualAdapter,
    attention_modules,
    refuse_adapters,
)
from easyedit_fast.serac.edit import MemoryEdit
from easyedit_fast.serac.editor_files import EditorFile, load_parts, read_editor
from easyedit_fast.serac.hparams import SERACHparams
from easyedit_fast.serac.memory import EditMemory, Precision
from easyedit_fast.serac.model import SeracModel
from easyedit_fast.serac.routing import Router
from easyedit_fast.serac.scope import Scope
from easyedit_fast.serac.shipped import shipped_editor
from easyedit_fast.serac.store import EditStore, SqliteStore

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from easyedit_fast.requests import EditRequest

MemoryLike = str | os.PathLike[str] | EditStore | None


class Serac:
    """SERAC with a trained scope and adapter (Mitchell et al., arXiv 2206.06520).

    Attributes:
        name: ``serac``.
        hparams: The hyperparameters.
        architecture: Where the model's parts are.
        base: The model that was given; its weights stay as they are.
        model: The model that holds the edits.
        memory: The edits.
        fingerprint: Of the base model.
    """

    name = "serac"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        hparams: str | os.PathLike[str] | Mapping[str, Any] | Hparams | None = None,
        architecture: Architecture | None = None,
        memory: MemoryLike = None,
        precision: Precision = "float32",
    ) -> None:
        """Reads the trained parts, and puts the adapter into the model, switched off.

        Args:
            model: The base model.
            tokenizer: Its (fast) tokenizer.
            hparams: Keys that override those in the editor's file, the path of a YAML file or a
                shipped name, or hyperparameters ready made; ``archive`` names the editor's file.
                Without it the one that comes with the package is taken, where there is one for
                this very model.
            architecture: Description of a family that the package does not know.
            memory: The file that holds the edits, or a store; None keeps them in the process.
            precision: Of the memory's matrix.

        Raises:
            HparamsError: No editor is named, or a value cannot be used.
            MissingFileError: A file is not there.
            MissingPackageError: A package is missing.
            DataFileError: A file is damaged, or another kind of file.
            EditStateError: The memory's edits were embedded by another scope.
            ModelError: The model holds an adapter already, or there is no such encoder.
        """
        refuse_adapters(model)
        self.architecture = architecture or architecture_of(model)
        self.fingerprint = model_fingerprint(model, self.architecture)
        self.hparams, editor = resolve_serac_hparams(
            hparams, functools.partial(shipped_editor, self.fingerprint)
        )
        _warn_of_another_model(self.hparams, editor, self.fingerprint)
        self._archive_sha256 = digest(Path(str(self.hparams.archive)))
        scope = Scope(self.hparams).to(model.device)
        self.base = model
        self._adapter = CounterfactualAdapter(
            model,
            tokenizer,
            rank=0 if self.hparams.freeze_cntr else self.hparams.cntr_rank,
            alpha=self.hparams.cntr_alpha,
            modules=self.hparams.cntr_modules or attention_modules(model, self.architecture),
        )
        try:
            load_parts(editor.tensors, scope, self._adapter)
            self.memory = EditMemory(_store(memory), scope, precision=precision)
        except BaseException:
            self._adapter.remove()
            raise
        self._router = Router(scope, self.memory)
        self.model = SeracModel(
            model, tokenizer, self._router, self._adapter, soft=self.hparams.soft_weighting
        )

    def close(self) -> None:
        """Takes the adapter out of the base model, and closes the memory's file."""
        self._adapter.remove()
        self.memory.close()

    def settings(self) -> dict[str, Any]:
        """What the result depends on beside the requests, as plain JSON values."""
        return {
            "hyperparameters": self.hparams.source,
            "archive": self.hparams.archive,
            "archive_sha256": self._archive_sha256,
            "memory": len(self.memory),
        }

    def used_hparams(self) -> dict[str, Any]:
        """The hyperparameters, as plain JSON values."""
        return self.hparams.to_dict()

    def requests_at_once(self, requests: Sequence[EditRequest]) -> int:
        """All of them: an edit takes one row of the encoder."""
        return max(1, len(requests))

    def edits(
        self, requests: Sequence[EditRequest], about: Mapping[str, Any], *, isolated: bool
    ) -> list[MemoryEdit]:
        """Edits that are not in the memory yet: one for all requests, or one for each.

        Args:
            requests: The requests.
            about: What `Edit` is told beside them.
            isolated: Whether each has a memory of its own.
        """
        if not requests:
            return []
        shares = [[request] for request in requests] if isolated else [list(requests)]
        return [MemoryEdit(self.memory, requests=share, **about) for share in shares]

    def routing(self, alone: Sequence[EditRequest] | None = None) -> SeracRouting:
        """How prompts are routed: by the memory, or each by its own request's edit alone.

        Args:
            alone: The edits by the place of a prompt's request; None: the memory.
        """
        return SeracRouting(self._router, self._adapter, alone)


class SeracRouting:
    """How an evaluation's prompts are routed; see `evaluation.routing.Routing`."""

    def __init__(
        self,
        router: Router,
        adapter: CounterfactualAdapter,
        alone: Sequence[EditRequest] | None,
    ) -> None:
        """Takes what `Serac.routing` is told."""
        self._router, self._adapter, self._alone = router, adapter, alone

    def contexts(self, prompts: Sequence[str], owners: Sequence[int]) -> list[Sequence[int] | None]:
        """The tokens that go before each prompt; None: it goes to the base model."""
        if self._alone is None:
            routes = [route.edit for route in self._router.routes(prompts)]
            chosen = [None if edit is None else edit.request for edit in routes]
        else:
            edits = [self._alone[owner] for owner in owners]
            inside = self._router.pairs([edit.prompt for edit in edits], prompts)
            chosen = [edit if is_in else None for edit, is_in in zip(edits, inside, strict=True)]
        return [None if edit is None else self._adapter.context(edit) for edit in chosen]

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Keeps other threads from the model, in a ``with`` block."""
        with self._adapter.lock:
            yield

    def on(self, rows: Sequence[bool]) -> contextlib.AbstractContextManager[None]:
        """Has the adapter act on some rows of a batch."""
        return self._adapter.on(rows)


def resolve_serac_hparams(
    hparams: str | os.PathLike[str] | Mapping[str, Any] | Hparams | None,
    shipped: Callable[[], Path | None] = lambda: None,
) -> tuple[SERACHparams, EditorFile]:
    """The hyperparameters, from whatever form the user gave them in, and the editor they name.

    Args:
        hparams: The hyperparameters.
        shipped: Gives the editor that is taken where they name none.

    Raises:
        HparamsError: No editor is named, or a value cannot be used.
        MissingFileError: A file is not there.
        DataFileError: The editor's file is damaged, or not one.
    """
    if isinstance(hparams, Hparams):
        if not isinstance(hparams, SERACHparams):
            raise HparamsError(f"{type(hparams).__name__} is not for SERAC; give SERACHparams")
        path = _archive(hparams.archive, shipped)
        return hparams.model_copy(deep=True, update={"archive": str(path)}), read_editor(path)
    if hparams is None or isinstance(hparams, Mapping):
        given = dict(hparams or {})
        own_keys = ", ".join(name for name in given if name != "archive")
        source = f"given: {own_keys}" if own_keys else ""
    else:
        given, source = read_yaml(find_hparams_file(hparams)), os.fspath(hparams)
    archive = _archive(given.get("archive"), shipped)
    editor = read_editor(archive)
    try:
        resolved = SERACHparams(**{**editor.hparams, **given, "archive": str(archive)})
    except HparamsError as error:
        raise HparamsError(f"{source} over {archive}: {error}") from None
    return resolved.came_from("; ".join(filter(None, [str(archive), source]))), editor


def _store(memory: MemoryLike) -> EditStore:
    if memory is None or isinstance(memory, str | os.PathLike):
        return SqliteStore(memory)
    return memory


def _archive(path: object, shipped: Callable[[], Path | None]) -> Path:
    if path is None:
        path = shipped()
    if not isinstance(path, str | os.PathLike):
        raise HparamsError(
            "SERAC needs a trained scope and adapter, and none for this model comes with the "
            "package; name the file of one as archive (--archive), or train it: easyedit-fast "
            "train --method serac"
        )
    return Path(path)


def _warn_of_another_model(hparams: SERACHparams, editor: EditorFile, fingerprint: str) -> None:
    trained_for = editor.card.get("model_fingerprint", fingerprint)
    if trained_for != fingerprint:
        warnings.warn(
            f"the editor {hparams.archive} was trained for another model "
            f"({editor.card.get('model') or 'unnamed'}); its answers may be anything here",
            stacklevel=4,
        )
