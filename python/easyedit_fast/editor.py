"""The facade: a model, its tokenizer and an editing method."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from easyedit_fast.edits import Edit
from easyedit_fast.errors import HparamsError, ModelError, RequestError
from easyedit_fast.evaluation import Evaluator, add_batch_scores, merge
from easyedit_fast.hparams import Hparams, find_hparams_file, read_yaml
from easyedit_fast.ledger import remove, save_edited_model
from easyedit_fast.methods import Progress, method_factory
from easyedit_fast.metrics import summarise
from easyedit_fast.models.architectures import architecture_of
from easyedit_fast.models.fingerprint import model_fingerprint
from easyedit_fast.models.loading import check_tokenizer, load_model
from easyedit_fast.requests import EditRequest, refuse_contradictions
from easyedit_fast.results import EditResult
from easyedit_fast.sequence import Batch, in_batches
from easyedit_fast.timings import Timings
from easyedit_fast.version import installed_versions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from easyedit_fast.evaluation.isolation import Updates
    from easyedit_fast.models.architectures import Architecture
    from easyedit_fast.updates import ComputedUpdates

Requests: TypeAlias = EditRequest | Mapping[str, Any] | Sequence[EditRequest | Mapping[str, Any]]
HparamsLike: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | Hparams | None
_Scores: TypeAlias = list[dict[str, Any]]
_Score: TypeAlias = Callable[[Sequence[EditRequest], str, "Sequence[Updates] | None"], _Scores]


class Editor:
    """Edits facts inside a causal language model.

    Attributes:
        model: The model, an ordinary transformers model; after `edit` it is the edited one.
        tokenizer: Its tokenizer.
        method: The editing method, made for this model.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        method: str = "rome",
        hparams: HparamsLike = None,
        preset: str | None = None,
        architecture: Architecture | None = None,
    ) -> None:
        """Takes a model that is loaded already.

        Args:
            model: A causal language model of transformers.
            tokenizer: Its (fast) tokenizer.
            method: Name of the editing method.
            hparams: Path of a YAML file, a shipped name such as ``ROME/llama-7b``, keys that
                override the rule's, or ready hyperparameters; None takes the rule by
                architecture and depth.
            preset: ``exact``, ``default`` (unless given) or ``fast``: quality against time.
            architecture: Description of a model family that the package does not know.

        Raises:
            HparamsError: The method or a hyperparameter cannot be used.
            MissingFileError: There is no such hyperparameter file.
            ModelError: The model's family is unknown, it is no causal language model, or the
                tokenizer is not its own.
        """
        if not hasattr(model, "get_input_embeddings"):
            architecture_of(model)  # says what is wanted instead
        check_tokenizer(model, tokenizer)
        self.model = model
        self.tokenizer = tokenizer
        self.method = method_factory(method)(model, tokenizer, architecture, hparams, preset)
        self._evaluator = Evaluator(model, tokenizer)
        self._fingerprint = model_fingerprint(model, self.method.architecture)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path | None = None,
        *,
        method: str = "rome",
        hparams: HparamsLike = None,
        preset: str | None = None,
        architecture: Architecture | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        revision: str | None = None,
    ) -> Editor:
        """Loads a model and its tokenizer, and makes an editor for them.

        Args:
            name_or_path: ``"demo"`` (the packaged demo model), a folder, or a name on the hub;
                None takes ``model_name`` of the hyperparameters.
            method: Name of the editing method.
            hparams: As for `Editor`.
            preset: As for `Editor`.
            architecture: As for `Editor`.
            device: Where the model goes, ``"auto"`` for all devices; None: what the
                hyperparameters say where there is a GPU, else the CPU.
            dtype: Dtype of the weights; None: float16 where the hyperparameters have ``fp16``,
                else as they were saved.
            revision: Of a model on the hub.

        Raises:
            ModelError: There is no such model, or it is no causal language model.
            MissingPackageError: The demo model's package is not installed.
        """
        keys = _loading_keys(hparams)
        name = name_or_path if name_or_path is not None else keys.get("model_name")
        if not name:
            raise ModelError("no model is named; give its name, its folder or 'demo'")
        if device is None and torch.cuda.is_available():
            device = "auto" if keys.get("model_parallel") else _device(keys.get("device"))
        if dtype is None and keys.get("fp16"):
            dtype = "float16"
        model, tokenizer = load_model(name, device=device, dtype=dtype, revision=revision)
        return cls(
            model,
            tokenizer,
            method=method,
            hparams=hparams,
            preset=preset,
            architecture=architecture,
        )

    def edit(
        self,
        requests: Requests,
        *,
        isolated: bool = False,
        sequential: int | None = None,
        evaluate: bool = True,
        generate: bool = True,
        progress: Progress | None = None,
    ) -> EditResult:
        """Edits the model: it holds all the requested facts afterwards.

        Args:
            requests: One request or several, as `EditRequest` or as dicts of its fields.
            isolated: Give each request its own copy of the model instead, as benchmarks do: the
                model stays as it is, and ``result.edits`` holds one edit a request.
            sequential: Edit in batches of this many requests, one after another: each is computed
                for the model that holds the batches before it, and ``result.edits`` holds one edit
                a batch. None: all requests in one batch.
            evaluate: Score the requests before and after.
            generate: Score greedy generations too, not only teacher-forced tokens.
            progress: Called with the number of requests that are done, and of all.

        Returns:
            Edits, metrics and timings.

        Raises:
            RequestError: A request cannot be used, or two of one batch contradict each other.
            HparamsError: ``sequential`` is not positive, or goes with ``isolated``.
            NonFiniteError: A result is not finite. The weights are as they were.
        """
        request_list = _request_list(requests)
        if isolated and sequential is not None:
            raise HparamsError("isolated edits know no order; give either isolated or sequential")
        batches = [] if isolated else in_batches(request_list, sequential)
        for batch in batches:  # a later one may change what an earlier one set
            refuse_contradictions(batch.requests, first=batch.first)
        timings = Timings()
        score = self._scorer(generate, timings) if evaluate else None
        pre = score(request_list, "before", None) if score else []
        if isolated:
            edits, details = self._compute(request_list, True, timings, progress)
            own = [edit.updates for edit in edits]
            post = score(request_list, "after", own) if score else []
            post_batch: _Scores = []
        else:
            edits, details, post_batch, post = self._edit_in_batches(
                batches, score, timings, progress
            )
        try:
            metrics = merge(request_list, pre, post) if evaluate else []
            if sequential is not None:
                metrics = add_batch_scores(metrics, post_batch)
        except BaseException:
            # The caller gets no result to revert by.
            if not isolated:
                remove(self.model, edits)
            raise
        settings = {"isolated": isolated, "sequential": sequential, "method": self.method.name}
        return EditResult(
            edits=edits,
            metrics=metrics,
            summary=summarise(metrics),
            timings=timings,
            details=details,
            settings={**settings, **self.method.settings()},
        )

    @contextlib.contextmanager
    def editing(self, requests: Requests, **options: Any) -> Iterator[EditResult]:
        """`edit` for the time of a ``with`` block; the model is as before afterwards."""
        result = self.edit(requests, **options)
        try:
            yield result
        finally:
            self._take_out(result.edits)

    def save_model(self, folder: str | Path) -> None:
        """Saves the edited model and its tokenizer as ordinary transformers folders.

        The config lists the ids of the edits, so that none of them is applied a second time; so it
        does where ``model.save_pretrained`` is called.

        Raises:
            DataFileError: The folder is a file.
            EditStateError: An edited weight was changed by other means, or loaded anew.
        """
        save_edited_model(self.model, self.tokenizer, folder)

    def _edit_in_batches(
        self,
        batches: Sequence[Batch],
        score: _Score | None,
        timings: Timings,
        progress: Progress | None,
    ) -> tuple[list[Edit], list[dict[str, Any]], _Scores, _Scores]:
        """Applies one batch after another, or none of them.

        Returns:
            An edit a batch; then, one a request: what the method tells, the scores right after its
            own batch, and those of the final model.
        """
        requests = [request for batch in batches for request in batch.requests]
        edits: list[Edit] = []
        details: list[dict[str, Any]] = []
        post_batch: _Scores = []
        try:
            for batch in batches:
                with batch.naming_errors():
                    tell = None if progress is None else batch.progress(progress)
                    made, told = self._compute(batch.requests, False, timings, tell)
                    edits += made
                    details += told
                    with timings.phase("update"):
                        edits[-1].apply(self.model)
                if score and batch is not batches[-1]:
                    post_batch += score(batch.requests, "after each batch", None)
            post = score(requests, "after", None) if score else []
        except BaseException:
            # The caller gets no result to revert by.
            self._take_out(edits)
            raise
        # Right after the last batch, the model is the final one.
        return edits, details, post_batch + post[len(post_batch) :], post

    def _take_out(self, edits: Iterable[Edit]) -> None:
        """Reverts those that are applied, in one go."""
        applied = [edit for edit in edits if edit.is_applied]
        if applied:
            remove(self.model, applied)

    def _scorer(self, generate: bool, timings: Timings) -> _Score:
        def score(
            requests: Sequence[EditRequest], when: str, updates: Sequence[Updates] | None
        ) -> _Scores:
            with timings.phase(f"evaluate {when}"):
                return self._evaluator.score(requests, updates=updates, generate=generate)

        return score

    def _compute(
        self,
        requests: Sequence[EditRequest],
        isolated: bool,
        timings: Timings,
        progress: Progress | None,
    ) -> tuple[list[Edit], list[dict[str, Any]]]:
        """Edits that are not applied yet, and what the method tells of each request."""
        computed = self.method.compute(
            requests, isolated=isolated, timings=timings, progress=progress
        )
        return self._as_edits(requests, computed, isolated), computed.details

    def _as_edits(
        self, requests: Sequence[EditRequest], computed: ComputedUpdates, isolated: bool
    ) -> list[Edit]:
        shares = [[request] for request in requests] if isolated else [requests]
        return [
            Edit(
                updates,
                requests=share,
                method=self.method.name,
                model_name=str(getattr(self.model, "name_or_path", "")),
                model_fingerprint=self._fingerprint,
                architecture=self.method.architecture,
                hparams=self.method.used_hparams(),
                settings=self.method.settings(),
                versions=installed_versions(),
            )
            for updates, share in zip(computed.updates, shares, strict=True)
        ]


