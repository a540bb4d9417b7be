"""Hooks and switches on a model as context managers.

Each removes exactly what it installed, also after an exception; hooks of the user stay.
Nothing here may be used on a model that another thread is running.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence


class _StopForwardError(Exception):
    """Ends a forward pass whose rest is of no interest."""


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients for parameters; every flag as it was afterwards."""
    training = [part for part in model.modules() if part.training]
    # By name: where weights are offloaded, each forward pass makes new parameters.
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    try:
        for part in training:
            part.training = False
        _require_gradients(model, learning, False)
        yield
    finally:
        for part in training:
            part.training = True
        _require_gradients(model, learning, True)


@contextlib.contextmanager
def watch_block(
    block: nn.Module, enter: Callable[[Tensor], None], leave: Callable[[Any], None]
) -> Iterator[None]:
    """Calls ``enter(hidden_states)`` before and ``leave(output)`` after each call of a block."""

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        enter(split_hidden_states(args, kwargs)[0])

    def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        leave(output)

    with (
        _removed(block.register_forward_pre_hook(before, with_kwargs=True)),
        _removed(block.register_forward_hook(after)),
    ):
        yield


@contextlib.contextmanager
def watch_call(module: nn.Module, watch: Callable[[Tensor, Tensor], None]) -> Iterator[None]:
    """Calls ``watch(input, output)`` after each call of a module of one input.

    Copy what shall be kept: the model may go on to change either tensor in place.
    """

    def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        watch(args[0], output)

    with _removed(module.register_forward_hook(hook)):
        yield


@contextlib.contextmanager
def watch_input(
    module: nn.Module, watch: Callable[[Tensor], None], *, stop: bool = False
) -> Iterator[None]:
    """Calls ``watch(input)`` before each call of a module of one input.

    With `stop` the forward pass ends there, and the body is left silently.
    """

    def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
        watch(args[0])
        if stop:
            raise _StopForwardError

    with (
        contextlib.suppress(_StopForwardError),
        _removed(module.register_forward_pre_hook(hook)),
    ):
        yield


@contextlib.contextmanager
def edit_output(module: nn.Module, edit: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
    """Replaces the output of a module of one input by ``edit(input, output)``."""

    def hook(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return edit(args[0], output)

    with _removed(module.register_forward_hook(hook)):
        yield


@contextlib.contextmanager
def stop_after(module: nn.Module) -> Iterator[None]:
    """Ends the forward pass in its body after the first call of a module.

    Install it after the hooks that shall still see that call. The body is left silently at the
    point of the stop.
    """

    def hook(*_: Any) -> None:
        raise _StopForwardError

    with (
        contextlib.suppress(_StopForwardError),
        _removed(module.register_forward_hook(hook)),
    ):
        yield


@contextlib.contextmanager
def row_updates(
    module: nn.Module,
    output_factor: Tensor,
    input_factor: Tensor,
    rows: Sequence[int] | None = None,
) -> Iterator[None]:
    """Gives rows of the batch low-rank updates of a linear module's weight, to each its own.

    ``output[row] += (input[row] @ input_factor[i]ᵀ) @ output_factor[i]ᵀ``, i being the row's
    update: as many edited models in one forward pass, with the weight itself as it was.

    Args:
        module: The linear module, of either weight layout.
        output_factor: ``[updates, d_out, r]``, on the module's device.
        input_factor: ``[updates, r, d_in]``, on the module's device.
        rows: How many consecutive rows have each update; None: one.
    """
    counts = [1] * len(output_factor) if rows is None else list(rows)

    def edit(inputs: Tensor, output: Tensor) -> Tensor:
        # Some models flatten rows and tokens before the MLP.
        states = inputs.reshape(sum(counts), -1, inputs.shape[-1]).to(input_factor.dtype)
        update = (_joined(states, counts) @ input_factor.mT) @ output_factor.mT
        return output + _parted(update, counts).reshape(output.shape).to(output.dtype)

    with edit_output(module, edit):
        yield


def _joined(states: Tensor, counts: Sequence[int]) -> Tensor:
    """Consecutive rows ``[rows, t, d]`` as one, ``[len(counts), t · most, d]``."""
    if len(set(counts)) > 1:
        states = pad_sequence(list(states.split(list(counts))), True)
    return states.reshape(len(counts), -1, states.shape[-1])


def _parted(states: Tensor, counts: Sequence[int]) -> Tensor:
    """Undoes `_joined`, but for the shape: the rows follow each other."""
    if len(set(counts)) == 1:
        return states
    most = max(counts)
    rows = states.reshape(len(counts), most, -1, states.shape[-1])
    return torch.cat([own[:count] for own, count in zip(rows, counts, strict=True)])


@contextlib.contextmanager
def replaced(parent: nn.Module, name: str, replacement: nn.Module) -> Iterator[None]:
    """Puts another module in the place of a child of `parent`."""
    original = parent.get_submodule(name)
    parent._modules[name] = replacement
    try:
        yield
    finally:
        parent._modules[name] = original


def split_hidden_states(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """Splits the arguments of a block into its hidden states and the rest of both."""
    if args:
        return args[0], args[1:], kwargs
    rest = dict(kwargs)
    return rest.pop("hidden_states"), (), rest


def _require_gradients(model: nn.Module, names: set[str], required: bool) -> None:
    if names:
        for name, parameter in model.named_parameters():
            if name in names:
                parameter.requires_grad_(required)


@contextlib.contextmanager
def _removed(handle: torch.utils.hooks.RemovableHandle) -> Iterator[None]:
    try:
        yield
    finally:
        handle.remove()
