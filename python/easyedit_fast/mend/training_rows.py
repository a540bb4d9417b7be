"""The prompts that MEND learns from: tokenised, their trunk kept on disk."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from easyedit_fast.data import RequestTokenizer
from easyedit_fast.errors import NonFiniteError, RequestError
from easyedit_fast.mend.factors import TargetRows
from easyedit_fast.mend.losses import TailRows
from easyedit_fast.models.architectures import Architecture
from easyedit_fast.models.limits import (
    context_length,
    refuse_long_rows,
    refuse_unknown_tokens,
    tokens_without_embedding,
)
from easyedit_fast.models.passes import block_outputs
from easyedit_fast.models.tail import Tail
from easyedit_fast.training.records import locality_texts
from easyedit_fast.training.trunk_cache import (
    TrunkCache,
    open_final_cache,
    open_trunk_cache,
    padded_states,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from easyedit_fast.requests import EditRequest

_NO_LABEL = -100
_TEXTS_AT_ONCE = 4096

CacheProgress = Callable[[str, int, int], None]
"""Called with what is computed, the rows done and of all."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Texts:
    """Tokenised texts.

    Attributes:
        ids: Token ids of each.
        labels: The same at the answer's tokens, -100 elsewhere.
        records: The record of each.
    """

    ids: list[NDArray[np.int64]]
    labels: list[NDArray[np.int64]]
    records: NDArray[np.int64]

    @functools.cached_property
    def lengths(self) -> list[int]:
        """Tokens of each."""
        return [len(own) for own in self.ids]

    @functools.cached_property
    def answers(self) -> list[int]:
        """Tokens of each one's answer."""
        return [int((own != _NO_LABEL).sum()) for own in self.labels]


@dataclasses.dataclass(frozen=True, eq=False)
class LocalityRows:
    """Rows whose predictions shall stay.

    Attributes:
        rows: The rows, whole.
        reads: ``[rows, t]`` bool, the tokens whose predictions are looked at.
        final: ``[tokens, d_model]``, what leaves the last block there, unedited.
    """

    rows: TailRows
    reads: Tensor
    final: Tensor

    @torch.no_grad()
    def base_logits(self) -> Tensor:
        """The unedited model's logits there, ``[tokens, vocabulary]``."""
        return self.rows.tail.head(self.final)

    def labels(self) -> Tensor:
        """The answers' tokens that these predict, ``[tokens]``; -100 where there is none."""
        return self.rows.rows.labels[self.reads]


