"""The edit memory as several threads use it."""

from __future__ import annotations

import contextlib
import datetime as dt
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from easyedit_fast.errors import EditStateError, RequestError
from easyedit_fast.requests import request_list
from easyedit_fast.serac.cross_encoder import CrossEncoder
from easyedit_fast.serac.routing import Route, Router
from easyedit_fast.serac.store import StoredEdit

if TYPE_CHECKING:
    from torch import Tensor

    from easyedit_fast.requests import EditRequest
    from easyedit_fast.serac.counterfactual import CounterfactualAdapter
    from easyedit_fast.serac.memory import Nearest
    from easyedit_fast.serac.scopes import AnyScope


_AT_ONCE = 16
"""Prompts that are embedded in one turn, or pairs that are read, while others wait for theirs."""

_READ = 64
"""Edits that a cross-encoder reads for one search: each takes a pass."""


class Turns:
    """A lock that nobody takes again while another one waits for it."""

    def __init__(self) -> None:
        self._next, self._now = threading.Lock(), threading.Lock()

    def __enter__(self) -> None:
        with self._next:
            self._now.acquire()

    def __exit__(self, *_: object) -> None:
        self._now.release()


class TurnsScope:
    """A scope as several threads ask it: its tokenizers serve one of them at a time.

    Attributes:
        size: As the scope's.
        heads: As the scope's.
        fingerprint: As the scope's.
        candidates: As the scope's.
        reads_pairs: Whether a similarity takes a pass of its own.
    """

    def __init__(self, scope: AnyScope, turns: Turns) -> None:
        """Takes the scope, and what is held while it runs."""
        self.size, self.heads, self.fingerprint = scope.size, scope.heads, scope.fingerprint
        self.candidates = scope.candidates
        self.reads_pairs = isinstance(scope, CrossEncoder)
        self._scope, self._turns = scope, turns

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """``[prompts, size]`` float32; others have their turns between portions of them."""
        found = torch.empty(len(prompts), self.size)
        for first in range(0, len(prompts), _AT_ONCE):
            with self._turns:
                portion = self._scope.embed(prompts[first : first + _AT_ONCE])
            found[first : first + _AT_ONCE] = portion
        return found

    def reading(self, prompt: str) -> str:
        """As the scope's, which needs no turn."""
        return self._scope.reading(prompt)

    def similarities(
        self, queries: Sequence[str], found: Sequence[Sequence[Nearest]]
    ) -> list[list[float]]:
        """As `AnyScope.similarities`; others have their turns between portions of the pairs."""
        if not self.reads_pairs:
            return self._scope.similarities(queries, found)
        pairs = [(query, one) for query, own in zip(queries, found, strict=True) for one in own]
        told: list[float] = []
        for first in range(0, len(pairs), _AT_ONCE):
            asked, edits = zip(*pairs[first : first + _AT_ONCE], strict=True)
            with self._turns:
                portion = self._scope.similarities(asked, [[one] for one in edits])
            told += [value for (value,) in portion]
        values = iter(told)
        return [[next(values) for _ in own] for own in found]


class SharedMemory:
    """A router and its memory; what other processes have changed is taken in before each answer.

    All that embeds prompts waits its turn; the generation does not, for its prompts are routed
    before it.
    """

    def __init__(self, router: Router, adapter: CounterfactualAdapter, edit_tokens: int) -> None:
        """Takes the router, what makes contexts, and how many tokens of an edit are let in."""
        scope: Any = TurnsScope(router.scope, Turns())  # has what a router asks of a scope
        router.memory.encoder = scope
        router.memory.may_make_graph = False  # all would wait for it
        self._router = Router(scope, router.memory, router.threshold)
        self._most_read = max(_READ, scope.candidates) if scope.reads_pairs else None
        self._adapter = adapter
        self._edit_tokens = edit_tokens
        self._decided = threading.local()

    def __len__(self) -> int:
        self._router.memory.refresh()
        return len(self._router.memory)

    def add(self, records: Sequence[Mapping[str, Any]]) -> list[StoredEdit]:
        """Adds edits, all or none; on return they are on disk.

        Raises:
            RequestError: One of them cannot be used; its number and field are named.
            DataFileError: The memory's file cannot be written.
        """
        requests = request_list(records)
        for place, request in enumerate(requests):
            size = len(self._adapter.context(request))
            if size > self._edit_tokens:
                raise RequestError(
                    f"prompt and target take {size} tokens, and {self._edit_tokens} are let in; "
                    "shorten them",
                    record=place,
                    field="prompt",
                )
        self._adapter.refuse_too_long(requests)
        ids = self._router.memory.add(requests)
        return [self._added(*pair) for pair in zip(ids, requests, strict=True)]

    def _added(self, id_: int, request: EditRequest) -> StoredEdit:
        """An edit that was added just now, even if another client has removed it since."""
        memory = self._router.memory
        try:
            return memory.get(id_)
        except EditStateError:
            now = dt.datetime.now(dt.timezone.utc).isoformat(timespec="milliseconds")
            return StoredEdit(id_, request, None, memory.encoder.fingerprint, now)

    def holder(self, id_: int) -> int:
        """The edit that holds for the prompt of one: itself, or the newest of the same prompt."""
        return self._router.memory.holder(id_)

    def remove(self, id_: int) -> None:
        """Takes an edit out.

        Raises:
            EditStateError: It is not there.
        """
        self._router.memory.remove(id_)

    def get(self, id_: int) -> StoredEdit:
        """An edit by its id.

        Raises:
            EditStateError: It is not there.
        """
        self._router.memory.refresh()
        return self._router.memory.get(id_)

    def after(self, id_: int, count: int | None = None) -> list[StoredEdit]:
        """The first edits with a higher id, by rising ids; all of them without a count."""
        self._router.memory.refresh()
        return self._router.memory.after(id_, count)

    def search(self, prompt: str, count: int) -> list[tuple[StoredEdit, float | None]]:
        """The edits whose scope a prompt is most likely in, and their similarities.

        Those that are too many for a cross-encoder to read follow by their distance, without one.
        """
        memory = self._router.memory
        memory.refresh()
        most = count if self._most_read is None else min(count, self._most_read)
        first: list[tuple[StoredEdit, float | None]] = [*self._router.search(prompt, most)]
        if most == count:
            return first
        known = {edit.id for edit, _ in first}
        near = memory.nearest(self._router.scope.embed([prompt]), count)[0]
        others = [one.edit for one in near if one.edit.id not in known]
        return [*first, *((edit, None) for edit in others)][:count]

    def routes(self, prompts: Sequence[str]) -> list[Route]:
        """The route of each prompt; inside `deciding`, that of a text which was asked is kept."""
        kept: dict[str, Route] = getattr(self._decided, "routes", {})
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt and prompt not in kept]
        if new:
            self._router.memory.refresh()
            routes = self._router.routes(new)
            kept.update(zip(new, routes, strict=True))
        return [kept.get(prompt, Route(None)) for prompt in prompts]

    @contextlib.contextmanager
    def deciding(self) -> Iterator[None]:
        """In a ``with`` block, what this thread routes is routed once."""
        self._decided.routes = {}
        try:
            yield
        finally:
            del self._decided.routes
