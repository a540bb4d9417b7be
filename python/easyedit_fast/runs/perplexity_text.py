"""A text on which edited models are measured."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from easyedit_fast.errors import NonFiniteError
from easyedit_fast.evaluation import Perplexity, perplexity

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from easyedit_fast.data import Corpus
    from easyedit_fast.evaluation.isolation import Updates
    from easyedit_fast.failures import OnError

logger = logging.getLogger(__name__)

MEASURED_MODELS = 10
"""Of records that have a model each, so many from the first on are measured."""


class _HasModel(Protocol):
    """An `Editor` or an `Evaluator`."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True)
class PerplexityText:
    """A text, or its beginning.

    Attributes:
        corpus: The text.
        max_tokens: Predicted tokens at most.
    """

    corpus: Corpus
    max_tokens: int

    def description(self) -> dict[str, Any]:
        """What tells it from another text, as plain JSON values."""
        return {"corpus": self.corpus.identity(), "max_tokens": self.max_tokens}

    def measure(self, of: _HasModel, updates: Updates | None = None) -> Perplexity:
        """The perplexity of a model, and of an edit added to it for that time.

        Raises:
            NonFiniteError: The model predicts NaN or infinity, or its perplexity is beyond a float.
        """
        measured = perplexity(
            of.model, of.tokenizer, self.corpus, updates=updates, max_tokens=self.max_tokens
        )
        if measured.perplexity == float("inf"):
            raise NonFiniteError(
                f"the perplexity is infinite (nll {measured.nll:.0f}); leave the text out"
            )
        return measured

    def of_each(
        self,
        of: _HasModel,
        metrics: Sequence[Mapping[str, Any]],
        updates: Mapping[int, Updates],
        *,
        first: int,
        on_error: OnError,
    ) -> list[dict[str, Any]]:
        """Adds ``perplexity`` to ``pre`` and ``post`` of the first records of a run.

        Args:
            of: Has the unedited model.
            metrics: One dict a record of the batch.
            updates: Their edits, by place in the batch; none of a record that failed.
            first: Place of the batch's first record in the run.
            on_error: ``skip`` leaves a perplexity that is not finite out, and says so.

        Raises:
            NonFiniteError: As `measure`; it names the record.
        """
        added = [dict(entry) for entry in metrics]
        measured = [place for place in updates if first + place < MEASURED_MODELS]
        if not measured:
            return added
        bare = self.measure(of).perplexity
        for place in measured:
            try:
                edited = self.measure(of, updates[place]).perplexity
            except NonFiniteError as error:
                if on_error == "raise":
                    raise error.at(place) from error
                logger.warning("%s", error.at(first + place))
                continue
            added[place]["pre"] = {**added[place]["pre"], "perplexity": bare}
            added[place]["post"] = {**added[place]["post"], "perplexity": edited}
        return added
