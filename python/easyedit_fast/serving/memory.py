"""The edit memory as several threads use it."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from easyedit_fast.errors import RequestError
from easyedit_fast.requests import request_list
from easyedit_fast.serac.routing import Route

if TYPE_CHECKING:
    from torch import Tensor

    from easyedit_fast.serac.counterfactual import CounterfactualAdapter
    from easyedit_fast.serac.routing import Router
    from easyedit_fast.serac.scopes import AnyScope
    from easyedit_fast.serac.store import StoredEdit


_AT_ONCE = 16
"""Prompts of new edits that are embedded in one turn, while others wait for theirs."""


class Turns:
    """A lock that nobody takes again while another one waits for it."""

    def __init__(self) -> None:
        self._next, self._now = threading.Lock(), threading.Lock()

    def __enter__(self) -> None:
        with self._next:
            self._now.acquire()

    def __exit__(self, *_: object) -> None:
        self._now.release()


class TurnsEncoder:
    """A scope as several threads embed with it: its tokenizer serves one of them at a time.

    Attributes:
        turns: What is held meanwhile.
    """

    def __init__(self, scope: AnyScope, turns: Turns) -> None:
        """Takes the scope, and what is held while it embeds."""
        self.size, self.heads, self.fingerprint = scope.size, scope.heads, scope.fingerprint
        self._scope, self._turns = scope, turns

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """``[prompts, size]`` float32; others have their turns between portions of them."""
        found = torch.empty(len(prompts), self.size)
        for first in range(0, len(prompts), _AT_ONCE):
            with self._turns:
                portion = self._scope.embed(prompts[first : first + _AT_ONCE])
            found[first : first + _AT_ONCE] = portion
        return found


class SharedMemory:
    """A router and its memory; what other processes have changed is taken in before each answer.

    All that embeds prompts waits its turn; the generation does not, for its prompts are routed
    before it.
    """

    def __init__(self, router: Router, adapter: CounterfactualAdapter, edit_tokens: int) -> None:
        """Takes the router, what makes contexts, and how many tokens of an edit are let in."""
        self._router = router
        self._adapter = adapter
        self._edit_tokens = edit_tokens
        self._turns = Turns()
        router.memory.encoder = TurnsEncoder(router.scope, self._turns)
        self._decided = threading.local()

    def __len__(self) -> int:
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
        ids = self._router.memory.add(requests)
        return [self._router.memory.get(id_) for id_ in ids]

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

    def all(self, after: int = 0) -> Iterator[StoredEdit]:
        """The edits with a higher id, by rising ids."""
        self._router.memory.refresh()
        return itertools.dropwhile(lambda edit: edit.id <= after, self._router.memory)

    def search(self, prompt: str, count: int) -> list[tuple[StoredEdit, float]]:
        """The edits whose scope a prompt is most likely in, and their similarities."""
        with self._turns:
            self._router.memory.refresh()
            return self._router.search(prompt, count)

    def routes(self, prompts: Sequence[str]) -> list[Route]:
        """The route of each prompt; inside `deciding`, that of a text which was asked is kept."""
        kept: dict[str, Route] = getattr(self._decided, "routes", {})
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt and prompt not in kept]
        if new:
            with self._turns:
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
