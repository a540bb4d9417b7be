"""The counterfactual model: a model with a LoRA adapter, which answers from an edit.

It reads the edit and then the query: "{prompt} {target_new}", a new line, and the query's own
tokens. The adapter is PEFT's, and it acts on those rows of a batch alone that are routed to an
edit; the others run through the base model's own weights.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from easyedit_fast.data import RequestTokenizer
from easyedit_fast.errors import (
    DataFileError,
    EditStateError,
    HparamsError,
    MissingPackageError,
    ModelError,
)
from easyedit_fast.models.adapters import refuse_adapters
from easyedit_fast.models.architectures import Architecture, block
from easyedit_fast.models.limits import context_length, refuse_long_rows
from easyedit_fast.serac.plain_state import keep_plain_state

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from easyedit_fast.requests import EditRequest

_ADAPTER = "counterfactual"
_BASE = "__base__"  # PEFT's name for rows without an adapter
_SIDES = ("lora_A", "lora_B")
_SEPARATOR = "\n"


class CounterfactualAdapter:
    """A LoRA adapter inside a model, which is off unless it is switched on.

    The model's state dict, and so what `save_pretrained` writes, is that of the plain model.

    Attributes:
        model: The base model, or a small one; its linear layers are wrapped in place, its weights
            untouched.
        tokenizer: Of the contexts.
        lock: Held while the adapter is switched on or off for a pass: the switch is in the layers.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        rank: int,
        alpha: float,
        modules: Sequence[str],
        seed: int = 0,
    ) -> None:
        """Puts a new adapter in, which changes nothing yet.

        Args:
            model: The model.
            tokenizer: Its (fast) tokenizer.
            rank: Of the adapter; 0: none, the model itself answers from the edit.
            alpha: The adapter's output is scaled by ``alpha / rank``.
            modules: Ends of the names of the wrapped layers, e.g. ``q_proj``.
            seed: Of the adapter's first values.

        Raises:
            MissingPackageError: The ``peft`` package is not installed.
            ModelError: The model holds PEFT layers already.
            HparamsError: The model has no such layers.
        """
        self.model = model
        self.tokenizer = tokenizer
        self.lock = threading.RLock()
        self._layers: list[Any] = []
        self._is_on = self._is_removed = False
        if rank:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                self._layers = _injected(model, rank, alpha, modules)
            self._is_on = True
            self._switch(on=False)
        names = {id(module): name for name, module in model.named_modules()}
        self._plain_state = keep_plain_state(model, [names[id(layer)] for layer in self._layers])

    def context(self, request: EditRequest) -> list[int]:
        """The tokens that go before a query, without special ones."""
        return edit_context(self.tokenizer, request)

    @functools.cached_property
    def _native(self) -> RequestTokenizer:
        return RequestTokenizer.from_transformers(self.tokenizer)

    def encode_prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """As `RequestTokenizer.encode_prompts`, in the tokens of the model that answers."""
        return self._native.encode_prompts(texts)

    def refuse_too_long(self, requests: Sequence[EditRequest]) -> None:
        """Refuses edits that cannot answer their own prompts.

        Raises:
            RequestError: The model cannot read a request's prompt after its edit; it is named.
        """
        texts = [f"{request.prompt} {request.target_new}" for request in requests]
        alone = self.encode_prompts(texts)
        contexts = [self.context(request) for request in requests]
        lengths = [len(own) + len(one) for own, one in zip(alone, contexts, strict=True)]
        limit = context_length(self.model)
        refuse_long_rows(np.array(lengths), np.arange(len(lengths)), limit, "its edit as context")

    def remove(self) -> None:
        """Takes the adapter out; the model is as before, and this object of no more use."""
        with self.lock:
            for handle in self._plain_state:
                handle.remove()
            _unwrap(self.model, self._layers)
            self._layers, self._is_removed = [], True

    @contextlib.contextmanager
    def on(self, rows: Sequence[bool] | None = None) -> Iterator[None]:
        """Switches the adapter on for the time of a ``with`` block; other threads wait meanwhile.

        Args:
            rows: The rows of a batch that it acts on; None: all of them. Where a batch has a
                multiple of so many rows (beams, several sequences of one prompt), each stands for
                as many neighbours.

        Raises:
            EditStateError: The adapter was removed, and is to act on a row.
            ModelError: A forward pass has another number of rows.
        """
        wanted = rows is None or any(rows)
        with self.lock:
            if wanted and self._is_removed:
                raise EditStateError("the editor of this model was closed; make a new one")
            before, handles = self._is_on, []
            self._switch(on=wanted)
            if rows is not None and wanted and not all(rows):
                choose = functools.partial(_choose, rows)
                handles = [
                    layer.register_forward_pre_hook(choose, with_kwargs=True)
                    for layer in self._layers
                ]
            try:
                yield
            finally:
                for handle in handles:
                    handle.remove()
                self._switch(on=before)

    def parameters(self) -> list[nn.Parameter]:
        """What is trained: the two factors of each layer."""
        return [getattr(layer, side)[_ADAPTER].weight for layer in self._layers for side in _SIDES]

    def state_dict(self) -> dict[str, Tensor]:
        """The factors by layer, e.g. ``model.layers.0.self_attn.q_proj.lora_A``, [r, d_in]."""
        return {name: parameter.detach() for name, parameter in self._named()}

    @torch.no_grad()
    def load_state_dict(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts such a state in.

        Raises:
            DataFileError: It is not of this adapter.
        """
        own = dict(self._named())
        if own.keys() != tensors.keys() or any(
            own[name].shape != tensor.shape for name, tensor in tensors.items()
        ):
            wrong = sorted(own.keys() ^ tensors.keys()) or ["its shapes"]
            raise DataFileError(
                f"the adapter does not fit the model ({wrong[0]} and {len(wrong) - 1} more); it "
                "belongs to another model, or to other hyperparameters"
            )
        for name, tensor in tensors.items():
            own[name].copy_(tensor)

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        names = {id(module): name for name, module in self.model.named_modules()}
        for layer in self._layers:
            for side in _SIDES:
                yield f"{names[id(layer)]}.{side}", getattr(layer, side)[_ADAPTER].weight

    def _switch(self, *, on: bool) -> None:
        if on == self._is_on:
            return
        for layer in self._layers:
            layer.enable_adapters(on)
        for parameter in self.parameters():  # PEFT has frozen them, and a gradient may come yet
            parameter.requires_grad_(True)
        self._is_on = on


def _choose(
    rows: Sequence[bool], _: nn.Module, args: Any, kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """A hook by which a layer's adapter acts on some rows."""
    names = _repeated([_ADAPTER if row else _BASE for row in rows], len(args[0]))
    return args, {**kwargs, "adapter_names": names}


def edit_context(tokenizer: PreTrainedTokenizerBase, request: EditRequest) -> list[int]:
    """The tokens of an edit that go before a query, without special ones."""
    text = f"{request.prompt} {request.target_new}{_SEPARATOR}"
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def attention_modules(model: PreTrainedModel, architecture: Architecture) -> list[str]:
    """Ends of the names of attention's linear layers, e.g. ``self_attn.q_proj``."""
    attention = block(model, architecture, 0).get_submodule(architecture.attention)
    found = [
        f"{architecture.attention}.{name}"
        for name, part in attention.named_modules()
        if isinstance(part, nn.Linear | Conv1D)
    ]
    if not found:
        raise HparamsError(
            "attention has no linear layers of a known kind; name some of the model's linear "
            "layers as cntr_modules"
        )
    return found


def _injected(model: PreTrainedModel, rank: int, alpha: float, modules: Sequence[str]) -> list[Any]:
    """PEFT's layers, put in the place of the model's."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer
    except ImportError:
        raise MissingPackageError(
            'SERAC\'s adapter needs the package peft; run: pip install "easyedit-fast[peft]"'
        ) from None
    refuse_adapters(model)
    ends = tuple(f".{name}" for name in modules)
    wrapped = [module for name, module in model.named_modules() if name.endswith(ends)]
    if not wrapped:
        raise HparamsError(
            f"the model has none of the layers {', '.join(modules)}; name some of "
            "its linear layers as cntr_modules"
        )
    required = {name: p.requires_grad for name, p in model.named_parameters()}
    config: Any = LoraConfig(
        r=rank,
        target_modules=list(modules),
        lora_dropout=0.0,
        fan_in_fan_out=isinstance(wrapped[0], Conv1D),
    )
    config.lora_alpha = alpha  # PEFT's annotation knows whole numbers alone
    training = model.training
    try:
        inject_adapter_in_model(config, model, _ADAPTER)
    except ValueError as error:
        _unwrap(model, [module for module in model.modules() if isinstance(module, LoraLayer)])
        reason = " ".join(str(error).split())[:200]
        raise HparamsError(f"no adapter can be put on {', '.join(modules)}: {reason}") from None
    model.train(training)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(required.get(name.replace(".base_layer.", "."), True))
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:  # whatever the model's dtype
        for side in (layer.lora_A, layer.lora_B):
            side[_ADAPTER].float().requires_grad_(True)
    return layers


def _unwrap(model: PreTrainedModel, layers: Sequence[Any]) -> None:
    """Puts a model's own layers back in the place of PEFT's."""
    names = {id(module): name for name, module in model.named_modules()}
    for layer in layers:
        model.set_submodule(names[id(layer)], layer.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config


def _repeated(names: Sequence[str], rows: int) -> list[str]:
    times, rest = divmod(rows, len(names))
    if rest:
        raise ModelError(f"a batch of {rows} rows cannot hold {len(names)} routes evenly")
    return [name for name in names for _ in range(times)]
