"""ROME's hyperparameters: EasyEdit's keys and ours, and a rule for models without a file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic

from easyedit_fast.errors import HparamsError, ModelError
from easyedit_fast.hparams import (
    Hparams,
    NonNegativeFloat,
    NonNegativeInt,
    PathText,
    PositiveFloat,
    PositiveInt,
    find_hparams_file,
    read_yaml,
)
from easyedit_fast.models.architectures import architecture_of
from easyedit_fast.rome.presets import DEFAULT, preset_values

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from easyedit_fast.models.architectures import Architecture

_GPT2_LIKE = ("gpt2", "gpt_neox")  # edited at about a third of their depth
_OLDER = ("gpt2", "gptj", "gpt_neox")  # published with 20 steps and a weight decay of 0.5

Probability = Annotated[PositiveFloat, pydantic.Field(lt=1)]
FactToken = Literal["subject_last", "subject_first", "subject_first_after_last", "last"]


class ROMEHyperParams(Hparams):
    """Hyperparameters of ROME (arXiv 2202.05262), under EasyEdit's names.

    Attributes:
        alg_name: Always ``ROME``.
        model_name: Model that the values are for; used where no model is named elsewhere.
        device: Where the model is loaded; None leaves it to the editor.
        layers: Layers whose MLP down projection is edited, one after the other.
        fact_token: Token at which the fact is looked up: the last or first one of the subject, the
            one after the subject, or the last one of the prompt.
        v_num_grad_steps: Optimisation steps for v* at most.
        v_lr: Step size for v*: Adam's, or a third of normalised descent's first step in units of
            ‖v‖.
        v_loss_layer: Last layer. EasyEdit's and ROME's loss reads the final logits whatever
            stands here, and so does ours.
        v_weight_decay: Weight of ‖delta‖ / ‖v_init‖² in the loss.
        v_loss_threshold: The loop ends once the loss is below this (a constant in EasyEdit).
        v_optimizer: ``adam`` (EasyEdit's), or ``normalised``: gradient descent in steps of a given
            length (`rome.descent`), which takes less than half as many of them.
        v_stop_probability: The loop also ends once every token of the target has at least this
            probability under every template; None leaves it to the loss. Above 0.5 the target is
            the most probable answer.
        clamp_norm_factor: ‖delta‖ is kept at or below this times ‖v_init‖.
        kl_factor: Weight of the KL divergence at "{subject} is a".
        mom2_adjustment: Whether C⁻¹ is applied to the key. None: where statistics are at hand.
        context_template_length_params: Pairs [total length in tokens, number of templates] for
            the generated contexts; their first word counts.
        context_templates: Texts with one ``{}`` each, or the path of a JSON file of them; None
            generates them.
        consistent_keys: C⁻¹ is applied to the keys at which the update is held: the mean over the
            templates exactly (r-ROME, arXiv 2403.07175), the bare prompt's nearly. False gives the
            original behaviour: C⁻¹ applied to the mean key, the equality held at the bare key.
        seed: Of the generated contexts.
        second_moment: Path of an .npz of statistics; ``{}`` in it stands for the layer.
        rewrite_module_tmp: Name of the edited module; ``{}`` stands for the layer. So do
            `layer_module_tmp`, `mlp_module_tmp` and `attn_module_tmp` for their modules.
        layer_module_tmp: Name of a whole layer.
        mlp_module_tmp: Name of a layer's MLP.
        attn_module_tmp: Name of a layer's attention.
        ln_f_module: Name of the last norm; empty where there is none.
        lm_head_module: Name of the output head.
        mom2_dataset: Name of the corpus in EasyEdit's file names of statistics.
        mom2_n_samples: Documents of that corpus in the statistics.
        mom2_dtype: Data type of the statistics.
        stats_dir: Folder of EasyEdit's statistics.
        max_length: EasyEdit cuts prompts there in its scoring. It has no effect here: nothing is
            cut.
        model_parallel: Whether the model is spread over all devices.
        fp16: Whether the model is loaded in half precision.
    """

    alg_name: Literal["ROME"] = "ROME"
    model_name: str | None = None
    device: int | str | None = None

    layers: list[NonNegativeInt] = pydantic.Field(min_length=1)
    fact_token: FactToken = "subject_last"
    v_num_grad_steps: PositiveInt = 25
    v_lr: PositiveFloat = 0.5
    v_loss_layer: NonNegativeInt
    v_weight_decay: NonNegativeFloat = 1e-3
    v_loss_threshold: NonNegativeFloat = 5e-2
    v_optimizer: Literal["adam", "normalised"] = "adam"
    v_stop_probability: Probability | None = None
    clamp_norm_factor: PositiveFloat = 4.0
    kl_factor: NonNegativeFloat = 0.0625
    mom2_adjustment: bool | None = None
    context_template_length_params: list[list[PositiveInt]] = pydantic.Field(
        default_factory=lambda: [[5, 10], [10, 10]]
    )
    context_templates: list[str] | PathText | None = None
    consistent_keys: bool = True
    seed: NonNegativeInt = 0
    second_moment: PathText | None = None

    rewrite_module_tmp: str
    layer_module_tmp: str
    mlp_module_tmp: str
    attn_module_tmp: str
    ln_f_module: str
    lm_head_module: str

    mom2_dataset: str = "wikipedia"
    mom2_n_samples: PositiveInt = 100_000
    mom2_dtype: Literal["float32", "float64"] = "float32"
    stats_dir: PathText = "./data/stats"
    max_length: PositiveInt = 40
    model_parallel: bool = False
    fp16: bool = False

    @pydantic.field_validator("layers")
    @classmethod
    def _distinct_layers(cls, layers: list[int]) -> list[int]:
        if len(set(layers)) < len(layers):
            raise ValueError("must name each layer once")
        return layers

    @pydantic.field_validator("context_template_length_params")
    @classmethod
    def _pairs(cls, pairs: list[list[int]]) -> list[list[int]]:
        if any(len(pair) != 2 for pair in pairs):
            raise ValueError(
                "must be a list of pairs [total length in tokens, number of templates]"
            )
        return pairs

    @pydantic.field_validator("context_templates")
    @classmethod
    def _one_place_holder(cls, templates: list[str] | str | None) -> list[str] | str | None:
        if isinstance(templates, list):
            if not templates:
                raise ValueError("must not be empty; leave the key out to generate templates")
            for template in templates:
                if template.count("{}") != 1:
                    raise ValueError(f"must hold '{{}}' exactly once in each text: {template!r}")
        return templates

    @pydantic.field_validator(
        "rewrite_module_tmp", "layer_module_tmp", "mlp_module_tmp", "attn_module_tmp"
    )
    @classmethod
    def _has_layer(cls, template: str) -> str:
        if template.count("{}") != 1:
            raise ValueError("must hold '{}' exactly once, for the number of the layer")
        return template


def rome_rule(model: PreTrainedModel, architecture: Architecture | None = None) -> ROMEHyperParams:
    """Hyperparameters by architecture and depth, for a model that has no file.

    The layer, with n layers in the model:

    - GPT-2 and GPT-NeoX: ``floor(17 n / 48)``. It gives the published 17 of 48 (GPT-2 XL), 8 of 24
      (GPT-2 medium; both arXiv 2202.05262) and 15 of 44 (GPT-NeoX 20B; code of arXiv 2210.07229).
    - Every other family: ``round(n / 6)``. It gives the published 5 for GPT-J (28 layers; arXiv
      2202.05262) and the 5 of EasyEdit's files for models of 28 and 32 layers, and 5 of 30 for
      SmolLM2-135M. At other depths it is an extrapolation, not a measured optimum.

    Steps and weight decay: 20 and 0.5 for GPT-2, GPT-J and GPT-NeoX (the papers' code), 25 and
    0.001 for the others (EasyEdit's files since Llama). The rest is the same in all of them.

    Args:
        model: The transformers model to edit; its config is read, and its config alone.
        architecture: Where the parts of the model are; None looks its family up.

    Returns:
        The hyperparameters; `mom2_adjustment` is None, so that it follows the statistics.

    Raises:
        ModelError: The family is unknown.
    """
    places = architecture or architecture_of(model)
    depth = _depth(model)
    family = str(model.config.model_type)
    layer = 17 * depth // 48 if family in _GPT2_LIKE else round(depth / 6)
    older = family in _OLDER
    block = f"{places.blocks}.{{}}"
    rule = ROMEHyperParams(
        layers=[min(max(layer, 1), depth - 1)],
        v_num_grad_steps=20 if older else 25,
        v_loss_layer=depth - 1,
        v_weight_decay=0.5 if older else 1e-3,
        rewrite_module_tmp=f"{block}.{places.mlp_output_projection}",
        layer_module_tmp=block,
        mlp_module_tmp=f"{block}.{places.mlp}",
        attn_module_tmp=f"{block}.{places.attention}",
        ln_f_module=places.final_norm or "",
        lm_head_module=places.lm_head,
    )
    return rule.came_from(f"rule for {places.name}, {depth} layers")


def resolve_rome_hparams(
    hparams: str | os.PathLike[str] | Mapping[str, Any] | Hparams | None,
    model: PreTrainedModel,
    architecture: Architecture | None = None,
    preset: str | None = None,
) -> ROMEHyperParams:
    """The hyperparameters for `model`, from whatever form the user gave them in.

    A key is taken from the last of these that has it: the rule, the preset ``default``, a file, a
    preset that is named, a mapping.

    Args:
        hparams: None for the rule; a mapping of keys that override all else; the path of a YAML
            file, or a shipped name such as ``ROME/llama-7b``; or hyperparameters ready made,
            which are returned as they are.
        model: The transformers model to edit.
        architecture: Where the parts of the model are; None looks its family up.
        preset: Name of a preset (`rome.presets`).

    Returns:
        The hyperparameters; `source` says where they came from.

    Raises:
        MissingFileError: There is no such file.
        HparamsError: A value cannot be used, or a layer is not in the model.
        ModelError: Keys are missing, and the family is unknown.
    """
    if isinstance(hparams, Hparams):
        return _ready(hparams, model, preset)
    base = preset_values(DEFAULT if preset is None else preset)
    if hparams is None or isinstance(hparams, Mapping):
        given = {str(key): value for key, value in (hparams or {}).items()}
        resolved = _over_rule({**base, **given}, model, architecture)
        source = f"preset {preset or DEFAULT}; {resolved.source}"
        if given:
            source = f"{source}; given: {', '.join(given)}"
        return resolved.came_from(source)
    path = find_hparams_file(hparams)
    named = {} if preset is None else base
    values = {**base, **read_yaml(path), **named}
    try:
        resolved = _over_rule(values, model, architecture)
    except HparamsError as error:
        raise HparamsError(f"{path}: {error}") from None
    over = "" if preset is None else f"; preset {preset}"
    return resolved.came_from(f"{os.fspath(hparams)}{over}")


def _ready(hparams: Hparams, model: PreTrainedModel, preset: str | None) -> ROMEHyperParams:
    if not isinstance(hparams, ROMEHyperParams):
        raise HparamsError(f"{type(hparams).__name__} is not for ROME; give ROMEHyperParams")
    if preset is not None:
        raise HparamsError(
            f"preset {preset!r} would change hyperparameters that are given ready made; "
            "give a mapping of keys or a file, or leave the preset out"
        )
    _require_layers(hparams, model)
    return hparams


def _over_rule(
    values: dict[str, Any], model: PreTrainedModel, architecture: Architecture | None
) -> ROMEHyperParams:
    """`values`, and the rule's where a key is missing; an unknown family must miss none."""
    needed = [name for name, field in ROMEHyperParams.model_fields.items() if field.is_required()]
    try:
        rule = rome_rule(model, architecture)
    except ModelError:
        if any(name not in values for name in needed):
            raise
        resolved = ROMEHyperParams(**values)
    else:
        resolved = ROMEHyperParams(**{**rule.to_dict(), **values}).came_from(rule.source)
    _require_layers(resolved, model)
    return resolved


def _require_layers(hparams: ROMEHyperParams, model: PreTrainedModel) -> None:
    depth = _depth(model)
    for layer in hparams.layers:
        if layer >= depth:
            raise HparamsError(
                f"layers: {layer} is not in this model of {depth} layers; "
                f"give a layer from 0 to {depth - 1}"
            )


def _depth(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().num_hidden_layers)
