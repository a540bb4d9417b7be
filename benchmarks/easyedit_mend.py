"""Runs EasyEdit's own MEND from a checkout of zjunlp/EasyEdit, without its whole dependency tree.

The packages above its modules get empty stand-ins, as does hydra, which is imported and not used.
It needs the package ``higher``.
"""

from __future__ import annotations

import copy
import importlib
import sys
import types
import unittest.mock
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

_EMPTY_PACKAGES = (
    "easyeditor",
    "easyeditor.models",
    "easyeditor.models.mend",
    "easyeditor.trainer",
    "easyeditor.trainer.algs",
    "easyeditor.util",
)
_KEYS: dict[str, Any] = {
    "one_sided": False,
    "x_only": False,
    "delta_only": False,
    "model_name": "llama",
    "model_class": "llama",
}


class EasyEditMend:
    """EasyEdit's ``MEND``, its training step and its ``MendRewriteExecutor``."""

    def __init__(
        self,
        checkout: Path,
        model: Any,
        tokenizer: Any,
        hparams: Mapping[str, Any],
        *,
        learning: bool = False,
    ) -> None:
        """Imports the checkout's code and makes an untrained editor.

        Args:
            checkout: The checkout's folder.
            model: The model; hooks of theirs stay in it.
            tokenizer: Its tokenizer.
            hparams: Our hyperparameters of training.
            learning: Give its ``clamp(min=0)`` the gradient at 0 that it had before torch 2.15:
                with torch's own its networks never learn.
        """
        if not (checkout / "easyeditor" / "models" / "mend").is_dir():
            raise SystemExit(f"error: {checkout} is no checkout of zjunlp/EasyEdit")
        for name in _EMPTY_PACKAGES:
            package = types.ModuleType(name)
            package.__path__ = [str(checkout.resolve().joinpath(*name.split(".")))]
            sys.modules[name] = package
        sys.modules.setdefault("hydra", types.ModuleType("hydra"))
        mend = importlib.import_module("easyeditor.trainer.algs.MEND")
        sys.modules["easyeditor.trainer"].MEND = mend.MEND  # type: ignore[attr-defined]
        if learning:
            _mend_the_clamp(importlib.import_module("easyeditor.trainer.algs.local_nn"))
        self._losses = importlib.import_module("easyeditor.trainer.losses")
        self._backward = importlib.import_module("easyeditor.trainer.utils").safe_backward
        main = importlib.import_module("easyeditor.models.mend.mend_main")
        self.model, self.tokenizer = model, tokenizer
        self.config = types.SimpleNamespace(
            **{**hparams, **_KEYS, "device": "cpu", "model_parallel": False, "alg": "MEND"}
        )
        self.algorithm = mend.MEND(model, self.config, lambda: copy.deepcopy(model))
        outer = [*self.algorithm.mend.parameters()]
        self._optimizers = [
            torch.optim.Adam(outer, lr=hparams["lr"]),
            torch.optim.Adam([self.algorithm.edit_lrs], lr=hparams["lr_lr"]),
        ]
        self._executor = main.MendRewriteExecutor()
        self._executor.model, self._executor.tokenizer = model, tokenizer
        self._executor.alg, self._executor.is_init = self.algorithm, True

    def batch(self, texts: Sequence[tuple[str, str]]) -> dict[str, dict[str, torch.Tensor]]:
        """Rows of prompts and answers, as its collate function makes them."""
        whole = self.tokenizer([f"{a} {b}" for a, b in texts], padding=True, return_tensors="pt")
        answers = self.tokenizer([f" {b}" for _, b in texts], padding=True, return_tensors="pt")
        return {
            "input_ids": whole["input_ids"],
            "attention_mask": whole["attention_mask"],
            "labels": answers["input_ids"],
        }

    def train_step(
        self, edits: Mapping[str, Any], locality: Mapping[str, Any], *, descend: bool = True
    ) -> float:
        """What ``EditTrainer.train_step`` does, but for what it logs.

        Args:
            edits: A batch of edits.
            locality: And of prompts that shall stay.
            descend: Whether the optimisers step, or the gradients are kept for the next call.
        """
        algorithm, config = self.algorithm, self.config
        algorithm.train()
        with torch.no_grad():
            base = algorithm(**locality)
        edited, _ = algorithm.edit(edits)
        logits = edited(**edits)
        edit = algorithm.edit_loss_fn(config, logits, edits["labels"])["nll"]
        changed = edited(**locality)
        loss = config.cedit * edit + config.cloc * self._losses.kl_loc_loss(
            base.detach(), changed, mask=locality["attention_mask"]
        )
        self._backward(loss, algorithm.outer_parameters(), config.accumulate_bs)
        if not descend:
            return float(loss.detach())
        torch.nn.utils.clip_grad_norm_(
            algorithm.outer_parameters(), config.grad_clip, error_if_nonfinite=True
        )
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return float(loss.detach())

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Puts the tensors of an editor of the same form into theirs."""
        self.algorithm.load_state_dict({**tensors, "model_config": self.model.config})

    def edit(self, requests: Sequence[Mapping[str, str]]) -> dict[str, torch.Tensor]:
        """Edits the model by their executor; the weights of before, to put back."""
        _, before = self._executor.apply_to_model(
            self.model,
            self.tokenizer,
            list(requests),
            self.config,
            return_orig_weights=True,
        )
        return dict(before)


def _mend_the_clamp(local_nn: types.ModuleType) -> None:
    """Puts ``x · (x ≥ 0)`` in the place of ``x.clamp(min=0)`` in its networks."""
    theirs = local_nn.LRLinear.forward

    def clamp(states: torch.Tensor, *, min: float) -> torch.Tensor:  # noqa: A002
        return states * (states >= min)

    def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
        with unittest.mock.patch.object(torch.Tensor, "clamp", clamp):
            made: torch.Tensor = theirs(*args, **kwargs)
            return made

    local_nn.LRLinear.forward = forward
