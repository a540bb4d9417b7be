"""SERAC's model where another model is the counterfactual one, with the base model's vocabulary.

``generate`` runs one loop, the base model's, in each pass of which rows without an edit run through
the base model and the others through the small one, each with a cache of its own. So all that the
loop does beside the passes (beams, draws, streamers, what stops it) is as for one model.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from easyedit_fast.errors import ModelError
from easyedit_fast.serac.arguments import CACHE, CACHE_NAMES, OF_THE_ROWS, cache_of
from easyedit_fast.serac.caches import contexts_in, mark
from easyedit_fast.serac.contexts import Contexts
from easyedit_fast.serac.model import SeracModel


class RoutedPasses(Protocol):
    """What stands in for the base model in a loop's passes of routed rows."""

    def __call__(self, given: dict[str, Any]) -> Tensor:
        """Logits ``[rows, 1, vocabulary]`` of the next tokens, from a pass's arguments."""
        ...

    def reorder(self, rows: Tensor) -> None:
        """Puts other rows ``[rows]`` of the last pass in the place of its rows (beams)."""
        ...


class SwitchedModel(SeracModel):
    """As `SeracModel`; rows of an edit run through a small model of the same vocabulary.

    Attributes:
        small: The small model, which holds the adapter.
    """

    small: Any

    def __init__(self, *parts: Any, **options: Any) -> None:
        """As `SeracModel`; the adapter's model is the small one."""
        super().__init__(*parts, **options)
        self.small = self.adapter.model

    @property
    def vocabulary(self) -> int:
        """Width of the logits: the base model's."""
        return int(self.config.get_text_config().vocab_size)

    def _edited(self, contexts: Contexts, given: dict[str, Any]) -> Tensor:
        return fitted(super()._edited(contexts, given), self.vocabulary)

    def _cached(self, contexts: Contexts, given: dict[str, Any]) -> NoReturn:
        raise ModelError(
            "two models answer, and no cache holds both; pass use_cache=False, or call generate"
        )

    def _continued(self, contexts: Contexts, given: dict[str, Any]) -> NoReturn:
        self._cached(contexts, given)

    def _generated(
        self,
        contexts: Contexts,
        ids: Tensor,
        config: GenerationConfig | None,
        given: dict[str, Any],
    ) -> Any:
        if not any(contexts.routed):
            return self.base.generate(ids, config, **given)
        lead = leading(self.base, contexts, _SmallPasses(self, contexts))
        with self.adapter.on():
            return lead.generate(ids, config, **given)

    def next_logits(self, contexts: Contexts, given: dict[str, Any]) -> Tensor:
        """The small model's logits ``[rows, 1, vocabulary]`` in a pass of rows with contexts.

        Args:
            contexts: The contexts.
            given: The pass's arguments without contexts, with a cache of these rows, if any.
        """
        arguments = self._widened(contexts, given)
        arguments.pop("logits_to_keep", None)
        if "logits_to_keep" in self._accepted:
            arguments["logits_to_keep"] = 1
        return fitted(self.small(**arguments).logits[:, -1:], self.vocabulary)


class _SmallPasses:
    """The small model's passes in a loop, over a cache of its own; see `RoutedPasses`."""

    def __init__(self, model: SwitchedModel, contexts: Contexts) -> None:
        self._model = model
        self._contexts = contexts.of([row for row, on in enumerate(contexts.routed) if on])
        self._cache: Any = DynamicCache()

    def __call__(self, given: dict[str, Any]) -> Tensor:
        own = {name: value for name, value in given.items() if name not in CACHE_NAMES}
        if cache_of(given) is not None:
            own[CACHE] = self._cache
        return self._model.next_logits(self._contexts, own)

    def reorder(self, rows: Tensor) -> None:
        self._cache.reorder_cache(rows)


def leading(base: PreTrainedModel, contexts: Contexts, passes: RoutedPasses) -> Any:
    """A model whose ``generate`` is the base model's, but for the passes of routed rows.

    The weights are the base model's own, and it stays as it is.

    Args:
        base: The base model.
        contexts: Those of the rows that will be generated for.
        passes: Has the passes of the routed rows.
    """
    lead = copy.copy(base)
    lead.forward = _joined(base.forward, contexts, passes)
    return lead


def _joined(
    forward: Callable[..., Any], contexts: Contexts, passes: RoutedPasses
) -> Callable[..., CausalLMOutputWithPast]:
    """A ``forward`` for loops, which read the logits at the last column alone."""
    routed = contexts.routed

    @functools.wraps(forward)  # a loop looks at the names of the arguments
    def run(**given: Any) -> CausalLMOutputWithPast:
        rows = len(given["input_ids"])
        own = torch.tensor(routed, device=given["input_ids"].device)
        own = own.repeat_interleave(rows // len(routed))
        cache = cache_of(given)
        if cache is not None and contexts_in(cache) is None:
            mark(cache, contexts)
            cache.reorder_cache = _reordering(cache, own, passes)
        logits = passes(_of_rows(given, own))
        if not all(routed):
            base: Tensor = forward(**_of_rows(given, ~own)).logits[:, -1:]
            whole = base.new_empty(rows, *base.shape[1:])
            whole[~own.to(base.device)], whole[own.to(base.device)] = base, logits.to(base)
            logits = whole
        return CausalLMOutputWithPast(logits=logits, **{CACHE: cache})

    return run


def _of_rows(given: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """A pass's arguments for some rows."""
    return {
        name: value[rows.to(value.device)]
        if name in OF_THE_ROWS and value.dim() > 1 and len(value) == len(rows)
        else value
        for name, value in given.items()
    }


def _reordering(cache: Any, own: Tensor, passes: RoutedPasses) -> Callable[[Tensor], None]:
    """How a cache of the base model's rows, and that of the others, follow beams."""
    reorder = cache.reorder_cache
    places = torch.where(own, own.cumsum(0), (~own).cumsum(0)) - 1  # among rows of a kind

    def both(beams: Tensor) -> None:
        beams = beams.to(own.device)
        reorder(places[beams[~own]])
        passes.reorder(places[beams[own]])

    return both


def fitted(logits: Tensor, vocabulary: int) -> Tensor:
    """Logits of another width: rows beyond a vocabulary, which only round it up, are of no token.

    Args:
        logits: ``[rows, n, other vocabulary]``.
        vocabulary: The width that is wanted.
    """
    gap = vocabulary - logits.shape[-1]
    return logits if gap == 0 else nn.functional.pad(logits, (0, gap), value=-torch.inf)
