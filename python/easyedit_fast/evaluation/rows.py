"""The rows that an evaluation runs: every prompt of every request."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

from easyedit_fast.requests import EditRequest

Section = Literal["rewrite", "rephrase", "locality", "portability"]


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One prompt, and the answer that it is scored against.

    Attributes:
        request: Place of its request in the list.
        section: What the prompt is for.
        key: Its key in the section, such as ``neighborhood``; the section itself where it has none.
        prompt: The prompt.
        target: The answer; None where only a change can be seen.
    """

    request: int
    section: Section
    key: str
    prompt: str
    target: str | None

    @property
    def text(self) -> str:
        """Prompt and answer as one text, for that is how they are tokenised."""
        return self.prompt if self.target is None else f"{self.prompt} {self.target}"

    @property
    def target_span(self) -> tuple[int, int]:
        """Characters of the answer in `text`, with the space before it.

        Some tokenizers make a token of that space alone; EasyEdit counts it, and so do we.
        Without an answer the last character stands in for it.
        """
        end = len(self.text)
        return (end - 1 if self.target is None else len(self.prompt)), end


def rows_of(requests: Sequence[EditRequest]) -> list[Row]:
    """All rows of all requests, request by request."""
    return [row for place, request in enumerate(requests) for row in _rows(place, request)]


def _rows(place: int, request: EditRequest) -> Iterator[Row]:
    yield Row(place, "rewrite", "rewrite", request.prompt, request.target_new)
    for prompt in request.rephrase_prompt:
        yield Row(place, "rephrase", "rephrase", prompt, request.target_new)
    for key, probes in request.locality.items():
        for probe in probes:
            yield Row(place, "locality", key, probe.prompt, probe.ground_truth)
    for key, probes in request.portability.items():
        for probe in probes:
            yield Row(place, "portability", key, probe.prompt, probe.ground_truth)
