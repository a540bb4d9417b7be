"""Which edit of the memory a prompt belongs to, if any."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from easyedit_fast.requests import require_characters
from easyedit_fast.serac.memory import EditMemory, Nearest
from easyedit_fast.serac.scopes import AnyScope
from easyedit_fast.serac.store import StoredEdit


@dataclasses.dataclass(frozen=True, eq=False)
class Route:
    """Where a prompt goes.

    Attributes:
        edit: The edit whose scope it is in; None: it is in none, and the base model answers.
        similarity: How sure the scope is that it is in the scope of the nearest edit: 0 to 1, and
            above the threshold where there is an `edit`. 0 where the memory is empty.
    """

    edit: StoredEdit | None
    similarity: float = 0.0


class Router:
    """A scope and an edit memory.

    Attributes:
        scope: Says which of the nearest edits' scope a prompt is in.
        memory: The edits.
        threshold: A prompt whose similarity is above it is in an edit's scope.
    """

    def __init__(self, scope: AnyScope, memory: EditMemory, threshold: float = 0.5) -> None:
        """Takes a scope, a memory whose embeddings it has made, and the threshold."""
        self.scope = scope
        self.memory = memory
        self.threshold = threshold

    def routes(self, prompts: Sequence[str]) -> list[Route]:
        """The route of each prompt: one pass of the encoder, and one product with the memory.

        A cross-encoder takes a pass for each of some nearest edits beside that.

        Raises:
            RequestError: A prompt holds half of a surrogate pair.
        """
        for prompt in prompts:
            require_characters(prompt, "prompt")
        if not len(self.memory):
            return [Route(None) for _ in prompts]
        found = self.memory.nearest(self.scope.embed(prompts), self.scope.candidates)
        likely = self.scope.similarities(prompts, found)
        return [self._route(*own) for own in zip(found, likely, strict=True)]

    def search(self, prompt: str, count: int = 10) -> list[tuple[StoredEdit, float]]:
        """The edits that are nearest to a prompt, and their similarities.

        Those that a route looks at come first, the likeliest first: above the
        threshold it is the route's.

        Raises:
            RequestError: The prompt holds half of a surrogate pair.
        """
        require_characters(prompt, "prompt")
        query = self.scope.embed([prompt])
        found = self.memory.nearest(query, max(count, self.scope.candidates))[0]
        likely = self.scope.similarities([prompt], [found])[0]
        pairs = [(one.edit, own) for one, own in zip(found, likely, strict=True)]
        routed, others = pairs[: self.scope.candidates], pairs[self.scope.candidates :]
        return [*sorted(routed, key=lambda pair: -pair[1]), *others][:count]

    def pairs(self, edits: Sequence[str], prompts: Sequence[str]) -> list[bool]:
        """Whether each prompt is in the scope of the edit at its place, by the edit's prompt."""
        likely = self.scope.pair_similarities(edits, prompts)
        return [one > self.threshold for one in likely]

    def _route(self, found: Sequence[Nearest], likely: Sequence[float]) -> Route:
        if not found:  # the last edit was removed meanwhile
            return Route(None)
        best = max(range(len(found)), key=likely.__getitem__)  # the nearest of equals
        return Route(found[best].edit if likely[best] > self.threshold else None, likely[best])
