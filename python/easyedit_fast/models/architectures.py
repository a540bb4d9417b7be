"""Where the parts of a model are: one table row for each family of architectures.

The path of every module that the package touches, and the orientation of the weight that it
edits, are declared here and checked against the model when they are used. A family that is
missing is described by an `Architecture` of one's own (or by EasyEdit's templates, see
`describe_architecture`) and passed wherever a function takes an ``architecture``.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from easyedit_fast.errors import ModelError
from easyedit_fast.models.adapters import refuse_answers_from_edits

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

WeightLayout = Literal["out_in", "in_out"]

_EDITABLE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclasses.dataclass(frozen=True, slots=True)
class Architecture:
    """The places of one family of decoder-only models.

    Paths of the model are written from the model's root, paths of a block from the block.

    Attributes:
        name: The family's name, for messages.
        model_types: Values of ``config.model_type`` that the row stands for.
        decoder: The module whose forward embeds the tokens, runs the blocks and the final norm.
        blocks: The list of blocks.
        embeddings: The token embeddings.
        final_norm: The norm after the last block, by the name that hyperparameter files give
            it; None where there is none.
        lm_head: The projection to the vocabulary, by the same. Reach it by
            ``model.get_output_embeddings()``: releases of transformers name it differently.
        attention: In a block: the self-attention.
        mlp: In a block: the module whose output is the output of the MLP.
        mlp_input_projections: In a block: the projections into the MLP's inner dimension.
        mlp_output_projection: In a block: the projection back (the "down projection"), whose
            weight ROME edits and whose input is the key.
        weight_layout: Orientation of the MLP's weights: "out_in" is ``[d_out, d_in]``
            (`torch.nn.Linear`), "in_out" is ``[d_in, d_out]`` (transformers' ``Conv1D``).
    """

    name: str
    model_types: tuple[str, ...]
    decoder: str
    blocks: str
    embeddings: str
    final_norm: str | None
    lm_head: str
    attention: str
    mlp: str
    mlp_input_projections: tuple[str, ...]
    mlp_output_projection: str
    weight_layout: WeightLayout = "out_in"

    def block_name(self, layer: int) -> str:
        """Path of a block, e.g. ``model.layers.5``."""
        return f"{self.blocks}.{layer}"

    def projection_name(self, layer: int) -> str:
        """Path of a block's MLP output projection, e.g. ``model.layers.5.mlp.down_proj``."""
        return f"{self.block_name(layer)}.{self.mlp_output_projection}"

    def weight_name(self, layer: int) -> str:
        """Name of the edited parameter, e.g. ``model.layers.5.mlp.down_proj.weight``."""
        return f"{self.projection_name(layer)}.weight"


LLAMA = Architecture(
    name="Llama",
    model_types=("llama",),
    decoder="model",
    blocks="model.layers",
    embeddings="model.embed_tokens",
    final_norm="model.norm",
    lm_head="lm_head",
    attention="self_attn",
    mlp="mlp",
    mlp_input_projections=("mlp.gate_proj", "mlp.up_proj"),
    mlp_output_projection="mlp.down_proj",
)

_GPT2 = Architecture(
    name="GPT-2",
    model_types=("gpt2",),
    decoder="transformer",
    blocks="transformer.h",
    embeddings="transformer.wte",
    final_norm="transformer.ln_f",
    lm_head="lm_head",
    attention="attn",
    mlp="mlp",
    mlp_input_projections=("mlp.c_fc",),
    mlp_output_projection="mlp.c_proj",
    weight_layout="in_out",
)

_FALCON = Architecture(
    name="Falcon",
    model_types=("falcon",),
    decoder="transformer",
    blocks="transformer.h",
    embeddings="transformer.word_embeddings",
    final_norm="transformer.ln_f",
    lm_head="lm_head",
    attention="self_attention",
    mlp="mlp",
    mlp_input_projections=("mlp.dense_h_to_4h",),
    mlp_output_projection="mlp.dense_4h_to_h",
)

ARCHITECTURES: tuple[Architecture, ...] = (
    LLAMA,
    dataclasses.replace(LLAMA, name="Mistral", model_types=("mistral",)),
    dataclasses.replace(LLAMA, name="Qwen2", model_types=("qwen2",)),
    dataclasses.replace(LLAMA, name="Qwen3", model_types=("qwen3",)),
    dataclasses.replace(LLAMA, name="Gemma 2", model_types=("gemma2",)),
    dataclasses.replace(LLAMA, name="Gemma 3", model_types=("gemma3_text",)),
    dataclasses.replace(
        LLAMA,
        name="Gemma 3 (with vision)",
        model_types=("gemma3",),
        decoder="model.language_model",
        blocks="model.language_model.layers",
        embeddings="model.language_model.embed_tokens",
        final_norm="model.language_model.norm",
    ),
    dataclasses.replace(
        LLAMA,
        name="Phi-3",
        model_types=("phi3",),
        mlp_input_projections=("mlp.gate_up_proj",),
    ),
    _GPT2,
    dataclasses.replace(
        _GPT2,
        name="GPT-J",
        model_types=("gptj",),
        mlp_input_projections=("mlp.fc_in",),
        mlp_output_projection="mlp.fc_out",
        weight_layout="out_in",
    ),
    Architecture(
        name="GPT-NeoX",
        model_types=("gpt_neox",),
        decoder="gpt_neox",
        blocks="gpt_neox.layers",
        embeddings="gpt_neox.embed_in",
        final_norm="gpt_neox.final_layer_norm",
        lm_head="embed_out",
        attention="attention",
        mlp="mlp",
        mlp_input_projections=("mlp.dense_h_to_4h",),
        mlp_output_projection="mlp.dense_4h_to_h",
    ),
    Architecture(
        name="OPT",
        model_types=("opt",),
        decoder="model.decoder",
        blocks="model.decoder.layers",
        embeddings="model.decoder.embed_tokens",
        final_norm="model.decoder.final_layer_norm",
        lm_head="lm_head",
        attention="self_attn",
        mlp="fc2",
        mlp_input_projections=("fc1",),
        mlp_output_projection="fc2",
    ),
    _FALCON,
    dataclasses.replace(_FALCON, name="Bloom", model_types=("bloom",)),
)


def architecture_of(model: PreTrainedModel | PretrainedConfig) -> Architecture:
    """The table's row for a model or its config.

    Raises:
        ModelError: The family is not in the table, or the model is wrapped or none at all.
    """
    if isinstance(model, nn.Module):
        _refuse_wrapped(model)
    model_type = getattr(getattr(model, "config", model), "model_type", None)
    if model_type is None:
        raise ModelError(
            f"a {type(model).__name__} is no model of transformers; pass one that is loaded, or "
            "load one by its name: Editor.from_pretrained('demo')"
        )
    for architecture in ARCHITECTURES:
        if model_type in architecture.model_types:
            return architecture
    known = ", ".join(architecture.name for architecture in ARCHITECTURES)
    raise ModelError(
        f"the model type {model_type!r} is not among the known families ({known}); describe it "
        "with easyedit_fast.models.architectures.Architecture and pass that as architecture=…"
    )


def describe_architecture(
    model: PreTrainedModel,
    *,
    rewrite_module_tmp: str,
    layer_module_tmp: str,
    mlp_module_tmp: str,
    attn_module_tmp: str,
    ln_f_module: str,
    lm_head_module: str,
) -> Architecture:
    """Describes a model of any family by the templates of an EasyEdit hyperparameter file.

    Args:
        model: The model; it says which class (`Linear` or ``Conv1D``) the edited module is of.
        rewrite_module_tmp: Path of the edited module, e.g. ``model.layers.{}.mlp.down_proj``.
        layer_module_tmp: Path of a block, e.g. ``model.layers.{}``.
        mlp_module_tmp: Path of a block's MLP.
        attn_module_tmp: Path of a block's attention.
        ln_f_module: Name of the final norm; empty where there is none.
        lm_head_module: Name of the projection to the vocabulary.

    Raises:
        ModelError: A template is not a path into this model, or the model is wrapped.
    """
    _refuse_wrapped(model)
    blocks = layer_module_tmp.removesuffix(".{}")
    if blocks == layer_module_tmp or "{" in blocks or "." not in blocks:
        raise ModelError(
            f"layer_module_tmp {layer_module_tmp!r} must be the path of a block, with '{{}}' for "
            "the layer at its end, like 'model.layers.{}'"
        )
    projection, mlp, attention = (
        _inside_block(template, layer_module_tmp, name)
        for name, template in (
            ("rewrite_module_tmp", rewrite_module_tmp),
            ("mlp_module_tmp", mlp_module_tmp),
            ("attn_module_tmp", attn_module_tmp),
        )
    )
    for path in (f"{blocks}.0.{mlp}", f"{blocks}.0.{attention}"):
        module(model, path)
    edited = module(model, f"{blocks}.0.{projection}")
    embeddings = model.get_input_embeddings()
    return Architecture(
        name=type(model).__name__,
        model_types=(str(model.config.model_type),),
        decoder=blocks.rpartition(".")[0],
        blocks=blocks,
        embeddings=next(name for name, part in model.named_modules() if part is embeddings),
        final_norm=ln_f_module or None,
        lm_head=lm_head_module,
        attention=attention,
        mlp=mlp,
        mlp_input_projections=(),
        mlp_output_projection=projection,
        weight_layout="in_out" if _is_conv1d(edited) else "out_in",
    )


def module(model: nn.Module, path: str) -> nn.Module:
    """The module at a path of the model.

    Raises:
        ModelError: There is none.
    """
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise ModelError(
            f"{type(model).__name__} has no module {path!r}; "
            "give the architecture (or the hyperparameter templates) that fits this model"
        ) from None


def number_of_layers(model: nn.Module, architecture: Architecture) -> int:
    """The number of blocks."""
    return len(block_list(model, architecture))


def block_list(model: nn.Module, architecture: Architecture) -> nn.ModuleList:
    """The list of blocks.

    Raises:
        ModelError: The path leads to no list of blocks.
    """
    blocks = module(model, architecture.blocks)
    if not isinstance(blocks, nn.ModuleList):
        raise ModelError(
            f"{architecture.blocks!r} is a {type(blocks).__name__}, not a list of blocks; "
            "give the architecture that fits this model"
        )
    return blocks


def block(model: nn.Module, architecture: Architecture, layer: int) -> nn.Module:
    """The block of a layer, counted from 0.

    Raises:
        ModelError: The model has no such layer.
    """
    layers = number_of_layers(model, architecture)
    if not 0 <= layer < layers:
        raise ModelError(
            f"layer {layer} is not in this model of {layers} layers; "
            f"give a layer from 0 to {layers - 1}"
        )
    return module(model, architecture.block_name(layer))


def edited_module(model: nn.Module, architecture: Architecture, layer: int) -> nn.Module:
    """The MLP output projection of a layer, checked against what the architecture declares.

    Raises:
        ModelError: No such layer; not a plain `Linear` or ``Conv1D`` of the declared layout;
            quantised, sharded or offloaded.
    """
    _refuse_wrapped(model)
    block(model, architecture, layer)
    path = architecture.projection_name(layer)
    projection, layout = linear_module(model, path)
    if layout != architecture.weight_layout:
        raise ModelError(
            f"{path!r} is a {type(projection).__name__}, which is not the declared weight_layout "
            f"{architecture.weight_layout!r}; correct the architecture"
        )
    return projection


def linear_module(model: nn.Module, path: str) -> tuple[nn.Module, WeightLayout]:
    """A module whose weight can be edited, and how that weight lies.

    Raises:
        ModelError: There is no such module; not a plain `Linear` or ``Conv1D``; quantised,
            sharded or offloaded.
    """
    found = module(model, path)
    conv1d = _is_conv1d(found)
    if not (conv1d or isinstance(found, nn.Linear)):
        raise ModelError(
            f"{path!r} is a {type(found).__name__}, not a plain Linear or Conv1D; merge the "
            "adapters, or load the model without quantisation"
        )
    _check_weight(found.weight, path)
    return found, "in_out" if conv1d else "out_in"


def key_size(model: nn.Module, architecture: Architecture, layer: int) -> int:
    """d_in of a layer's MLP output projection, the size of its keys; raises as `edited_module`."""
    weight = edited_module(model, architecture, layer).weight
    assert isinstance(weight, torch.Tensor)
    return weight.shape[1 if architecture.weight_layout == "out_in" else 0]


def edited_weight(model: nn.Module, architecture: Architecture, layer: int) -> nn.Parameter:
    """The weight of the MLP output projection of a layer; raises as `edited_module`.

    Returns:
        ``[d_out, d_in]`` or ``[d_in, d_out]``, as ``architecture.weight_layout`` says.
    """
    weight = edited_module(model, architecture, layer).weight
    assert isinstance(weight, nn.Parameter)
    return weight


def _check_weight(weight: object, path: str) -> None:
    """Quantised, sharded and offloaded weights are of another class, dtype or device."""
    if type(weight) is not nn.Parameter or weight.dtype not in _EDITABLE_DTYPES:
        kind = getattr(weight, "dtype", None) if type(weight) is nn.Parameter else type(weight)
        raise ModelError(
            f"the weight of {path!r} cannot be edited ({kind}); load the model in float32, "
            "bfloat16 or float16, without quantisation or sharding"
        )
    if weight.is_meta:
        raise ModelError(
            f"the weight of {path!r} is offloaded; load the model where this layer fits the memory"
        )


def _is_conv1d(candidate: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(candidate, Conv1D)


def _inside_block(template: str, layer_module_tmp: str, name: str) -> str:
    prefix = f"{layer_module_tmp}."
    if not template.startswith(prefix) or "{" in template[len(prefix) :]:
        raise ModelError(
            f"{name} {template!r} must begin with layer_module_tmp ({prefix!r}) and hold no other "
            "'{}'"
        )
    return template[len(prefix) :]


def _refuse_wrapped(model: nn.Module) -> None:
    """Wrappers have the wrapped model's config, but not its module paths."""
    refuse_answers_from_edits(model)
    remedies = {
        "base_model": "merge its adapter first: model = model.merge_and_unload()",
        "_orig_mod": "pass the model itself: model._orig_mod",
        "module": "pass the model inside it: model.module",
    }
    for attribute, remedy in remedies.items():
        if attribute in vars(model) or attribute in model._modules:
            raise ModelError(f"the model is wrapped in {type(model).__name__}; {remedy}")
