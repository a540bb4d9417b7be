"""What is drawn for a batch of training: prompts of its records, and what goes beside them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from numpy.random import Generator

from easyedit_fast.processes import rank_and_ranks
from easyedit_fast.serac.hparams import SERACTrainingHparams
from easyedit_fast.serac.negatives import Negatives
from easyedit_fast.serac.questions import as_questions
from easyedit_fast.serac.shares import AdapterShare, MixtureShare, ScopeShare
from easyedit_fast.serac.training_data import SeracData
from easyedit_fast.training.batches import draws

_QUESTIONS = 0.4
"""So many of the scope's prompts are asked as questions, where they can be."""

_FORMS = 0.5
"""So many of the adapter's prompts have other forms than the records', where they can."""

_CONTINUED = 0.25
"""After so many of the adapter's records it learns what follows: this is soon learned."""

_REWRITES = 0.25
"""So many of a cross-encoder's prompts in scope are the edit's own."""

Batch = tuple[ScopeShare | None, AdapterShare | MixtureShare | None]
"""What is asked of the scope and of the adapter, as far as they learn; or of both together."""


@dataclasses.dataclass(frozen=True)
class _Drawn:
    """A batch.

    Attributes:
        iteration: Its number.
        places: Its records.
        own: Among them, those of this process.
        rephrases: The rephrase prompt of each record.
        localities: The locality prompt of each.
        draw: Of what is drawn later.
    """

    iteration: int
    places: list[int]
    own: list[int]
    rephrases: list[int]
    localities: list[int]
    draw: Generator


class Drawing:
    """Draws batches, each by itself, from records."""

    def __init__(
        self, data: SeracData, negatives: Negatives | None, hparams: SERACTrainingHparams
    ) -> None:
        """Takes the records, what may be drawn beside them, and the hyperparameters.

        Args:
            data: The records.
            negatives: Of the records; None where the scope does not learn.
            hparams: The hyperparameters.
        """
        self._data, self._negatives, self._hparams = data, negatives, hparams

    def batch(self, iteration: int, places: list[int]) -> Batch:
        """This process's share of a batch of the records at some places."""
        draw = draws(self._hparams.seed, "batch", iteration)
        rephrases, localities = (
            [int(draw.integers(len(own[place]))) for place in places]
            for own in (self._data.rephrases, self._data.localities)
        )
        rank, ranks = rank_and_ranks()
        own = list(range(rank, len(places), ranks))
        drawn = _Drawn(iteration, places, own, rephrases, localities, draw)
        if not self._hparams.supervised:
            return None, self._mixture_share(drawn)
        adapter = None if self._hparams.parts == "scope" else self._adapter_share(drawn)
        if self._negatives is None:
            return None, adapter
        return self._scope_share(drawn, self._negatives), adapter

    def _scope_share(self, drawn: _Drawn, negatives: Negatives) -> ScopeShare:
        data, hparams, places, draw = self._data, self._hparams, drawn.places, drawn.draw
        memory = negatives.beside(places, hparams.hard_negatives, draw)
        others = [negatives.of_subject(place, hparams.subject_negatives, draw) for place in places]
        subjects = [data.requests[place].subject for place in places]
        same = [
            as_questions(data.requests[place].prompt, subject)
            for place, subject in zip(places, subjects, strict=True)
        ]
        inside = [
            _asked(data.rephrase_prompts[place][chosen], questions, draw)
            for place, chosen, questions in zip(places, drawn.rephrases, same, strict=True)
        ]
        if hparams.cross_attend:  # an embedding is near to itself, and this has to be learned
            inside = [
                data.requests[place].prompt if draw.random() < _REWRITES else text
                for place, text in zip(places, inside, strict=True)
            ]
        probes = zip(places, drawn.localities, strict=True)
        prompts = [data.locality_prompts[place][chosen] for place, chosen in probes]
        outside = [_asked(prompt, as_questions(prompt), draw) for prompt in prompts]
        others = [
            [
                _asked(prompt, [q for q in as_questions(prompt, subject) if q not in own], draw)
                for prompt in of_one
            ]
            for of_one, subject, own in zip(others, subjects, same, strict=True)
        ]
        return ScopeShare(
            memory,
            drawn.own,
            [inside[at] for at in drawn.own],
            [outside[at] for at in drawn.own],
            [others[at] for at in drawn.own],
            len(places),
            len(places) + sum(map(len, others)),
        )

    def _mixture_share(self, drawn: _Drawn) -> MixtureShare:
        data, places = self._data, drawn.places
        records, asked = self._answered(drawn)
        pairs = [data.inside(places[at], drawn.iteration, drawn.rephrases[at]) for at in asked]
        pairs += [data.locality(places[at], drawn.localities[at]) for at in asked]
        prompts, rows, base = (list(side) for side in zip(*pairs, strict=True))
        memory = places
        if self._negatives is not None:
            memory = self._negatives.beside(places, self._hparams.hard_negatives, drawn.draw)
        return MixtureShare(memory, asked * 2, prompts, rows, base, len(asked), records)

    def _adapter_share(self, drawn: _Drawn) -> AdapterShare:
        data, places = self._data, drawn.places
        records, asked = self._answered(drawn)
        learned = [places[at] for at in asked]
        rows = [data.inside(places[at], drawn.iteration, drawn.rephrases[at])[1] for at in asked]
        chosen = drawn.draw.random((records, 2)).tolist()  # of all: in each process the same
        for number, at in enumerate(asked):
            other, which = chosen[at]
            forms = data.other_forms(places[at]) if other < _FORMS else []
            if forms:
                rows[number] = forms[int(which * len(forms))]
        outside = [
            (places[at], *data.locality(places[at], drawn.localities[at])[1:]) for at in asked
        ]
        continued = 0
        if tokens := self._hparams.cntr_continuation:
            rows = [data.ended(at, row) for at, row in zip(learned, rows, strict=True)]
            continued = math.ceil(records * _CONTINUED)
            outside += data.continued([places[at] for at in asked if at < continued], tokens)
        return AdapterShare(
            learned,
            [data.with_edit(*pair) for pair in zip(rows, learned, strict=True)],
            [data.with_edit(row, place) for place, row, _ in outside],
            [place for place, _, _ in outside],
            [at for _, _, at in outside],
            records,
            continued,
        )

    def _answered(self, drawn: _Drawn) -> tuple[int, list[int]]:
        """How many of a batch's records are answered, and which of these by this process."""
        records = min(self._hparams.cntr_batch_size or len(drawn.places), len(drawn.places))
        return records, [at for at in drawn.own if at < records]


def _asked(prompt: str, questions: Sequence[str], draw: Generator) -> str:
    """A prompt; now and then one of some questions in its place."""
    if draw.random() >= _QUESTIONS or not questions:
        return prompt
    return questions[int(draw.integers(len(questions)))]
