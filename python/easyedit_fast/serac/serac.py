"""SERAC: edits in a memory, a scope that routes prompts to them, a model that answers from them."""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from easyedit_fast.data import RequestTokenizer
from easyedit_fast.files import digest
from easyedit_fast.hparams import Hparams
from easyedit_fast.models.adapters import refuse_adapters
from easyedit_fast.models.architectures import Architecture, architecture_of
from easyedit_fast.models.fingerprint import model_fingerprint
from easyedit_fast.models.limits import context_length, refuse_long_rows
from easyedit_fast.serac.counterfactual import CounterfactualAdapter
from easyedit_fast.serac.edit import MemoryEdit
from easyedit_fast.serac.editor_files import load_editor, read_editor, shipped_editor
from easyedit_fast.serac.hparams import SERACHparams
from easyedit_fast.serac.matrix import Precision
from easyedit_fast.serac.memory import EditMemory
from easyedit_fast.serac.model import SeracModel
from easyedit_fast.serac.routing import Router
from easyedit_fast.serac.scopes import AnyScope, make_scope
from easyedit_fast.serac.small import Counterfactual, counterfactual_of
from easyedit_fast.serac.store import EditStore, SqliteStore
from easyedit_fast.serac.switched import SwitchedModel
from easyedit_fast.serac.whole_answers import WholeAnswersModel
from easyedit_fast.training.editors import EditorFile, resolve_editor, warn_of_another_model

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
        counterfactual: The model that answers from edits, and whether its vocabulary is the base
            model's.
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
        """Reads the trained parts, and puts the adapter into its model, switched off.

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
            ModelError: The model holds an adapter already, there is no such encoder or small model,
                or the encoder is not the one that the scope was trained on.
        """
        refuse_adapters(model)
        self.architecture = architecture or architecture_of(model)
        self.fingerprint = model_fingerprint(model, self.architecture)
        self.hparams, editor = resolve_serac_hparams(
            hparams, functools.partial(shipped_editor, self.fingerprint)
        )
        warn_of_another_model(self.hparams.archive, editor, self.fingerprint)
        self._archive_sha256 = digest(Path(str(self.hparams.archive)))
        scope = make_scope(self.hparams, model.device)
        self.base = model
        self.counterfactual = counterfactual_of(
            self.hparams.small_name, model, tokenizer, self.architecture
        )
        _warn_of_small_models(self.counterfactual, self.hparams, editor, self.fingerprint)
        self._adapter = self.counterfactual.adapter(self.hparams)
        try:
            load_editor(self.hparams.archive, editor, scope, self._adapter)
            self.memory = self._opened_memory(memory, scope, precision)
        except BaseException:
            self._adapter.remove()
            raise
        self._router = Router(scope, self.memory, self.hparams.threshold)
        soft = self.hparams.soft_weighting or not self.hparams.supervised
        kind = _kind_of_model(self.counterfactual)
        self.model = kind(model, tokenizer, self._router, self._adapter, soft=soft)

    def _opened_memory(
        self, memory: MemoryLike, scope: AnyScope, precision: Precision
    ) -> EditMemory:
        store = _store(memory)
        try:
            return EditMemory(
                store,
                scope,
                precision=precision,
                index=self.hparams.memory_index,
                index_file=store.index_file if isinstance(store, SqliteStore) else None,
            )
        except BaseException:
            if store is not memory:
                store.close()
            raise

    def close(self) -> None:
        """Takes the adapter out of its model, and closes the memory's file."""
        self._adapter.remove()
        self.memory.close()

    def settings(self) -> dict[str, Any]:
        """What the result depends on beside the requests, as plain JSON values."""
        settings = {
            "hyperparameters": self.hparams.source,
            "archive": self.hparams.archive,
            "archive_sha256": self._archive_sha256,
            "memory": len(self.memory),
        }
        if small := self.counterfactual.card:
            settings |= {**small, "counterfactual": self.counterfactual.told}
        return settings

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

        Raises:
            RequestError: The model cannot read a request's prompt after its edit; it is named.
        """
        if not requests:
            return []
        self._refuse_too_long(requests)
        shares = [[request] for request in requests] if isolated else [list(requests)]
        return [MemoryEdit(self.memory, requests=share, **about) for share in shares]

    def _refuse_too_long(self, requests: Sequence[EditRequest]) -> None:
        texts = [f"{request.prompt} {request.target_new}" for request in requests]
        tokenizer = RequestTokenizer.from_transformers(self._adapter.tokenizer)
        alone = tokenizer.encode_prompts(texts)
        contexts = [self._adapter.context(request) for request in requests]
        lengths = [len(own) + len(one) for own, one in zip(alone, contexts, strict=True)]
        limit = context_length(self._adapter.model)
        refuse_long_rows(np.array(lengths), np.arange(len(lengths)), limit, "its edit as context")

    def routing(self, alone: Sequence[EditRequest] | None = None) -> SeracRouting:
        """How prompts are routed: by the memory, or each by its own request's edit alone.

        Args:
            alone: The edits by the place of a prompt's request; None: the memory.
        """
        return SeracRouting(self._router, self._adapter, alone)


class SeracRouting:
    """How an evaluation's prompts are routed; see `evaluation.routing.Routing`.

    Attributes:
        model: Answers routed prompts.
        tokenizer: Its tokenizer.
    """

    def __init__(
        self,
        router: Router,
        adapter: CounterfactualAdapter,
        alone: Sequence[EditRequest] | None,
    ) -> None:
        """Takes what `Serac.routing` is told."""
        self._router, self._adapter, self._alone = router, adapter, alone
        self.model, self.tokenizer = adapter.model, adapter.tokenizer

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
    """The hyperparameters and the editor that they name; see `training.editors.resolve_editor`."""
    return resolve_editor(
        SERACHparams,
        hparams,
        read_editor,
        shipped,
        lambda _, editor, __: editor.hparams,
        "a trained scope and adapter",
    )


def _kind_of_model(counterfactual: Counterfactual) -> type[SeracModel]:
    if counterfactual.fingerprint is None:
        return SeracModel
    return SwitchedModel if counterfactual.same_vocabulary else WholeAnswersModel


def _warn_of_small_models(
    counterfactual: Counterfactual, hparams: SERACHparams, editor: EditorFile, fingerprint: str
) -> None:
    """Tells of another vocabulary, and of an adapter that was trained on another model.

    Args:
        counterfactual: The counterfactual model.
        hparams: The hyperparameters.
        editor: What was trained.
        fingerprint: Of the base model.
    """
    if not counterfactual.same_vocabulary:
        warnings.warn(
            f"small_name ({hparams.small_name}) has {counterfactual.told}; forward refuses prompts "
            "in the scope of an edit",
            stacklevel=4,
        )
    if counterfactual.is_strange_to(editor.card, fingerprint):
        warnings.warn(
            f"the adapter of {hparams.archive} was trained on another counterfactual model "
            f"(small_name: {editor.hparams.get('small_name') or 'null'}); its edits may do "
            "anything here",
            stacklevel=4,
        )


def _store(memory: MemoryLike) -> EditStore:
    if memory is None or isinstance(memory, str | os.PathLike):
        return SqliteStore(memory)
    return memory