class TrainingRows:
    """The rows of some records.

    Attributes:
        records: How many records there are.
        rephrases: Of each record, the places of its rephrase prompts among the target rows; its
            rewrite prompt where it has none. The rewrite prompts come first, in order.
        localities: Of each record, the places of its locality prompts among the locality rows.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        architecture: Architecture,
        layer: int,
        requests: Sequence[EditRequest],
        *,
        folder: Path | None = None,
        progress: CacheProgress | None = None,
    ) -> None:
        """Tokenises the prompts of the records, and runs them up to the first edited layer.

        Args:
            model: The model.
            tokenizer: Its (fast) tokenizer.
            architecture: Where its parts are.
            layer: The first edited layer, from 0.
            requests: The records.
            folder: Where the trunk is kept; None: in the user's cache.
            progress: Told while it is computed.

        Raises:
            RequestError: A record has no locality prompt, or does not fit the model.
            NonFiniteError: Its hidden states are not finite.
        """
        self.records = len(requests)
        self._model, self._architecture, self._layer = model, architecture, layer
        self._outputs = block_outputs(model, architecture, layer)
        targets = [(place, r.prompt, r.target_new) for place, r in enumerate(requests)]
        self.rephrases: list[list[int]] = []
        for place, request in enumerate(requests):
            own = [(place, prompt, request.target_new) for prompt in request.rephrase_prompt]
            first = len(targets)
            self.rephrases.append(list(range(first, first + len(own))) or [place])
            targets += own
        probes = [locality_texts(place, request) for place, request in enumerate(requests)]
        ends = np.cumsum([len(own) for own in probes])
        self.localities = [
            list(range(int(end) - len(own), int(end)))
            for end, own in zip(ends, probes, strict=True)
        ]
        self._targets = _tokenised(model, tokenizer, targets)
        self._locality = _tokenised(model, tokenizer, [text for own in probes for text in own])
        self.target_trunk = self._opened(self._targets, "edits", folder, progress)
        self.locality_trunk = self._opened(self._locality, "locality prompts", folder, progress)
        self._final = open_final_cache(
            model,
            architecture,
            layer,
            self.locality_trunk,
            folder=folder,
            progress=_named(progress, "locality answers"),
        )

    def digest(self) -> str:
        """SHA-256 over all that the trunks' tokens do not tell: labels, and whose a row is."""
        found = hashlib.sha256(json.dumps([self.rephrases, self.localities]).encode())
        for labels in (*self._targets.labels, *self._locality.labels):
            found.update(len(labels).to_bytes(8, "little") + labels.tobytes())
        return found.hexdigest()

    @property
    def target_tokens(self) -> list[int]:
        """Tokens of each target row that are asked."""
        return self._targets.answers

    def locality_tokens(self, tokens: Literal["all", "answer"]) -> list[int]:
        """Tokens of each locality row whose predictions shall stay."""
        return self._locality.lengths if tokens == "all" else self._locality.answers

    def _opened(
        self, texts: _Texts, what: str, folder: Path | None, progress: CacheProgress | None
    ) -> TrunkCache:
        try:
            return open_trunk_cache(
                self._model,
                self._architecture,
                self._layer,
                [own.tolist() for own in texts.ids],
                folder=folder,
                progress=_named(progress, what),
            )
        except NonFiniteError as error:
            raise error.at(int(texts.records[error.record or 0])) from error

    def require_answers(self) -> None:
        """Checks that there is an answer to every locality prompt.

        Raises:
            RequestError: There is none to one.
        """
        for row, tokens in enumerate(self._locality.answers):
            if not tokens:
                raise RequestError(
                    "a prompt has no ground_truth, and with loc_tokens 'answer' nothing else of it "
                    "is looked at; add it, or use loc_tokens 'all'",
                    record=int(self._locality.records[row]),
                    field="locality",
                )

    def targets(self, places: Sequence[int]) -> TailRows:
        """Target rows at some places, up to the last token that predicts their target."""
        ids, mask, labels = self._padded(self._targets, places)
        rows = TargetRows.of(ids, mask, labels)
        return self._with_trunk(rows, self.target_trunk, places)

    def locality(self, places: Sequence[int], tokens: Literal["all", "answer"]) -> LocalityRows:
        """Locality rows at some places.

        Args:
            places: The places.
            tokens: Whose predictions shall stay.
        """
        ids, mask, labels = self._padded(self._locality, places)
        following = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], _NO_LABEL)], 1)
        rows = self._with_trunk(TargetRows(ids, mask, following), self.locality_trunk, places)
        reads = mask.bool() if tokens == "all" else following != _NO_LABEL
        final = torch.cat([self._final[place] for place in places])[reads[mask.bool()]]
        device = self._model.device
        return LocalityRows(rows, reads.to(device), final.to(device, self._model.dtype))

    def read_ahead(self, targets: Sequence[int], localities: Sequence[int]) -> None:
        """Has the system begin to read what `targets` and `locality` take of these places."""
        self.target_trunk.read_ahead(targets)
        self.locality_trunk.read_ahead(localities)
        self._final.read_ahead(localities)

    def _padded(self, texts: _Texts, places: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        ids = [torch.from_numpy(texts.ids[place]) for place in places]
        labels = [torch.from_numpy(texts.labels[place]) for place in places]
        mask = pad_sequence([torch.ones_like(own) for own in ids], True)
        wanted = pad_sequence(labels, True, padding_value=_NO_LABEL)
        return pad_sequence(ids, True), mask, wanted

    def _with_trunk(self, rows: TargetRows, trunk: TrunkCache, places: Sequence[int]) -> TailRows:
        width = rows.input_ids.shape[1]
        states, _ = padded_states([trunk[place][:width] for place in places], self._model)
        rows = rows.to(self._model.device)
        tail = Tail.of_entering(
            self._model,
            self._architecture,
            self._layer,
            states,
            rows.attention_mask,
            self._outputs,
        )
        return TailRows(rows, tail)


def _tokenised(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[tuple[int, str, str | None]],
) -> _Texts:
    """Prompts with their answers, as far as these are known, of records.

    Raises:
        RequestError: One does not fit the model.
    """
    encoder = RequestTokenizer.from_transformers(tokenizer)
    unknown = tokens_without_embedding(model, tokenizer)
    limit = context_length(model)
    ids: list[NDArray[np.int64]] = []
    labels: list[NDArray[np.int64]] = []
    records = np.array([place for place, _, _ in texts], dtype=np.int64)
    for first in range(0, len(texts), _TEXTS_AT_ONCE):
        own = texts[first : first + _TEXTS_AT_ONCE]
        whole = [prompt if answer is None else f"{prompt} {answer}" for _, prompt, answer in own]
        spans = [(len(prompt), len(text)) for (_, prompt, _), text in zip(own, whole, strict=True)]
        known = [answer is not None for _, _, answer in own]
        # A prompt without an answer: its own text stands in for one, and is no label below.
        spans = [span if has else (0, span[1]) for span, has in zip(spans, known, strict=True)]
        try:
            batch = encoder.encode(whole, target_spans=spans)
        except RequestError as error:
            raise error.at(int(records[first + (error.record or 0)])) from error
        assert batch.labels is not None
        numbers = records[first : first + len(own)]
        refuse_unknown_tokens(batch.input_ids, batch.labels, numbers, unknown)
        refuse_long_rows(batch.lengths, numbers, limit, "its answer")
        for row, length in enumerate(batch.lengths):
            ids.append(batch.input_ids[row, :length].copy())
            told = batch.labels[row, :length].copy()
            labels.append(told if known[row] else np.full_like(told, _NO_LABEL))
    return _Texts(ids, labels, records)


def _named(progress: CacheProgress | None, what: str) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    return lambda done, of: progress(what, done, of)
