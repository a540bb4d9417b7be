"""Caches of keys and values that know the contexts of their rows, whatever becomes of the rows."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from easyedit_fast.serac.contexts import Contexts

_CONTEXTS = "_serac_contexts"


def contexts_in(cache: Any) -> Contexts | None:
    """The contexts of a cache's rows; None: it knows none, or there is no cache."""
    found: Contexts | None = getattr(cache, _CONTEXTS, None)
    return found


def mark(cache: Any, contexts: Contexts) -> None:
    """Lets a cache know the contexts of its rows."""
    setattr(cache, _CONTEXTS, contexts)


def follow(cache: Any, contexts: Contexts) -> None:
    """As `mark`; the contexts follow where the cache's rows are chosen anew, or repeated."""
    mark(cache, contexts)
    if not isinstance(cache, _Following):  # a class of its own: copies follow by themselves
        kind: Any = type(cache)
        cache.__class__ = _following(kind)


class _Following:
    """What a cache does to its rows, done to their contexts as well."""

    def __reduce_ex__(self: Any, _: Any) -> Any:
        plain = type(self).__mro__[2]
        return _remade, (plain,), self.__dict__

    def reorder_cache(self: Any, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._serac_contexts.select(beam_idx)

    def batch_select_indices(self: Any, indices: Tensor) -> None:
        super().batch_select_indices(indices)  # type: ignore[misc]
        self._serac_contexts.select(indices)

    def batch_repeat_interleave(self: Any, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        rows = torch.arange(self._serac_contexts.rows_of_a_pass)
        self._serac_contexts.select(rows.repeat_interleave(repeats))


@functools.cache
def _following(kind: Any) -> Any:
    """A class of caches that follow, by the name of the plain one."""
    return type(kind.__name__, (_Following, kind), {"__module__": __name__})


def _remade(kind: Any) -> Any:
    """A copy's, or a pickle's, cache before it is filled."""
    return object.__new__(_following(kind))
