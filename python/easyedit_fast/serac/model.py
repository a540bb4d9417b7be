"""SERAC's model: a transformers model that answers each prompt from an edit, or from itself."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from easyedit_fast.errors import ModelError
from easyedit_fast.models.limits import context_length
from easyedit_fast.serac.arguments import (
    CACHE,
    CACHE_NAMES,
    OF_THE_ROWS,
    cache_of,
    fixed_cache,
    refuse_unsupported,
    setting,
)
from easyedit_fast.serac.caches import contexts_in, follow
from easyedit_fast.serac.chat import QueryReader
from easyedit_fast.serac.contexts import Context, Contexts, likely_mask, prompts_of
from easyedit_fast.serac.refusals import NotSaved, refuse_fixed_cache, refuse_states

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from easyedit_fast.serac.counterfactual import CounterfactualAdapter
    from easyedit_fast.serac.routing import Route

_NO_PROMPT = (
    "the labels begin with a row's first token, so that there is no prompt to route and the base "
    "model answers; give the prompt's tokens the label -100, or pass prompt_length"
)


class Routes(Protocol):
    """What says where prompts go."""

    def routes(self, prompts: Sequence[str]) -> list[Route]:
        """The route of each prompt."""
        ...


class SeracModel(NotSaved, GenerationMixin):
    """A causal language model whose edits are kept in a memory, beside its weights.

    A prompt in the scope of an edit is answered by the counterfactual model, which reads the edit
    before it; any other prompt by the base model, as if there were no edits. Its class has the name
    of the base model's class, by which transformers tells what a model is good for.

    Attributes:
        base: The base model.
        router: Says which edit a prompt belongs to.
        adapter: Makes a model the counterfactual one: the base model, which then holds it; in the
            classes of `serac.switched` another model.
        soft: Whether `forward` mixes the two models' answers, unless it is told.
    """

    base_model_prefix = "base"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flash_attn_2 = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    base: Any

    def __init__(
        self,
        base: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        router: Routes,
        adapter: CounterfactualAdapter,
        *,
        soft: bool = False,
    ) -> None:
        """Wraps a model; nothing is copied.

        Args:
            base: The base model.
            tokenizer: Its (fast) tokenizer.
            router: Says which edit a prompt belongs to.
            adapter: The adapter, with its model.
            soft: Whether `forward` mixes the two models' answers, unless it is told.
        """
        super().__init__(base.config)
        self.__class__ = type(type(base).__name__, (type(self),), {"__module__": __name__})
        self.base = base
        self.training = base.training
        self.router = router
        self.adapter = adapter
        self.soft = soft
        self._reader = QueryReader(tokenizer)
        # The adapter's switch is in its model's layers, so a pass of another thread sees it.
        self._lock = adapter.lock
        if hasattr(base, "hf_device_map"):
            self.hf_device_map = base.hf_device_map
        self._accepted = frozenset(inspect.signature(type(adapter.model).forward).parameters)

    @property
    def generation_config(self) -> Any:
        """The base model's."""
        return self.base.generation_config

    @generation_config.setter
    def generation_config(self, config: GenerationConfig) -> None:
        if "base" in self._modules:  # transformers' own constructor sets one of its making
            self.base.generation_config = config

    def get_output_embeddings(self) -> Any:
        """The base model's."""
        return self.base.get_output_embeddings()

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Sets the base model's."""
        self.base.set_output_embeddings(new_embeddings)

    def routes(
        self, prompts: str | Sequence[str] | Tensor, attention_mask: Tensor | None = None
    ) -> list[Route]:
        """Which edit, if any, answers each prompt.

        Args:
            prompts: Texts, or token ids ``[rows, columns]``.
            attention_mask: ``[rows, columns]`` of token ids; None: there are no pads.
        """
        if isinstance(prompts, Tensor):
            texts = [
                self._reader.read(tokens).text for tokens in prompts_of(prompts, attention_mask)
            ]
        else:
            texts = [prompts] if isinstance(prompts, str) else list(prompts)
            texts = [self._reader.text(text) for text in texts]
        return self.router.routes(texts) if texts else []

    def _contexts(self, prompts: Sequence[Sequence[int]]) -> Contexts:
        """Routes prompts of tokens; an empty one is the base model's."""
        queries = [self._reader.read(tokens) for tokens in prompts]
        asked = [place for place, query in enumerate(queries) if query.text]
        found = [Context([]) for _ in queries]
        routes = self.router.routes([queries[place].text for place in asked]) if asked else []
        for place, route in zip(asked, routes, strict=True):
            if route.edit is not None:
                tokens = self.adapter.context(route.edit.request)
                found[place] = Context(tokens, queries[place].place, route.similarity)
        return Contexts(found, context_length(self.adapter.model))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        labels: Tensor | None = None,
        prompt_length: int | Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        soft: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """The logits at the user's tokens; those of an edit that is read before them are cut away.

        Rows that are in no edit's scope have the base model's logits to the last bit, unless a
        cache is asked for in a batch that also holds rows of an edit: then all run in one pass.
        ``position_ids`` count in rows without an edit alone.

        Args:
            input_ids: ``[rows, columns]``, padded on either side.
            attention_mask: ``[rows, columns]``; None: there are no pads. With a cache, of all
                columns so far.
            labels: ``[rows, columns]``, -100 where no loss is wanted; what goes before the first
                label of a row is the prompt that is routed.
            prompt_length: How many tokens of the rows, pads left out, are the prompt instead: a
                number, or ``[rows]``.
            use_cache: Whether to return a cache of keys and values, which knows the rows' routes;
                None: only where no row has an edit.
            logits_to_keep: Of the last so many columns alone, or of the columns ``[n]``; 0: of all.
            soft: Whether a row with an edit has (1 - w) · base + w · counterfactual, w its
                similarity, as probabilities; None: as `soft` of the model says.
            kwargs: Further arguments of the base model, its ``past_key_values`` among them.

        Returns:
            ``CausalLMOutputWithPast``: logits ``[rows, columns, vocabulary]``, without meaning
            at the pads of rows with an edit, and the loss as the base model has it.

        Raises:
            ModelError: A row is too long with its edit, or an argument cannot be used.
        """
        given = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels,
            "use_cache": use_cache,
            **kwargs,
        }
        given = {name: value for name, value in given.items() if value is not None}
        if not isinstance(logits_to_keep, int) or logits_to_keep:
            given["logits_to_keep"] = logits_to_keep
        with self._lock:
            if (cache := cache_of(given)) is not None:
                given = {name: one for name, one in given.items() if name not in CACHE_NAMES}
                given[CACHE] = cache
            contexts = contexts_in(cache)
            if contexts is not None:
                if any(contexts.routed):
                    refuse_states(given, self.config)
                return self._continued(contexts, given)
            if cache is not None and cache.get_seq_length():
                return self.base(**given)  # the base model's own, routed by its first pass
            if input_ids is None:
                raise ModelError("SERAC routes by the prompt's tokens; pass input_ids")
            prompts = prompts_of(input_ids, attention_mask, labels, prompt_length)
            if labels is not None and prompt_length is None and not all(prompts):
                warnings.warn(_NO_PROMPT, stacklevel=4)  # past torch's own calls
            contexts = self._contexts(prompts)
            if not any(contexts.routed):
                return self.base(**given)
            return self._answered(contexts, given, self.soft if soft is None else soft)

    def _continued(self, contexts: Contexts, given: dict[str, Any]) -> Any:
        """A further pass over a cache that knows its contexts."""
        with self.adapter.on(contexts.routed):
            return self.base(**self._widened(contexts, given))

    def _answered(self, contexts: Contexts, given: dict[str, Any], soft: bool) -> Any:
        """A first pass in which some rows have a context."""
        refuse_states(given, self.config)
        refuse_fixed_cache(cache_of(given))
        labels, return_dict = given.pop("labels", None), given.pop("return_dict", True)
        cache = None
        if not given.get("use_cache") and cache_of(given) is None:
            logits = self._apart(contexts, given, soft)
        elif soft:
            raise ModelError("mixed answers have no cache; pass soft=False or use_cache=False")
        else:
            logits, cache = self._cached(contexts, given)
        loss = None
        if labels is not None:
            size = self.config.get_text_config().vocab_size
            extra = {name: given[name] for name in ("num_items_in_batch",) if name in given}
            loss = self.base.loss_function(logits=logits, labels=labels, vocab_size=size, **extra)
        output = CausalLMOutputWithPast(loss=loss, logits=logits, **{CACHE: cache})
        return output if return_dict else output.to_tuple()

    def _cached(self, contexts: Contexts, given: dict[str, Any]) -> tuple[Tensor, Any]:
        """The user's logits and a cache: all rows run in one pass."""
        if CACHE == "past_key_values":  # some models of old releases would return tuples
            given = {CACHE: DynamicCache(), **given}
        arguments = self._widened(contexts, given, cut=True)
        with self.adapter.on(contexts.routed):
            output = self.base(**arguments)
        cache = getattr(output, CACHE)
        follow(cache, contexts)
        return contexts.logits(output.logits, given.get("logits_to_keep", 0)), cache

    def _apart(self, contexts: Contexts, given: dict[str, Any], soft: bool) -> Tensor:
        """The user's logits: rows with a context have a pass of their own."""
        given = {**given, "use_cache": False}
        rows = [row for row, routed in enumerate(contexts.routed) if routed]
        own = contexts.of(rows)
        places = torch.tensor(rows, device=given["input_ids"].device)
        picked = {name: given[name][places] for name in OF_THE_ROWS[:2] if name in given}
        edited = self._edited(own, {**given, **picked})
        if len(rows) == len(contexts.rows) and not soft:
            return edited
        base: Tensor = self.base(**given).logits
        places = places.to(base.device)
        if soft:
            edited = own.mixed(base[places], edited)
        return base.index_copy(0, places, edited.to(base.device))

    def _edited(self, contexts: Contexts, given: dict[str, Any]) -> Tensor:
        """The counterfactual model's logits at the user's tokens of rows that all have contexts."""
        arguments = self._widened(contexts, given, cut=True)
        with self.adapter.on():
            output = self.adapter.model(**arguments)
        return contexts.logits(output.logits, given.get("logits_to_keep", 0))

    def _widened(
        self, contexts: Contexts, given: dict[str, Any], *, cut: bool = False
    ) -> dict[str, Any]:
        """The counterfactual model's arguments for a pass with contexts, which mark a cache.

        Args:
            contexts: The contexts.
            given: The arguments without them.
            cut: Whether `Contexts.logits` cuts the user's logits out of the result.
        """
        cache, ids, mask = cache_of(given), given["input_ids"], given.get("attention_mask")
        if cache is not None and contexts_in(cache) is contexts:
            wide = contexts.next(ids, mask, cache.get_seq_length())
        else:
            wide = contexts.first(ids, mask)
            if cache is not None:
                follow(cache, contexts)
        kept = {name: value for name, value in given.items() if name not in OF_THE_ROWS}
        if cut and "logits_to_keep" in self._accepted:
            kept["logits_to_keep"] = contexts.last(given.get("logits_to_keep", 0))
        return {**kept, **{name: wide[name] for name in wide if name in self._accepted}}

    @torch.no_grad()
    def generate(
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        """As ``generate`` of transformers: each row goes on as its edit, or the base model, says.

        The base model's own loop runs once for the whole batch. It sees the user's tokens alone:
        so do streamers, stopping criteria and what counts tokens, such as ``max_length``.

        Args:
            inputs: ``[rows, columns]`` token ids, padded on either side; or ``input_ids``.
            generation_config: As in transformers.
            kwargs: As in transformers.

        Returns:
            As in transformers; the sequences begin with the user's columns as they were given.

        Raises:
            ModelError: A row is too long with its edit, or a way to generate is not supported.
        """
        refuse_unsupported(kwargs, generation_config, self.generation_config)
        ids = kwargs.get("input_ids") if inputs is None else inputs
        with self._lock:
            if ids is None:
                return self.base.generate(inputs, generation_config, **kwargs)
            if (mask := kwargs.get("attention_mask")) is None:
                configs = [generation_config, self.generation_config]
                names = ("pad_token_id", "eos_token_id")
                mask = likely_mask(ids, *(setting(name, kwargs, configs) for name in names))
            contexts = self._contexts(prompts_of(ids, mask))
            padded_right = bool((mask[:, 1:] < mask[:, :-1]).any())
            if not any(contexts.routed) and not padded_right:
                return self.base.generate(inputs, generation_config, **kwargs)
            if any(contexts.routed):
                refuse_states(kwargs, generation_config, self.generation_config)
            # Pads go to the left: a stable order by the mask keeps the rest.
            order = mask.argsort(dim=1, stable=True)
            own = {name: value for name, value in kwargs.items() if name not in OF_THE_ROWS}
            own["attention_mask"] = mask.gather(1, order)
            if fixed_cache(self.generation_config):
                own.setdefault("cache_implementation", None)  # its size leaves contexts out
            result = self._generated(contexts, ids.gather(1, order), generation_config, own)
            sequences = result if isinstance(result, Tensor) else result.sequences
            times = len(sequences) // len(ids)
            sequences[:, : ids.shape[1]] = ids.repeat_interleave(times, 0).to(sequences.device)
            return result

    def _generated(
        self,
        contexts: Contexts,
        ids: Tensor,
        config: GenerationConfig | None,
        given: dict[str, Any],
    ) -> Any:
        """What ``generate`` gives for prompts ``[rows, columns]`` that are padded on the left."""
        with self.adapter.on(contexts.routed), self._widening(contexts):
            return self.base.generate(ids, config, **given)

    @contextlib.contextmanager
    def _widening(self, contexts: Contexts) -> Iterator[None]:
        """Puts contexts into all passes of the base model in a ``with`` block."""

        def widen(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            return args, self._widened(contexts, kwargs)

        handle = self.base.register_forward_pre_hook(widen, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
