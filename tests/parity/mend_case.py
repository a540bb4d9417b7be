"""The tiny case on which the MEND of others and ours are compared."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

INNER_PARAMS = [
    f"model.layers.{layer}.mlp.{part}_proj.weight" for layer in (1, 2) for part in ("up", "down")
]
HPARAMS: dict[str, Any] = {
    "inner_params": INNER_PARAMS,
    "edit_lr": 0.05,
    "n_hidden": 1,
    "rank": 5,
    "init": "id",
    "act": "relu",
    "mlp_class": "IDMLP",
    "norm": True,
    "combine": True,
    "one_sided": False,
    "x_only": False,
    "delta_only": False,
    "shared": True,
    "cedit": 0.1,
    "cloc": 1.0,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "combine": {},
    "own": {"shared": False, "n_hidden": 2},
    "both": {"combine": False},
    "one_sided": {"combine": False, "one_sided": True},
    "x_only": {"combine": False, "x_only": True, "norm": False, "edit_lr": 50.0},
    "delta_only": {"combine": False, "delta_only": True},
    "xavier": {"init": "xavier"},
}
"""Changes of `HPARAMS`, each of which their code and ours compute."""
CASES = [
    *((file, variant) for file in ("easyedit", "original") for variant in VARIANTS),
    ("easyedit_labels", "combine"),
]
"""Each file of what others compute, and the variants in it."""

ROWS = [[5, 9, 17, 3, 21, 30, 8], [11, 4, 25, 7, 2]]
"""Prompts with their targets, which are the last tokens of each."""
LABELS = {
    "easyedit": [[30, 8], [7, 2]],
    "easyedit_labels": [[1, 30, 8], [0, 1, 2]],
    "original": [[30, 8], [25, 7, 2]],
}
"""By file, what the last tokens of each row are asked to be.

EasyEdit's collate function asks for a BOS token (1) too, and for pads (0) where a target is shorter
than others: ``easyedit_labels``. In the other two files labels are the targets' tokens alone.
"""
LOCALITY = [[6, 14, 29, 1], [12, 13, 22, 19, 10, 27]]


def case_model() -> LlamaForCausalLM:
    """A Llama of three layers with random weights."""
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=12,
        intermediate_size=20,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
    )
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()
