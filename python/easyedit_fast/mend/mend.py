"""MEND for one model: from requests to the updates of its weights."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from easyedit_fast.data import RequestTokenizer
from easyedit_fast.errors import (
    HparamsError,
    NonFiniteError,
)
from easyedit_fast.failures import Failures
from easyedit_fast.files import digest
from easyedit_fast.hparams import Hparams
from easyedit_fast.mend.editor_files import read_editor, shipped_editor
from easyedit_fast.mend.factors import TargetRows, TokenFactors, model_logits, token_factors
from easyedit_fast.mend.hparams import HOW_EDITS_SHARE, MENDHyperParams
from easyedit_fast.mend.modules import edited_modules, network_of, weight_sizes
from easyedit_fast.mend.together import corrected_sum, least_squares, summed
from easyedit_fast.models.architectures import Architecture, architecture_of
from easyedit_fast.models.fingerprint import model_fingerprint
from easyedit_fast.models.limits import (
    context_length,
    refuse_long_rows,
    refuse_unknown_tokens,
    tokens_without_embedding,
)
from easyedit_fast.models.memory import BatchSize, available_bytes, run_in_batches
from easyedit_fast.requests import EditRequest
from easyedit_fast.timings import Timings
from easyedit_fast.training.editors import EditorFile, resolve_editor, warn_of_another_model
from easyedit_fast.updates import ComputedUpdates, LowRankUpdate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_AT_ONCE = 64  # above it a batch is no faster
_SHARE = 0.8  # of the free memory
_FLOAT32 = 4
_STATES = 16  # of a block, for each token and the widest of its states
_LOGIT_COPIES = 4  # logits, their float32 copy and log-softmax, and a gradient


@dataclasses.dataclass(frozen=True, eq=False)
class _Computed:
    """What is computed of one request.

    Attributes:
        updates: Its updates by weight.
        inputs: By weight, what entered at its tokens, ``[tokens, d_in]``; empty where it is not
            needed.
        nll: Mean negative log-likelihood of its target before the edit.
    """

    updates: dict[str, LowRankUpdate]
    inputs: dict[str, Tensor]
    nll: float


class Mend:
    """MEND with a trained editor network (Mitchell et al., arXiv 2110.11309).

    A request's update does not depend on the others. How several of them share a model is a
    hyperparameter (`mend.together`).

    Attributes:
        name: ``mend``.
        hparams: The hyperparameters.
        architecture: Where the model's parts are.
        network: The editor network.
    """

    name = "mend"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        hparams: str | os.PathLike[str] | Mapping[str, Any] | Hparams | None = None,
        architecture: Architecture | None = None,
    ) -> None:
        """Reads the editor and checks that it fits the model.

        Args:
            model: The model to edit.
            tokenizer: Its (fast) tokenizer.
            hparams: Keys that override those in the editor's file, the path of a YAML file or a
                shipped name, or hyperparameters ready made; ``archive`` names the editor's file.
                Without it the editor that comes with the package is taken, where there is one for
                this very model.
            architecture: Description of a family that the package does not know.

        Raises:
            HparamsError: No editor is named, or a value cannot be used.
            MissingFileError: A file is not there.
            DataFileError: The editor's file is damaged, or not one.
            ModelError: The editor is not for this model, or not trained.
        """
        self.architecture = architecture or architecture_of(model)
        fingerprint = model_fingerprint(model, self.architecture)
        self.hparams, editor = resolve_mend_hparams(
            hparams, functools.partial(shipped_editor, fingerprint)
        )
        warn_of_another_model(self.hparams.archive, editor, fingerprint)
        self._archive_sha256 = digest(Path(str(self.hparams.archive)))
        self._model = model
        self._tokenizer = tokenizer
        RequestTokenizer.from_transformers(tokenizer)  # refuses one that cannot be used
        self._modules, self._layouts = edited_modules(model, self.hparams.inner_params)
        self._sizes = weight_sizes(self._modules, self._layouts)
        self.network = network_of(self.hparams, editor, self._sizes)
        self.network.eval().requires_grad_(False)

    def settings(self) -> dict[str, Any]:
        """What the result depends on beside the requests, as plain JSON values."""
        return {
            "hyperparameters": self.hparams.source,
            "archive": self.hparams.archive,
            "archive_sha256": self._archive_sha256,
            "inner_params": list(self.hparams.inner_params),
            "lr_scale": self.hparams.lr_scale,
            "together": self.hparams.together,
            "ridge": self.hparams.ridge,
        }

    def used_hparams(self) -> dict[str, Any]:
        """The hyperparameters, as plain JSON values."""
        return self.hparams.to_dict()

    def requests_at_once(self, requests: Sequence[EditRequest]) -> int:
        """How many of these are computed together: as many as the memory at hand takes."""
        longest = max((self._text(request) for request in requests), key=len, default="")
        tokenizer = RequestTokenizer.from_transformers(self._tokenizer)
        tokens = int(tokenizer.encode([longest]).lengths[0])
        fitting = _SHARE * available_bytes(self._model.device) / self._bytes_of(tokens)
        return max(1, min(len(requests), _AT_ONCE, int(fitting)))

    def _bytes_of(self, tokens: int) -> int:
        """What a row takes at most: the states that the backward pass needs, and the logits."""
        config = self._model.config.get_text_config()
        widest = max(max(sizes) for sizes in self._sizes.values())
        of_blocks: int = config.num_hidden_layers * _STATES * max(config.hidden_size, widest)
        vocabulary: int = config.vocab_size
        return _FLOAT32 * tokens * (of_blocks + _LOGIT_COPIES * vocabulary)

    @staticmethod
    def _text(request: EditRequest) -> str:
        return f"{request.prompt} {request.target_new}"

    def compute(
        self,
        requests: Sequence[EditRequest],
        *,
        isolated: bool,
        timings: Timings,
        batch_size: BatchSize = "auto",
        failures: Failures | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> ComputedUpdates:
        """Computes the updates of some requests; the model is left as it was.

        Args:
            requests: The requests.
            isolated: One update a request, or one for all of them.
            timings: Gets the phases ``tokenise``, ``gradients`` and ``editor``.
            batch_size: Requests that run together; fewer where memory runs out.
            failures: Requests that are left out, those that fail here among them; None raises the
                first failure.
            progress: Called after each batch with the number of requests done and of all.

        Raises:
            RecordError: A request does not fit the model, has values that are not finite, or takes
                more memory than there is. It is named.
        """
        self.network.to(self._model.device)
        failures = Failures() if failures is None else failures
        size = self.requests_at_once(requests) if batch_size == "auto" else batch_size
        found: dict[int, _Computed] = {}
        keep_inputs = not isolated and self.hparams.together != "sum"

        def run(places: Sequence[int]) -> None:
            found.update(self._batch(requests, places, failures, timings, keep_inputs))

        wanted = failures.among(range(len(requests)))
        for places, _ in run_in_batches(wanted, run, max(1, size), refuse=failures.refuse):
            if progress is not None:
                progress(places[-1] + 1, len(requests))
        finished = failures.among(range(len(requests)))
        own = [found[place] for place in finished]
        details = [
            {} if place in failures else {"nll": found[place].nll} for place in range(len(requests))
        ]
        with timings.phase("editor"):
            updates = [one.updates for one in own] if isolated or not own else [self._joined(own)]
        return ComputedUpdates(updates, details)

    def _joined(self, own: Sequence[_Computed]) -> dict[str, LowRankUpdate]:
        """One update for several requests."""
        edits = [one.updates for one in own]
        if len(own) == 1 or self.hparams.together == "sum":
            return summed(edits)
        join = least_squares if self.hparams.together == "least_squares" else corrected_sum
        return join(edits, [one.inputs for one in own], self.hparams.ridge)

    def _batch(
        self,
        requests: Sequence[EditRequest],
        places: Sequence[int],
        failures: Failures,
        timings: Timings,
        keep_inputs: bool,
    ) -> dict[int, _Computed]:
        """What is computed of the requests at some places, but for those that fail."""
        with timings.phase("tokenise"):
            fitting, rows = failures.made_of_others(
                places, lambda fitting: self._rows([requests[place] for place in fitting])
            )
        if rows is None:
            return {}
        with timings.phase("gradients"):
            run = functools.partial(model_logits, self._model, rows)
            gradients = token_factors(run, self._modules, rows)
            _refuse_not_finite(gradients, fitting, failures)
        with timings.phase("editor"), torch.no_grad():
            factors = self.network(gradients.factors)
            split = {
                name: [
                    side.split(gradients.tokens[name])
                    for side in (*pair, gradients.factors[name][0])
                ]
                for name, pair in factors.items()
            }
            losses = gradients.losses.tolist()
            made: dict[int, _Computed] = {}
            for number, place in enumerate(fitting):
                if place in failures:
                    continue
                with failures.catching(fitting), _naming(number):
                    updates = {
                        name: LowRankUpdate(delta[number].T, x[number], self._layouts[name])
                        for name, (x, delta, _) in split.items()
                    }
                    inputs = {name: own[number] for name, (_, _, own) in split.items()}
                    kept = inputs if keep_inputs else {}
                    made[place] = _Computed(updates, kept, losses[number])
        return made

    def _rows(self, requests: Sequence[EditRequest]) -> TargetRows:
        tokenizer = RequestTokenizer.from_transformers(self._tokenizer)
        texts = [self._text(request) for request in requests]
        spans = [
            (len(request.prompt), len(text)) for request, text in zip(requests, texts, strict=True)
        ]
        batch = tokenizer.encode(texts, target_spans=spans)
        assert batch.labels is not None
        records = np.arange(len(requests))
        unknown = tokens_without_embedding(self._model, self._tokenizer)
        refuse_unknown_tokens(batch.input_ids, batch.labels, records, unknown)
        # The last token is not run.
        refuse_long_rows(batch.lengths - 1, records, context_length(self._model), "its target")
        device = self._model.device
        ids, mask, labels = (
            torch.from_numpy(array).to(device)
            for array in (batch.input_ids, batch.attention_mask, batch.labels)
        )
        return TargetRows.of(ids, mask, labels)


def resolve_mend_hparams(
    hparams: str | os.PathLike[str] | Mapping[str, Any] | Hparams | None,
    shipped: Callable[[], Path | None] = lambda: None,
) -> tuple[MENDHyperParams, EditorFile]:
    """The hyperparameters and the editor that they name; see `training.editors.resolve_editor`."""
    return resolve_editor(
        MENDHyperParams, hparams, read_editor, shipped, _in_file, "a trained editor"
    )


def _in_file(path: Path, editor: EditorFile, given: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters that an editor's file holds.

    Raises:
        HparamsError: It says nothing of the weights, and nor do those given.
    """
    if not editor.hparams and "inner_params" not in given:
        raise HparamsError(
            f"{path} does not say which weights it edits, as checkpoints of other packages do "
            "not; give the hyperparameters that it was trained with, inner_params among them"
        )
    return {name: key for name, key in editor.hparams.items() if name not in HOW_EDITS_SHARE}


def _refuse_not_finite(gradients: TokenFactors, places: Sequence[int], failures: Failures) -> None:
    """Leaves out the requests whose activations or loss are NaN or infinite."""
    finite = torch.stack([gradients.inputs_finite, gradients.losses.isfinite()]).tolist()
    for place, inputs, loss in zip(places, *finite, strict=True):
        if not inputs:
            reason = "its activations at the edited layers hold NaN or infinity"
        elif not loss:
            reason = "the negative log-likelihood of its target gave NaN or infinity"
        else:
            continue
        failures.refuse(place, NonFiniteError(f"{reason}; shorten or leave it out"))


@contextlib.contextmanager
def _naming(number: int) -> Iterator[None]:
    """Names the record of an error that names none."""
    try:
        yield
    except NonFiniteError as error:
        raise error.at(number) from error
