"""Writes what EasyEdit's own MEND computes on a tiny model: ``mend_easyedit.safetensors``.

    python -m tests.parity.make_mend_reference --easyedit DIR

DIR is a checkout of zjunlp/EasyEdit (14cea82 was used); the package ``higher`` must be installed.
"""

from __future__ import annotations

import argparse
import copy
import importlib
import sys
import types
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.parity.mend_case import HPARAMS, LOCALITY, ROWS, TARGETS, VARIANTS, case_model

_EMPTY_PACKAGES = ("easyeditor", "easyeditor.trainer", "easyeditor.trainer.algs", "easyeditor.util")


def main() -> None:
    """Parses the options and writes the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--easyedit", type=Path, required=True)
    for name in _EMPTY_PACKAGES:
        package = types.ModuleType(name)
        folder = parser.parse_args().easyedit.resolve().joinpath(*name.split("."))
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    mend = importlib.import_module("easyeditor.trainer.algs.MEND")
    losses = importlib.import_module("easyeditor.trainer.losses")
    tensors: dict[str, torch.Tensor] = {
        f"model.{name}": tensor.clone() for name, tensor in case_model().state_dict().items()
    }
    for variant, changes in VARIANTS.items():
        made = run(mend, losses, {**HPARAMS, **changes})
        tensors |= {f"{variant}.{name}": tensor.clone() for name, tensor in made.items()}
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        Path(__file__).with_name("mend_easyedit.safetensors"),
    )


def run(mend: Any, losses: Any, hparams: dict[str, Any]) -> dict[str, torch.Tensor]:
    """One training step and one edit by their code."""
    model = case_model()
    config = types.SimpleNamespace(
        **hparams, device="cpu", model_parallel=False, model_name="llama", model_class="llama"
    )
    torch.manual_seed(1)
    algorithm = mend.MEND(model, config, lambda: copy.deepcopy(model))
    with torch.no_grad():  # else an identity, whose parts cannot be told apart
        for parameter in algorithm.mend.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    state = {k: v for k, v in algorithm.state_dict().items() if isinstance(v, torch.Tensor)}
    made = {f"before.{name}": value.clone() for name, value in state.items()}
    edit = batch(ROWS, TARGETS)
    locality = batch(LOCALITY, None)
    algorithm.train()
    model.eval()  # dropout is 0, but their flag switches everything
    with torch.no_grad():
        base = algorithm(**locality)
    edited, info = algorithm.edit(edit, return_factors=True)
    made |= named("train", info["factors"])
    logits = edited(**edit)
    made["loss_edit"] = algorithm.edit_loss_fn(config, logits, edit["labels"])["nll"]
    made["loss_loc"] = losses.kl_loc_loss(base, edited(**locality), locality["attention_mask"])
    total = config.cedit * made["loss_edit"] + config.cloc * made["loss_loc"]
    named_parameters = {
        "edit_lrs": algorithm.edit_lrs,
        **{f"mend.{name}": value for name, value in algorithm.mend.named_parameters()},
    }
    gradients = torch.autograd.grad(total, list(named_parameters.values()))
    made |= {
        f"gradient.{name}": gradient
        for name, gradient in zip(named_parameters, gradients, strict=True)
    }
    state = {k: v for k, v in algorithm.state_dict().items() if isinstance(v, torch.Tensor)}
    made |= {f"after.{name}": value for name, value in state.items()}
    algorithm.eval()
    _, info = algorithm.edit(edit, return_factors=True)
    made |= named("eval", info["factors"])
    return {name: tensor.detach() for name, tensor in made.items()}


def batch(rows: list[list[int]], targets: list[list[int]] | None) -> dict[str, torch.Tensor]:
    """Rows padded on the left, as theirs are."""
    width = max(map(len, rows))
    pads = [width - len(row) for row in rows]
    made = {
        "input_ids": torch.tensor([[0] * n + row for n, row in zip(pads, rows, strict=True)]),
        "attention_mask": torch.tensor(
            [[0] * n + [1] * len(row) for n, row in zip(pads, rows, strict=True)]
        ),
    }
    return made if targets is None else {**made, "labels": torch.tensor(targets)}


def named(mode: str, factors: Any) -> dict[str, torch.Tensor]:
    """The transformed factors by weight."""
    return {
        f"{mode}.{side}.{name}": tensor
        for name, pair in factors.items()
        for side, tensor in zip(("x", "delta"), pair, strict=True)
    }


if __name__ == "__main__":
    main()
