"""The optimisation steps of an edit, from its spans: how long they took, and what they computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from easyedit_fast.models.operations import TailOperations
from easyedit_fast.profiling.results import Step
from easyedit_fast.timings import Span

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from easyedit_fast.models.architectures import Architecture


class StepReader:
    """Reads the steps from spans; the shapes of the model tell what they computed."""

    def __init__(self, model: PreTrainedModel, architecture: Architecture) -> None:
        self._model = model
        self._architecture = architecture
        self._by_layer: dict[int, TailOperations] = {}

    def steps(self, spans: Sequence[Span]) -> Iterator[Step]:
        """The steps in the spans of one edit."""
        for place, span in enumerate(spans):
            if span.name == "step":
                yield self._step(span, list(_within(spans, place)))

    def _step(self, step: Span, parts: Sequence[Span]) -> Step:
        forward, backward = (
            sum(part.seconds for part in parts if part.name == name)
            for name in ("forward", "backward")
        )
        groups = [part.details for part in parts if part.name == "group"]
        places = sum(part.details["places"] for part in parts if part.name == "head")
        run, needed = (
            sum(self._group(group, tokens, both_ways=backward > 0) for group, tokens in sized)
            for sized in (
                [(group, group["rows"] * group["width"]) for group in groups],
                [(group, group["tokens"]) for group in groups],
            )
        )
        head = self._of_layer(groups[0]["layer"]).head_pass(places) * (2 if backward > 0 else 1)
        return Step(step.seconds, forward, backward, run + head, needed + head)

    def _group(self, group: dict[str, Any], tokens: int, *, both_ways: bool) -> int:
        """Operations of the blocks on some tokens of a group."""
        operations = self._of_layer(group["layer"])
        columns = group["prefix"] + group["width"]
        back = operations.backward(tokens, columns) if both_ways else 0
        return operations.forward(tokens, columns) + back

    def _of_layer(self, layer: int) -> TailOperations:
        if layer not in self._by_layer:
            made = TailOperations.of(self._model, self._architecture, layer)
            self._by_layer[layer] = made
        return self._by_layer[layer]


def _within(spans: Sequence[Span], place: int) -> Iterator[Span]:
    """The spans inside one of them; they are in the order of their beginnings."""
    for span in spans[place + 1 :]:
        if span.depth <= spans[place].depth:
            return
        yield span
