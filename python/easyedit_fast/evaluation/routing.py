"""Prompts that go different ways: each with its own context before it, and its own weights."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Routing(Protocol):
    """Where prompts go, and what acts on them there.

    Attributes:
        model: Answers routed prompts; it may be the model that is evaluated.
        tokenizer: Its tokenizer, in whose tokens contexts are.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def contexts(self, prompts: Sequence[str], owners: Sequence[int]) -> list[Sequence[int] | None]:
        """The tokens that go before each prompt; None: it goes to the model as it is.

        Args:
            prompts: The prompts.
            owners: The place of the request that each prompt is of.
        """
        ...

    def exclusive(self) -> contextlib.AbstractContextManager[None]:
        """Keeps other threads from the model, in a ``with`` block."""
        ...

    def on(self, rows: Sequence[bool]) -> contextlib.AbstractContextManager[None]:
        """Has what acts on routed rows act on those of a batch, in a ``with`` block."""
        ...


@dataclasses.dataclass(frozen=True)
class RoutedRows:
    """Rows of which some are routed.

    Attributes:
        routing: What acts on these.
        routed: Which they are.
    """

    routing: Routing
    routed: Sequence[bool]

    def of(self, places: Sequence[int]) -> RoutedRows:
        """The rows at some places of these."""
        return RoutedRows(self.routing, [self.routed[place] for place in places])

    def applied(self, rows: Sequence[int]) -> contextlib.AbstractContextManager[None]:
        """As `RowUpdates.applied`."""
        return self.routing.on([self.routed[row] for row in rows])
