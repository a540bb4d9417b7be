"""The table of architectures against models of every family."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from easyedit_fast.errors import ModelError
from easyedit_fast.models.architectures import (
    ARCHITECTURES,
    Architecture,
    architecture_of,
    block,
    block_list,
    describe_architecture,
    edited_module,
    edited_weight,
    module,
    number_of_layers,
)
from tests.unit.tiny_models import FAMILIES, tiny_gemma3_with_vision, tiny_model


def test_every_row_is_tested() -> None:
    tested = {tiny_model(family).config.model_type for family in FAMILIES} | {"gemma3"}
    assert tested == {name for row in ARCHITECTURES for name in row.model_types}


@pytest.mark.parametrize("family", [*FAMILIES, "gemma3-with-vision"])
def test_declared_places_exist(family: str) -> None:
    vision = family == "gemma3-with-vision"
    model = tiny_gemma3_with_vision() if vision else tiny_model(family)
    architecture = architecture_of(model)
    assert number_of_layers(model, architecture) == 4
    assert module(model, architecture.embeddings) is model.get_input_embeddings()
    if family != "gpt_neox":  # transformers renamed it from embed_out to lm_head
        assert module(model, architecture.lm_head) is model.get_output_embeddings()
    decoder, _, name = architecture.blocks.rpartition(".")
    assert decoder == architecture.decoder
    assert block_list(model, architecture) is getattr(module(model, decoder), name)
    if family != "opt-350m":  # its decoder ends without a norm
        assert "norm" in type(module(model, architecture.final_norm)).__name__.lower()
    part = block(model, architecture, 2)
    assert "attention" in type(part.get_submodule(architecture.attention)).__name__.lower()
    assert part.get_submodule(architecture.mlp) is not None
    for path in architecture.mlp_input_projections:
        assert part.get_submodule(path) is not None
    weight = edited_weight(model, architecture, 2)
    assert weight is dict(model.named_parameters())[architecture.weight_name(2)]


@pytest.mark.parametrize("family", FAMILIES)
def test_declared_layout_is_that_of_the_product(family: str) -> None:
    """Even where the weight is square and its shape says nothing."""
    model = tiny_model(family)
    architecture = architecture_of(model)
    projection = edited_module(model, architecture, 1)
    weight = edited_weight(model, architecture, 1)
    matrix = weight if architecture.weight_layout == "in_out" else weight.T
    inputs = torch.randn(3, matrix.shape[0], generator=torch.Generator().manual_seed(0))
    bias = projection.bias if projection.bias is not None else 0
    torch.testing.assert_close(projection(inputs), inputs @ matrix + bias)
    assert matrix.shape[1] == model.config.hidden_size


def test_names_of_places() -> None:
    architecture = architecture_of(tiny_model("llama"))
    assert architecture.block_name(5) == "model.layers.5"
    assert architecture.projection_name(5) == "model.layers.5.mlp.down_proj"
    assert architecture.weight_name(5) == "model.layers.5.mlp.down_proj.weight"


def test_a_config_is_enough() -> None:
    config = AutoConfig.for_model("gpt_neox")
    assert architecture_of(config).name == "GPT-NeoX"


@pytest.mark.parametrize("layer", [-1, 4, 40])
def test_layer_out_of_range(layer: int) -> None:
    model = tiny_model()
    message = f"layer {layer} is not in this model of 4 layers; give a layer from 0 to 3"
    with pytest.raises(ModelError, match=message):
        edited_weight(model, architecture_of(model), layer)


def test_unknown_family_names_the_known_ones() -> None:
    config = AutoConfig.for_model("bert")
    with pytest.raises(ModelError, match=r"'bert' is not .*Llama.*Bloom.*architecture=") as error:
        architecture_of(config)
    assert "\n" not in str(error.value)


def test_declaration_that_does_not_fit_the_model() -> None:
    model = tiny_model("gpt2")
    with pytest.raises(ModelError, match=r"has no module 'model\.layers'"):
        edited_weight(model, architecture_of(tiny_model("llama")), 0)
    wrong = dataclasses.replace(architecture_of(model), weight_layout="out_in")
    with pytest.raises(ModelError, match="is not the declared weight_layout 'out_in'"):
        edited_weight(model, wrong, 0)
    wrong = dataclasses.replace(architecture_of(model), mlp_output_projection="mlp.act")
    with pytest.raises(ModelError, match="not a plain Linear or Conv1D"):
        edited_weight(model, wrong, 0)
    wrong = dataclasses.replace(architecture_of(model), blocks="transformer.wte")
    with pytest.raises(ModelError, match="not a list of blocks"):
        edited_weight(model, wrong, 0)


class QuantisedParameter(nn.Parameter):
    """As quantisation packages make them: a parameter of another class."""


def test_weights_that_cannot_be_edited() -> None:
    model = tiny_model()
    architecture = architecture_of(model)
    projection = edited_module(model, architecture, 0)
    projection.weight = QuantisedParameter(projection.weight.detach())
    with pytest.raises(ModelError, match="without quantisation"):
        edited_weight(model, architecture, 0)
    projection.weight = nn.Parameter(torch.zeros(32, 48, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ModelError, match=r"torch\.int8"):
        edited_weight(model, architecture, 0)
    projection.weight = nn.Parameter(torch.zeros(32, 48, device="meta"))
    with pytest.raises(ModelError, match="offloaded"):
        edited_weight(model, architecture, 0)


def test_data_parallel_models_are_refused() -> None:
    with pytest.raises(ModelError, match=r"wrapped in DataParallel; .*model\.module"):
        architecture_of(nn.DataParallel(tiny_model()))


@pytest.mark.slow  # the compiler takes seconds to import
def test_compiled_models_are_refused() -> None:
    with pytest.raises(ModelError, match=r"model\._orig_mod"):
        architecture_of(torch.compile(tiny_model()))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # from peft
def test_models_with_adapters_are_refused_until_merged() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["down_proj"], r=2)
    wrapped = peft.get_peft_model(tiny_model(), config)
    with pytest.raises(ModelError, match="merge_and_unload"):
        architecture_of(wrapped)
    # The model inside is changed too: its projections are no plain Linear.
    inside = wrapped.get_base_model()
    with pytest.raises(ModelError, match="merge the adapters"):
        edited_weight(inside, architecture_of(inside), 0)
    merged = wrapped.merge_and_unload()
    assert edited_weight(merged, architecture_of(merged), 0).shape == (32, 48)


def templates_of(architecture: Architecture) -> dict[str, str]:
    layer = f"{architecture.blocks}.{{}}"
    return {
        "rewrite_module_tmp": f"{layer}.{architecture.mlp_output_projection}",
        "layer_module_tmp": layer,
        "mlp_module_tmp": f"{layer}.{architecture.mlp}",
        "attn_module_tmp": f"{layer}.{architecture.attention}",
        "ln_f_module": str(architecture.final_norm),
        "lm_head_module": architecture.lm_head,
    }


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "opt-350m"])
def test_easyedit_templates_describe_a_model(family: str) -> None:
    model = tiny_model(family)
    row = architecture_of(model)
    described = describe_architecture(model, **templates_of(row))
    expected = dataclasses.replace(
        row, name=type(model).__name__, mlp_input_projections=(), model_types=described.model_types
    )
    assert described == expected


@pytest.mark.parametrize(
    ("name", "template", "message"),
    [
        ("layer_module_tmp", "model.layers.0", "must be the path of a block"),
        ("layer_module_tmp", "layers.{}", "must be the path of a block"),
        ("rewrite_module_tmp", "model.blocks.{}.mlp.down_proj", "must begin with layer_module_tmp"),
        ("rewrite_module_tmp", "model.layers.{}.mlp.up_down", "has no module"),
        ("mlp_module_tmp", "model.layers.{}.feed", "has no module"),
    ],
)
def test_templates_that_do_not_fit(name: str, template: str, message: str) -> None:
    model = tiny_model()
    templates = templates_of(architecture_of(model)) | {name: template}
    with pytest.raises(ModelError, match=message):
        describe_architecture(model, **templates)


def test_conv1d_is_told_from_linear() -> None:
    model: PreTrainedModel = tiny_model("gpt2")
    assert isinstance(edited_module(model, architecture_of(model), 0), Conv1D)
