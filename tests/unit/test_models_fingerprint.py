"""The fingerprint stays where only MLPs, dtype or process differ, and tells models apart."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import normalizers
from transformers import PreTrainedModel

from easyedit_fast.errors import ModelError
from easyedit_fast.models.architectures import architecture_of, block, edited_weight
from easyedit_fast.models.fingerprint import model_fingerprint, tokenizer_fingerprint
from tests.unit.tiny_models import FAMILIES, WORDS, tiny_model, tiny_tokenizer


def fingerprint(model: PreTrainedModel) -> str:
    return model_fingerprint(model, architecture_of(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_unchanged_by_edits_and_dtypes(family: str) -> None:
    model = tiny_model(family)
    before = fingerprint(model)
    architecture = architecture_of(model)
    with torch.no_grad():
        for layer in range(4):
            edited_weight(model, architecture, layer).neg_()
    assert fingerprint(model) == before
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert fingerprint(tiny_model(family).to(dtype)) == before


@pytest.mark.parametrize("family", FAMILIES)
def test_differs_between_models(family: str) -> None:
    model = tiny_model(family)
    before = fingerprint(model)
    assert fingerprint(tiny_model(family, seed=1)) != before
    architecture = architecture_of(model)
    attention = block(model, architecture, 3).get_submodule(architecture.attention)
    with torch.no_grad():
        next(p for p in attention.parameters() if p.dim() == 2).neg_()
    assert fingerprint(model) != before


def test_slight_further_training_is_seen() -> None:
    model = tiny_model(hidden_size=256, intermediate_size=64)
    before = fingerprint(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            step = torch.randn(parameter.shape, generator=generator)
            parameter.add_(1e-3 * parameter.std() * step)
    assert fingerprint(model) != before


def test_differs_between_shapes_of_equal_values() -> None:
    values = {"attention_bias": False}
    assert fingerprint(tiny_model(**values)) != fingerprint(tiny_model("mistral"))
    assert fingerprint(tiny_model(num_hidden_layers=3)) != fingerprint(tiny_model())


@pytest.mark.slow
def test_equal_in_another_process() -> None:
    script = (
        "from tests.unit.tiny_models import tiny_model\n"
        "from easyedit_fast.models.architectures import architecture_of\n"
        "from easyedit_fast.models.fingerprint import model_fingerprint\n"
        "model = tiny_model()\n"
        "print(model_fingerprint(model, architecture_of(model)))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.strip() == fingerprint(tiny_model())


def test_offloaded_weights_are_refused() -> None:
    model = tiny_model().to("meta")
    with pytest.raises(ModelError, match="is offloaded"):
        fingerprint(model)


def test_a_tokenizer_is_told_by_its_vocabulary_and_what_it_makes_of_texts() -> None:
    own = tiny_tokenizer(WORDS)
    assert tokenizer_fingerprint(own) == tokenizer_fingerprint(tiny_tokenizer(WORDS))
    added, folding = tiny_tokenizer(WORDS), tiny_tokenizer(WORDS)
    added.add_tokens(["Darrieux"])
    folding.backend_tokenizer.normalizer = normalizers.Lowercase()
    others = [tiny_tokenizer([" ".join(WORDS)], across_words=True), added, folding]
    assert len({tokenizer_fingerprint(one) for one in (own, *others)}) == 4
