"""Runs EasyEdit's own SERAC from a checkout of zjunlp/EasyEdit, without its whole dependency tree.

The packages above its module get empty stand-ins, as do its vision models, which are not used.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

_EMPTY_PACKAGES = (
    "easyeditor",
    "easyeditor.models",
    "easyeditor.trainer",
    "easyeditor.trainer.algs",
    "easyeditor.util",
)
_KEYS: dict[str, Any] = {
    "alg": "SERAC",
    "model_name": "llama",
    "model_class": "LlamaForCausalLM",
    "cls_name": "sentence-transformers",  # the pooled output, as for every such model
    "cls_class": "AutoModel",
    "device": "cpu",
    "supervised": True,
    "soft_weighting": False,
    "cross_attend": False,
    "bound_embeds": False,
    "dist_heads": 1,
    "cos": False,
    "square": True,
    "freeze_cntr": True,
    "freeze": None,
}


class EasyEditSerac:
    """EasyEdit's ``SERAC``: the base model itself answers from the edit (``freeze_cntr``)."""

    def __init__(
        self, checkout: Path, model: Any, tokenizer: Any, encoder: Any, encoder_tokenizer: Any
    ) -> None:
        """Imports the checkout's code; the memory is empty.

        Args:
            checkout: The checkout's folder.
            model: The model.
            tokenizer: Its tokenizer.
            encoder: The sentence encoder, untrained as it is.
            encoder_tokenizer: Its tokenizer.
        """
        if not (checkout / "easyeditor" / "trainer" / "algs" / "SERAC.py").is_file():
            raise SystemExit(f"error: {checkout} is no checkout of zjunlp/EasyEdit")
        for name in _EMPTY_PACKAGES:
            package = types.ModuleType(name)
            package.__path__ = [str(checkout.resolve().joinpath(*name.split(".")))]
            sys.modules[name] = package
        vision: Any = types.ModuleType("easyeditor.trainer.models")
        vision.BertClassifier = object
        sys.modules["easyeditor.trainer.models"] = vision
        serac = importlib.import_module("easyeditor.trainer.algs.SERAC")
        self._make = lambda inputs: serac.SERAC(
            model,
            types.SimpleNamespace(**_KEYS),
            lambda: model,
            classifier=encoder,
            classifier_tok=encoder_tokenizer,
            replacement=model,
            replacement_tok=tokenizer,
            cache_inputs=inputs,
            cache_labels=["" for _ in inputs],
            scale=torch.tensor(1.0),
        ).eval()
        self.algorithm = self._make([])
        self.tokenizer = tokenizer

    def fill(self, texts: Sequence[str]) -> None:
        """Has the memory hold some edits: prompt and target."""
        self.algorithm = self._make(list(texts))

    def add(self, text: str) -> None:
        """Adds an edit, by its ``edit``, which makes a new object of all."""
        ids = self.tokenizer(text, return_tensors="pt")["input_ids"]
        self.algorithm = self.algorithm.edit({"input_ids": ids, "labels": ids})[0].eval()

    @torch.no_grad()
    def route(self, prompt: str) -> int:
        """The nearest edit of a prompt, by its ``run_classifier``, which encodes the memory."""
        ids = self.tokenizer(prompt, return_tensors="pt")["input_ids"]
        return int(self.algorithm.run_classifier(input_ids=ids)[1])

    @torch.no_grad()
    def generate(self, prompt: str, new_tokens: int) -> Any:
        """A continuation, by its ``generate``, which takes one prompt."""
        row = self.tokenizer(prompt, return_tensors="pt")
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
            return self.algorithm.generate(
                input_ids=row["input_ids"],
                attention_mask=row["attention_mask"],
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
            )
