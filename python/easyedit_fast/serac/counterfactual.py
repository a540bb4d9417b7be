"""The counterfactual model: the base model with a LoRA adapter, which answers from an edit.

It reads the edit and then the query: "{prompt} {target_new}", a new line, and the query's own
tokens. The adapter is PEFT's, and it acts on those rows of a batch alone that are routed to an
edit; the others run through the base model's own weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from easyedit_fast.errors import DataFileError, HparamsError, MissingPackageError, ModelError
from easyedit_fast.models.architectures import Architecture, block

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from easyedit_fast.requests import EditRequest

_ADAPTER = "counterfactual"
_BASE = "__base__"  # PEFT's name for rows without an adapter
_SEPARATOR = "\n"


class CounterfactualAdapter:
    """A LoRA adapter inside a model, which is off unless it is switched on.

    Attributes:
        model: The base model; its linear layers are wrapped in place, its weights untouched.
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
            model: The base model.
            tokenizer: Its (fast) tokenizer.
            rank: Of the adapter; 0: none, the base model itself answers from the edit.
            alpha: The adapter's output is scaled by ``alpha / rank``.
            modules: Ends of the names of the wrapped layers, e.g. ``q_proj``.
            seed: Of the adapter's first values.

        Raises:
            MissingPackageError: The ``peft`` package is not installed.
            ModelError: The model holds PEFT layers already.
            HparamsError: The model has no such layers.
        """
        self.model = model
        self._tokenizer = tokenizer
        self._layers: list[Any] = []
        if rank:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self._layers = _injected(model, rank, alpha, modules)
            self._switch(on=False)

    def context(self, request: EditRequest) -> list[int]:
        """The tokens that go before a query, without special ones."""
        return edit_context(self._tokenizer, request)

    def remove(self) -> None:
        """Takes the adapter out; the model is as before, and this object of no more use."""
        names = {id(module): name for name, module in self.model.named_modules()}
        for layer in self._layers:
            self.model.set_submodule(names[id(layer)], layer.get_base_layer())
        if hasattr(self.model, "peft_config"):
            del self.model.peft_config
        self._layers = []

    @contextlib.contextmanager
    def on(self, rows: Sequence[bool] | None = None) -> Iterator[None]:
        """Switches the adapter on for the time of a ``with`` block.

        Args:
            rows: The rows of a batch that it acts on; None: all of them. Where a batch has a
                multiple of so many rows (beams, several sequences of one prompt), each stands for
                as many neighbours.

        Raises:
            ModelError: A forward pass has another number of rows.
        """
        if rows is not None and not any(rows):
            yield
            return
        self._switch(on=True)
        handles = []
        if rows is not None and not all(rows):
            names = [_ADAPTER if row else _BASE for row in rows]

            def choose(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
                return args, {**kwargs, "adapter_names": _repeated(names, len(args[0]))}

            handles = [
                layer.register_forward_pre_hook(choose, with_kwargs=True) for layer in self._layers
            ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._switch(on=False)

    @contextlib.contextmanager
    def learning(self) -> Iterator[None]:
        """Lets the adapter alone have gradients in a ``with`` block."""
        own = {id(parameter) for parameter in self.parameters()}
        others = [p for p in self.model.parameters() if p.requires_grad and id(p) not in own]
        for parameter in others:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in others:
                parameter.requires_grad_(True)

    def parameters(self) -> list[nn.Parameter]:
        """What is trained: the two factors of each layer."""
        return [parameter for _, parameter in self._named()]

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
            for side in ("lora_A", "lora_B"):
                yield f"{names[id(layer)]}.{side}", getattr(layer, side)[_ADAPTER].weight

    def _switch(self, *, on: bool) -> None:
        for layer in self._layers:
            layer.enable_adapters(on)
        for parameter in self.parameters():  # PEFT has frozen them, and a gradient may come yet
            parameter.requires_grad_(True)


def edit_context(tokenizer: PreTrainedTokenizerBase, request: EditRequest) -> list[int]:
    """The tokens of an edit that go before a query, without special ones."""
    text = f"{request.prompt} {request.target_new}{_SEPARATOR}"
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def refuse_adapters(model: PreTrainedModel) -> None:
    """Checks that a model holds no adapter.

    Raises:
        ModelError: It does.
    """
    if any(".lora_A" in name for name, _ in model.named_modules()):
        raise ModelError(
            "the model holds an adapter already; merge it, close the editor that put it in "
            "(editor.method.close()), or load the model anew"
        )


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


def refuse_unlike_vocabularies(
    base: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase
) -> None:
    """Checks that two models speak of the same tokens.

    Raises:
        ModelError: Their vocabularies differ.
    """
    own, theirs = base.get_vocab(), other.get_vocab()
    if own != theirs:
        differing = sum(own.get(token) != number for token, number in theirs.items())
        raise ModelError(
            f"{differing} of {len(theirs)} tokens of the counterfactual model are not the base "
            "model's; give one with the same tokenizer"
        )


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
    inject_adapter_in_model(config, model, _ADAPTER)
    model.train(training)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(required.get(name.replace(".base_layer.", "."), True))
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:  # whatever the model's dtype
        for side in (layer.lora_A, layer.lora_B):
            side[_ADAPTER].float().requires_grad_(True)
    return layers


def _repeated(names: Sequence[str], rows: int) -> list[str]:
    times, rest = divmod(rows, len(names))
    if rest:
        raise ModelError(f"a batch of {rows} rows cannot hold {len(names)} routes evenly")
    return [name for name in names for _ in range(times)]
