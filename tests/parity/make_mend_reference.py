"""Writes what others' MEND computes on a tiny model: ``mend_*.safetensors``.

    python -m tests.parity.make_mend_reference --easyedit DIR --original DIR

The folders are checkouts of zjunlp/EasyEdit (14cea82 was used) and of eric-mitchell/mend (e04fdb9);
each is optional. The package ``higher`` must be installed.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from tests.parity.mend_case import (
    CASES,
    HPARAMS,
    INNER_PARAMS,
    LABELS,
    LOCALITY,
    ROWS,
    VARIANTS,
    case_model,
)

_EMPTY_PACKAGES = ("easyeditor", "easyeditor.trainer", "easyeditor.trainer.algs", "easyeditor.util")
Batch = dict[str, torch.Tensor]


class EasyEdit:
    """EasyEdit's code: rows padded on the left, labels for their last tokens."""

    def __init__(self, checkout: Path) -> None:
        for name in _EMPTY_PACKAGES:
            package = types.ModuleType(name)
            package.__path__ = [str(checkout.resolve().joinpath(*name.split(".")))]
            sys.modules[name] = package
        self._mend = importlib.import_module("easyeditor.trainer.algs.MEND").MEND
        self.kl_loss = importlib.import_module("easyeditor.trainer.losses").kl_loc_loss

    def algorithm(self, model: Any, hparams: dict[str, Any]) -> Any:
        config = types.SimpleNamespace(
            **hparams, device="cpu", model_parallel=False, model_name="llama", model_class="llama"
        )
        return self._mend(model, config, lambda: copy.deepcopy(model))

    def edit_loss(self, algorithm: Any, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = algorithm.edit_loss_fn(algorithm.config, logits, labels)["nll"]
        return loss

    def rows(self, rows: list[list[int]]) -> Batch:
        return padded(rows, lambda row, pads: [*pads, *row])

    def edits(self, labels: list[list[int]]) -> Batch:
        return {**self.rows(ROWS), "labels": torch.tensor(labels)}


class Functional(nn.Module):
    """A model that runs with other parameters than its own."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._held = (model,)  # a tuple, so that its parameters are not listed as ours
        self._now = dict(model.named_parameters())
        self.handles = model.handles

    def named_parameters(self, *_args: Any, **_kwargs: Any) -> Any:
        return iter(self._now.items())

    def update_params(self, parameters: list[torch.Tensor]) -> None:
        self._now = dict(zip(self._now, parameters, strict=True))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return torch.func.functional_call(self._held[0], self._now, args, kwargs)


class Original:
    """MEND's own code: rows padded on the right, −100 where nothing is asked."""

    def __init__(self, checkout: Path) -> None:
        sys.modules.setdefault("hydra", types.ModuleType("hydra"))  # imported, not used
        sys.path.insert(0, str(checkout.resolve()))
        module = importlib.import_module("algs.mend")
        # ``higher`` cannot patch the list of blocks of today's transformers.
        module.make_functional = lambda model, in_place: Functional(model)
        self._mend = module.MEND
        self.kl_loss = importlib.import_module("losses").kl_loc_loss

    def algorithm(self, model: Any, hparams: dict[str, Any]) -> Any:
        config = types.SimpleNamespace(
            edit_lr=hparams["edit_lr"],
            mend=types.SimpleNamespace(**hparams),
            model=types.SimpleNamespace(name="llama", inner_params=hparams["inner_params"]),
        )
        return self._mend(model, config, lambda: copy.deepcopy(model))

    def edit_loss(self, algorithm: Any, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = algorithm.edit_loss_fn(logits, labels)["nll"]
        return loss

    def rows(self, rows: list[list[int]]) -> Batch:
        return padded(rows, lambda row, pads: [*row, *pads])

    def edits(self, labels: list[list[int]]) -> Batch:
        batch = self.rows(ROWS)
        wanted = torch.full_like(batch["input_ids"], -100)
        for own, row, target in zip(wanted, ROWS, labels, strict=True):
            own[len(row) - len(target) : len(row)] = torch.tensor(target)
        return {**batch, "labels": wanted}


def main() -> None:
    """Parses the options and writes the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--easyedit", type=Path, metavar="DIR")
    parser.add_argument("--original", type=Path, metavar="DIR")
    options = parser.parse_args()
    if options.easyedit is not None:
        peer = EasyEdit(options.easyedit)
        write("easyedit", peer)
        write("easyedit_labels", peer)
    if options.original is not None:
        write("original", Original(options.original))


def write(file: str, peer: EasyEdit | Original) -> None:
    """A file's variants by a peer's code."""
    tensors: dict[str, torch.Tensor] = {
        f"model.{name}": tensor.clone() for name, tensor in case_model().state_dict().items()
    }
    for variant in [variant for own, variant in CASES if own == file]:
        made = run(peer, {**HPARAMS, **VARIANTS[variant]}, peer.edits(LABELS[file]))
        tensors |= {f"{variant}.{name}": tensor.clone() for name, tensor in made.items()}
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        Path(__file__).with_name(f"mend_{file}.safetensors"),
    )


def run(peer: EasyEdit | Original, hparams: dict[str, Any], edit: Batch) -> dict[str, torch.Tensor]:
    """One training step and one edit by their code."""
    model = case_model()
    torch.manual_seed(1)
    algorithm = peer.algorithm(model, hparams)
    with torch.no_grad():  # else an identity, whose parts cannot be told apart
        for parameter in algorithm.mend.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    factors: list[Any] = []
    for transform in algorithm.mend.values():
        transform.register_forward_hook(lambda _module, _inputs, pair: factors.append(pair))
    made = {f"before.{name}": value.clone() for name, value in state(algorithm).items()}
    locality = peer.rows(LOCALITY)
    algorithm.train()
    model.eval()  # dropout is 0, but their flag switches everything
    with torch.no_grad():
        base = algorithm(**locality)
    edited, _ = algorithm.edit(edit)
    made |= named("train", factors)
    made["loss_edit"] = peer.edit_loss(algorithm, edited(**edit), edit["labels"])
    made["loss_loc"] = peer.kl_loss(base, edited(**locality), locality["attention_mask"])
    total = hparams["cedit"] * made["loss_edit"] + hparams["cloc"] * made["loss_loc"]
    parameters = {
        "edit_lrs": algorithm.edit_lrs,
        **{f"mend.{name}": value for name, value in algorithm.mend.named_parameters()},
    }
    gradients = torch.autograd.grad(total, list(parameters.values()))
    made |= {
        f"gradient.{name}": gradient for name, gradient in zip(parameters, gradients, strict=True)
    }
    made |= {f"after.{name}": value for name, value in state(algorithm).items()}
    algorithm.eval()
    factors.clear()
    algorithm.edit(edit)
    made |= named("eval", factors)
    return {name: tensor.detach() for name, tensor in made.items()}


def state(algorithm: Any) -> Batch:
    """The editor's tensors."""
    tensors = algorithm.state_dict().items()
    return {name: value for name, value in tensors if isinstance(value, torch.Tensor)}


def padded(rows: list[list[int]], join: Callable[[list[int], list[int]], list[int]]) -> Batch:
    """Rows as a batch; ``join`` says on which side the pads are."""
    pads = [[0] * (max(map(len, rows)) - len(row)) for row in rows]
    return {
        "input_ids": torch.tensor([join(row, own) for row, own in zip(rows, pads, strict=True)]),
        "attention_mask": torch.tensor(
            [join([1] * len(row), own) for row, own in zip(rows, pads, strict=True)]
        ),
    }


def named(mode: str, factors: list[Any]) -> Batch:
    """The transformed factors by weight; they were made in the weights' order."""
    return {
        f"{mode}.{side}.{name}": tensor
        for name, pair in zip(INNER_PARAMS, factors, strict=True)
        for side, tensor in zip(("x", "delta"), pair, strict=True)
    }


if __name__ == "__main__":
    main()
