"""The facade: a model, its tokenizer and an editing method."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from easyedit_fast.editing import editing_of
from easyedit_fast.edits import Edit
from easyedit_fast.errors import HparamsError, ModelError
from easyedit_fast.evaluation import Evaluator, add_batch_scores, join
from easyedit_fast.failures import Failures, OnError, numbered
from easyedit_fast.hparams import Hparams, find_hparams_file, read_yaml
from easyedit_fast.methods import Progress, method_factory
from easyedit_fast.metrics import summarise
from easyedit_fast.models.architectures import architecture_of
from easyedit_fast.models.loading import check_tokenizer, device_of, load_model
from easyedit_fast.models.memory import (
    BatchSize,
    check_batch_size,
    make_room_after,
    out_of_memory_in_one_line,
)
from easyedit_fast.requests import EditRequest, Requests, contradictions, request_list
from easyedit_fast.results import EditResult
from easyedit_fast.sequence import Batch, in_batches
from easyedit_fast.timings import Timings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from easyedit_fast.models.architectures import Architecture
    from easyedit_fast.serac.store import EditStore

HparamsLike: TypeAlias = str | os.PathLike[str] | Mapping[str, Any] | Hparams | None
MemoryLike: TypeAlias = "str | os.PathLike[str] | EditStore | None"
_Scores: TypeAlias = list[dict[str, Any]]
_Edited: TypeAlias = tuple[list[Edit], list[dict[str, Any]], _Scores, _Scores]
_Score: TypeAlias = Callable[[Sequence[EditRequest], str, "Sequence[Edit] | None"], _Scores]


@dataclasses.dataclass(frozen=True)
class _Call:
    """What all steps of one call of `Editor.edit` share.

    Attributes:
        timings: Gets their seconds.
        batch_size: Requests that are optimised at once.
        score: Scores requests; None where nothing is evaluated.
    """

    timings: Timings
    batch_size: BatchSize
    score: _Score | None

    def scores(
        self,
        requests: Sequence[EditRequest],
        when: str,
        alone: Sequence[Edit] | None = None,
    ) -> _Scores:
        """One dict a request, or nothing where nothing is evaluated."""
        return [] if self.score is None else self.score(requests, when, alone)


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
        memory: MemoryLike = None,
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
            memory: SERAC's edits: the file that holds them, made where it is not there, or a
                store; None keeps them in the process.

        Raises:
            HparamsError: The method or a hyperparameter cannot be used.
            MissingFileError: There is no such hyperparameter file.
            ModelError: The model's family is unknown, it is no causal language model, or the
                tokenizer is not its own.
        """
        if not hasattr(model, "get_input_embeddings"):
            architecture_of(model)  # says what is wanted instead
        check_tokenizer(model, tokenizer)
        self.tokenizer = tokenizer
        self.method = method_factory(method)(
            model,
            tokenizer,
            architecture=architecture,
            hparams=hparams,
            preset=preset,
            memory=memory,
        )
        self._editing = editing_of(model, tokenizer, self.method)
        self.model = self._editing.model
        self._evaluator = Evaluator(self._editing.base, tokenizer)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path | None = None,
        *,
        method: str = "rome",
        hparams: HparamsLike = None,
        preset: str | None = None,
        architecture: Architecture | None = None,
        memory: MemoryLike = None,
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
            memory: As for `Editor`.
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
        if device is None:
            device = device_of(keys)
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
            memory=memory,
        )

    @out_of_memory_in_one_line()
    def edit(
        self,
        requests: Requests,
        *,
        isolated: bool = False,
        sequential: int | None = None,
        batch_size: BatchSize = "auto",
        on_error: OnError = "raise",
        evaluate: bool = True,
        generate: bool = True,
        fluency: bool = False,
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
            batch_size: Requests that are optimised at once; ``auto`` takes as many as the memory
                at hand allows. Where memory runs out the batch is halved, and nothing is lost.
                The result does not depend on it.
            on_error: ``raise``: a request that fails ends the call, and nothing is changed.
                ``skip``: it is left out, and the others finish. It fails where it contradicts an
                earlier one of its batch, where it does not fit the model (with SERAC's edit before
                a prompt too), where what is computed of it is not finite, and where it alone takes
                more memory than there is; ``result.failures`` has the errors.
            evaluate: Score the requests before and after.
            generate: Score greedy generations too, not only teacher-forced tokens.
            fluency: Measure the n-gram entropy of a generated text too; see `Evaluator.score`.
            progress: Called with the number of requests that are done, and of all.

        Returns:
            Edits, metrics and timings.

        Raises:
            RequestError: A request cannot be used, or two of one batch contradict each other.
            HparamsError: ``sequential``, ``batch_size`` or ``on_error`` cannot be used, or
                ``sequential`` goes with ``isolated``.
            NonFiniteError: A result is not finite. The weights are as they were.
            OutOfMemoryError: Memory ran out, with one request at a time too. The weights are as
                they were.
        """
        check_batch_size(batch_size)
        failures = Failures(on_error)
        asked = request_list(requests)
        if isolated and sequential is not None:
            raise HparamsError("isolated edits know no order; give either isolated or sequential")
        batches = [] if isolated else in_batches(asked, sequential)
        for batch in batches:  # a later one may change what an earlier one set
            for place, error in contradictions(batch.requests):
                failures.refuse(batch.first + place, error)
        timings = Timings()
        score = self._scorer(timings, generate=generate, fluency=fluency) if evaluate else None
        call = _Call(timings, batch_size, score)
        pre = self._score_before(asked, call, failures)
        while True:
            with failures.catching(range(len(asked))):  # prompts too long with their edits
                if isolated:
                    made = self._edit_apart(asked, call, failures, progress)
                else:
                    made = self._edit_in_batches(batches, call, failures, progress)
                break
        edits, details, post_batch, post = made
        with self._undoing(edits):
            metrics = join(asked, pre, post, failures) if evaluate else []
            if sequential is not None:
                metrics = add_batch_scores(metrics, post_batch)
        settings = {"isolated": isolated, "sequential": sequential, "method": self.method.name}
        return EditResult(
            edits=edits,
            metrics=metrics,
            summary=summarise(metrics),
            timings=timings,
            details=details,
            settings={**settings, **self.method.settings()},
            failures=dict(failures),
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
        self._editing.save(folder)

    def _edit_apart(
        self,
        requests: Sequence[EditRequest],
        call: _Call,
        failures: Failures,
        progress: Progress | None,
    ) -> _Edited:
        """Gives each request a model of its own; see `_edit_in_batches`."""
        edits, details = self._compute(requests, True, call, failures, progress)
        finished = failures.among(range(len(requests)))
        with numbered(finished):
            post = call.scores([requests[place] for place in finished], "after", edits)
        return edits, details, [], post

    def _edit_in_batches(
        self,
        batches: Sequence[Batch],
        call: _Call,
        failures: Failures,
        progress: Progress | None,
    ) -> _Edited:
        """Applies one batch after another, or none of them.

        Returns:
            An edit a batch; what the method tells of each request; then, for each that did not
            fail, the scores right after its own batch, and those of the final model.
        """
        requests = [request for batch in batches for request in batch.requests]
        edits: list[Edit] = []
        details: list[dict[str, Any]] = []
        post_batch: _Scores = []
        with self._undoing(edits):
            for batch in batches:
                tell = None if progress is None else batch.progress(progress)
                part = failures.part(batch.first, len(batch.requests))
                with batch.naming_errors(), part as own:
                    made, told = self._compute(batch.requests, False, call, own, tell)
                    edits += made
                    details += told
                    for edit in made:  # none where all of them failed
                        with call.timings.phase("update"):
                            edit.apply(self.model)
                if batch is not batches[-1]:
                    finished = own.others(batch.requests)
                    places = own.among(range(len(batch.requests)))
                    with numbered([batch.first + place for place in places]):
                        post_batch += call.scores(finished, "after each batch")
            with numbered(failures.among(range(len(requests)))):
                post = call.scores(failures.others(requests), "after")
        # Right after the last batch, the model is the final one.
        return edits, details, post_batch + post[len(post_batch) :], post

    @contextlib.contextmanager
    def _undoing(self, edits: list[Edit]) -> Iterator[None]:
        """Takes the edits out where the block fails: the caller gets no result to revert by."""
        try:
            yield
        except BaseException as error:
            make_room_after(error)
            self._take_out(edits)
            raise

    def _take_out(self, edits: Iterable[Edit]) -> None:
        """Reverts those that are applied, in one go."""
        applied = [edit for edit in edits if edit.is_applied]
        if applied:
            self._editing.take_out(applied)

    def _scorer(self, timings: Timings, **parts: bool) -> _Score:
        def score(
            requests: Sequence[EditRequest], when: str, alone: Sequence[Edit] | None
        ) -> _Scores:
            with timings.phase(f"evaluate {when}"):
                told: dict[str, Any] = {**self._editing.evaluated(alone), **parts}
                return self._evaluator.score(requests, **told)

        return score

    def _score_before(
        self, requests: Sequence[EditRequest], call: _Call, failures: Failures
    ) -> dict[int, dict[str, Any]]:
        """Scores by place; a request with a prompt that does not fit the model fails."""
        while True:
            places = failures.among(range(len(requests)))
            with failures.catching(places):
                scores = call.scores(failures.others(requests), "before")
                return dict(zip(places, scores, strict=False))  # none, if nothing is evaluated

    def _compute(
        self,
        requests: Sequence[EditRequest],
        isolated: bool,
        call: _Call,
        failures: Failures,
        progress: Progress | None,
    ) -> tuple[list[Edit], list[dict[str, Any]]]:
        """Edits that are not applied yet, and what the method tells of each request."""
        return self._editing.compute(
            requests,
            isolated=isolated,
            timings=call.timings,
            batch_size=call.batch_size,
            failures=failures,
            progress=progress,
        )


def _loading_keys(hparams: HparamsLike) -> Mapping[str, Any]:
    """The hyperparameters as far as they are given: some of them say how the model is loaded."""
    if hparams is None:
        return {}
    if isinstance(hparams, Mapping):
        return hparams
    if isinstance(hparams, Hparams):
        return hparams.to_dict()
    return read_yaml(find_hparams_file(hparams))
