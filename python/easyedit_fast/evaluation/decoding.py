"""Predicts the answers of prompts and continues the prompts, from one pass over each prompt.

A prompt and its answer run in one forward pass. The predictions at the answer's places are the
teacher-forced ones, and the first of them is also the first token of the continuation. While the
answer is what the model itself would say, its tokens are the continuation's as well. From there
on the keys and values of the tokens before are kept, and the rows go on token by token together.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from easyedit_fast.evaluation.isolation import RowUpdates, Updates
from easyedit_fast.evaluation.routing import RoutedRows
from easyedit_fast.failures import Failures
from easyedit_fast.models.generation import end_ids
from easyedit_fast.models.memory import run_in_batches
from easyedit_fast.models.passes import call_with_cache, head_only_at, padded_rows
from easyedit_fast.models.prefix import RecordingCache, StandInCache
from easyedit_fast.models.ragged import group_cost, partition
from easyedit_fast.models.row_cache import RowCache, States
from easyedit_fast.models.tracing import frozen

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_COMPACT = 0.75
"""Rows that have ended are dropped once the others' share is this or less."""

Choice: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""From logits ``[n, vocabulary]`` and the places of n tokens in their continuations ``[n]``, both
on one device, the tokens ``[n]``."""


def most_probable(logits: Tensor, _: Tensor) -> Tensor:
    """The greedy `Choice`."""
    return logits.argmax(dim=-1)


@dataclasses.dataclass(frozen=True, slots=True)
class Passage:
    """A prompt to score and to continue.

    Attributes:
        tokens: The prompt's tokens, and the answer's after them.
        start: Number of the prompt's tokens, 1 at least.
        new_tokens: Length of the continuation at most; 0 for none.
    """

    tokens: Sequence[int]
    start: int
    new_tokens: int = 0

    @property
    def answer(self) -> Sequence[int]:
        """The answer's tokens."""
        return self.tokens[self.start :]

    @property
    def fed(self) -> Sequence[int]:
        """The tokens to run at first: what is predicted after the last of an answer is not read."""
        return self.tokens[: max(self.start, len(self.tokens) - 1)]


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What a model makes of a passage.

    Attributes:
        predicted: A token for each of the answer's, or the next one where there is no answer.
        continuation: The continuation, with the token that ended it.
    """

    predicted: list[int]
    continuation: list[int]


@dataclasses.dataclass(frozen=True)
class Decoder:
    """A model and how it continues.

    Attributes:
        model: The model; it has no layers but those with a cache of keys and values.
        ends: Tokens that end a continuation.
        batch_size: Passages that run together; fewer where memory runs out.
        choose: Chooses the tokens.
    """

    model: PreTrainedModel
    ends: frozenset[int] = frozenset()
    batch_size: int = 64
    choose: Choice = most_probable

    def run(
        self,
        passages: Sequence[Passage],
        updates: Sequence[Updates] | None = None,
        routed: RoutedRows | None = None,
    ) -> list[Outcome]:
        """Predicts and continues; the outcome of a passage depends on that passage alone.

        Args:
            passages: The passages.
            updates: One edit a passage, or None.
            routed: In place of updates, which of the passages are routed.

        Raises:
            ModelError: A model that keeps more of the past than keys and values.
            OutOfMemoryError: One passage alone takes more memory than there is; its place is named.
        """
        if routed is not None and routed.routing.model is not self.model:
            return self._run_apart(passages, routed)

        def run(places: Sequence[int]) -> list[Outcome]:
            own = [passages[place] for place in places]
            if routed is not None:
                with routed.routing.exclusive():
                    return _Batch(self, own, routed.of(places)).run()
            edits = None if updates is None else [updates[place] for place in places]
            return _Batch(self, own, RowUpdates(self.model, edits)).run()

        order = sorted(range(len(passages)), key=lambda place: len(passages[place].fed))
        # Of even size: a small last batch reads all weights as often as a full one.
        batch_size = math.ceil(len(order) / max(1, math.ceil(len(order) / self.batch_size)))
        outcomes: dict[int, Outcome] = {}
        with torch.no_grad(), frozen(self.model):
            batches = run_in_batches(order, run, batch_size, refuse=Failures().refuse)
            for places, done in batches:
                outcomes.update(zip(places, done, strict=True))
        return [outcomes[place] for place in range(len(passages))]

    def _run_apart(self, passages: Sequence[Passage], routed: RoutedRows) -> list[Outcome]:
        """As `run`, where another model has the routed passages."""
        other, tokenizer = routed.routing.model, routed.routing.tokenizer
        ends = self.ends and frozenset(end_ids(other, tokenizer))
        outcomes: dict[int, Outcome] = {}
        for decoder, on in (
            (self, False),
            (dataclasses.replace(self, model=other, ends=ends), True),
        ):
            places = [place for place, own in enumerate(routed.routed) if own == on]
            if places:
                own = [passages[place] for place in places]
                done = decoder.run(own, routed=routed.of(places) if on else None)
                outcomes.update(zip(places, done, strict=True))
        return [outcomes[place] for place in range(len(passages))]


class _Batch:
    """Passages that are continued together; a row is a passage's place among them."""

    def __init__(
        self, decoder: Decoder, passages: Sequence[Passage], changes: RowUpdates | RoutedRows
    ) -> None:
        self.decoder = decoder
        self.passages = passages
        self.changes = changes
        self.predicted: list[list[int]] = [[] for _ in passages]
        self.continuations: list[list[int]] = [[] for _ in passages]

    def run(self) -> list[Outcome]:
        """One outcome a row."""
        lengths = [len(passage.fed) for passage in self.passages]
        groups = partition(lengths, group_cost(self.decoder.model.device))
        recordings = [self._prefill(group) for group in groups]
        rows = [row for row in range(len(self.passages)) if self._goes_on(row)]
        if rows:
            self._decode(rows, self._cache(rows, groups, recordings))
        return [Outcome(*pair) for pair in zip(self.predicted, self.continuations, strict=True)]

    def _prefill(self, group: Sequence[int]) -> States:
        """Runs prompts with their answers, and returns keys and values if a row goes on."""
        passages = [self.passages[row] for row in group]
        ids, mask = padded_rows([passage.fed for passage in passages])
        columns = torch.arange(ids.shape[1]).expand_as(ids)
        # Which of the answer's tokens is predicted where.
        places = columns + 1 - torch.tensor([[passage.start] for passage in passages])
        read = (places >= 0) & mask.bool()
        records = any(passage.new_tokens for passage in passages)
        cache = RecordingCache({}, 0) if records else StandInCache()
        with head_only_at(self.decoder.model, read):
            logits = self._logits(group, cache, ids, mask, columns)
        tokens = self._choose(logits[0], places[read])
        for row, number in zip(group, read.sum(dim=1).tolist(), strict=True):
            self.predicted[row], tokens = tokens[:number], tokens[number:]
            self.continuations[row] = self._foretold(row)
        return cache.new if isinstance(cache, RecordingCache) else {}

    def _foretold(self, row: int) -> list[int]:
        """The continuation as far as the predictions for the answer's tokens tell it."""
        passage, predicted = self.passages[row], self.predicted[row]
        pairs = zip(predicted, passage.answer, strict=False)
        # The first prediction that is not the answer's token belongs to it, and none after that.
        known = next((n for n, (one, other) in enumerate(pairs, 1) if one != other), len(predicted))
        known = min(known, passage.new_tokens)
        ends = (n for n, token in enumerate(predicted[:known], 1) if token in self.decoder.ends)
        return predicted[: next(ends, known)]

    def _goes_on(self, row: int) -> bool:
        continuation = self.continuations[row]
        ended = bool(continuation) and continuation[-1] in self.decoder.ends
        return not ended and len(continuation) < self.passages[row].new_tokens

    def _cache(
        self, rows: Sequence[int], groups: Sequence[Sequence[int]], recordings: list[States]
    ) -> RowCache:
        """The keys and values of the prompts and continuations, but for the last token."""
        known = [len(self.continuations[row]) for row in rows]
        passages = [self.passages[row] for row in rows]
        cache = RowCache(
            torch.tensor([each.start + n - 1 for each, n in zip(passages, known, strict=True)]),
            torch.tensor([each.new_tokens - n for each, n in zip(passages, known, strict=True)]),
        )
        place_of = {row: place for place, row in enumerate(rows)}
        for group in groups:
            sources = [source for source, row in enumerate(group) if row in place_of]
            targets = [place_of[group[source]] for source in sources]
            cache.put(targets, sources, recordings.pop(0))
        return cache

    def _decode(self, rows: list[int], cache: RowCache) -> None:
        """Continues rows until each of them has ended."""
        while True:
            ids = torch.tensor([self.continuations[row][-1:] for row in rows])
            logits = self._logits(rows, cache, ids, cache.mask, cache.positions)
            cache.advance()
            places = torch.tensor([len(self.continuations[row]) for row in rows])
            for row, token in zip(rows, self._choose(logits[:, -1], places), strict=True):
                if self._goes_on(row):
                    self.continuations[row].append(token)
            kept = [place for place, row in enumerate(rows) if self._goes_on(row)]
            if not kept:
                return
            if len(kept) <= _COMPACT * len(rows):
                cache.select(kept)
                rows = [rows[place] for place in kept]

    def _logits(
        self, rows: Sequence[int], cache: StandInCache, ids: Tensor, mask: Tensor, positions: Tensor
    ) -> Tensor:
        model = self.decoder.model
        with self.changes.applied(rows):
            output = call_with_cache(
                model,
                cache=cache,
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                position_ids=positions.to(model.device),
            )
        logits: Tensor = output.logits
        return logits

    def _choose(self, logits: Tensor, places: Tensor) -> list[int]:
        tokens: list[int] = self.decoder.choose(logits, places.to(logits.device)).tolist()
        return tokens
