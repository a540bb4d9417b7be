"""Which edit of the memory a prompt belongs to, if any."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from easyedit_fast.serac.memory import EditMemory, Nearest
from easyedit_fast.serac.scope import Scope
from easyedit_fast.serac.store import StoredEdit


@dataclasses.dataclass(frozen=True, eq=False)
class Route:
    """Where a prompt goes.

    Attributes:
        edit: The edit whose scope it is in; None: it is in none, and the base model answers.
        similarity: How sure the scope is that it is in the scope of the nearest edit: 0 to 1, and
            above 0.5 where there is an `edit`. 0 where the memory is empty.
    """

    edit: StoredEdit | None
    similarity: float = 0.0


class Router:
    """A scope and an edit memory.

    Attributes:
        scope: Says how near is near enough.
        memory: The edits.
    """

    def __init__(self, scope: Scope, memory: EditMemory) -> None:
        """Takes a scope, and a memory whose embeddings it has made."""
        self.scope = scope
        self.memory = memory

    def routes(self, prompts: Sequence[str]) -> list[Route]:
        """The route of each prompt: one pass of the encoder, and one product with the memory."""
        if not len(self.memory):
            return [Route(None) for _ in prompts]
        return [self._route(own) for own in self.memory.nearest(self.scope.embed(prompts))]

    def pairs(self, edits: Sequence[str], prompts: Sequence[str]) -> list[bool]:
        """Whether each prompt is in the scope of the edit at its place, by the edit's prompt."""
        texts = list(dict.fromkeys([*edits, *prompts]))
        rows = dict(zip(texts, self.scope.embed(texts), strict=True))
        distances = [
            (rows[edit] - rows[prompt]).view(self.scope.heads, -1).square().sum(1).min()
            for edit, prompt in zip(edits, prompts, strict=True)
        ]
        return [self.scope.similarity(float(distance)) > 0.5 for distance in distances]

    def _route(self, nearest: Sequence[Nearest]) -> Route:
        if not nearest:  # the last edit was removed meanwhile
            return Route(None)
        similarity = self.scope.similarity(nearest[0].squared_distance)
        return Route(nearest[0].edit if similarity > 0.5 else None, similarity)