def _request_list(requests: Requests) -> list[EditRequest]:
    """The requests as a list; dicts become `EditRequest`."""
    if isinstance(requests, str | os.PathLike):
        raise RequestError(
            f"{os.fspath(requests)!r} is a text; pass requests, e.g. read_requests(path)"
        )
    if isinstance(requests, EditRequest | Mapping):
        requests = [requests]
    made: list[EditRequest] = []
    for place, request in enumerate(requests):
        if isinstance(request, EditRequest):
            made.append(request)
            continue
        try:
            made.append(EditRequest.from_dict(request))
        except RequestError as error:
            raise RequestError(error.reason, record=place, field=error.field) from None
    if not made:
        raise RequestError("there is no request; give at least one")
    return made


def _loading_keys(hparams: HparamsLike) -> Mapping[str, Any]:
    """The hyperparameters as far as they are given: some of them say how the model is loaded."""
    if hparams is None:
        return {}
    if isinstance(hparams, Mapping):
        return hparams
    if isinstance(hparams, Hparams):
        return hparams.to_dict()
    return read_yaml(find_hparams_file(hparams))


def _device(key: int | str | None) -> str | None:
    """EasyEdit's ``device``: the number of a GPU, or torch's name of a device."""
    return f"cuda:{key}" if isinstance(key, int) else key
