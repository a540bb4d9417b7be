"""ROME's hyperparameters: the shipped files, the rule, and how a user's choice is resolved."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import transformers
import yaml

from easyedit_fast.errors import HparamsError, MissingFileError, ModelError
from easyedit_fast.hparams import Hparams, find_hparams_file, shipped_names
from easyedit_fast.models.architectures import Architecture
from easyedit_fast.rome.hparams import ROMEHyperParams, resolve_rome_hparams, rome_rule
from easyedit_fast.rome.presets import PRESETS

PUBLISHED = {  # EasyEdit's file: (layer, last layer named there, steps, weight decay, fp16)
    "baichuan-7b": (5, 31, 25, 1e-3, False),
    "chatglm2-6b": (5, 27, 20, 0.5, False),
    "chatglm4-9b": (5, 31, 25, 1e-3, False),
    "gpt-j-6B": (5, 27, 20, 0.5, False),
    "gpt2-xl": (17, 47, 20, 0.5, False),
    "internlm-7b": (5, 31, 25, 1e-3, False),
    "llama-7b": (5, 31, 25, 1e-3, False),
    "llama3-8b": (5, 31, 25, 1e-3, True),
    "llama3.2-3b": (5, 27, 25, 1e-3, True),
    "mistral-7b": (5, 31, 25, 1e-3, False),
    "qwen-7b": (5, 31, 20, 0.5, False),
    "qwen2-7b": (5, 27, 25, 1e-3, False),
    "qwen2.5-7b": (5, 27, 25, 1e-3, False),
    "qwen3.5-9b": (5, 27, 25, 1e-3, False),
}
KNOWN = {  # published for a family that we know: (config class, layers)
    "gpt-j-6B": ("GPTJConfig", 28),
    "gpt2-xl": ("GPT2Config", 48),
    "llama-7b": ("LlamaConfig", 32),
    "llama3-8b": ("LlamaConfig", 32),
    "llama3.2-3b": ("LlamaConfig", 28),
    "mistral-7b": ("MistralConfig", 32),
    "qwen2-7b": ("Qwen2Config", 28),
    "qwen2.5-7b": ("Qwen2Config", 28),
}
BY_RULE = {
    "smollm2-135m": ("LlamaConfig", 30),
    "smollm2-360m": ("LlamaConfig", 32),
    "smollm2-1.7b": ("LlamaConfig", 24),
    "llama3.1-8b": ("LlamaConfig", 32),
    "llama3.2-1b": ("LlamaConfig", 16),
    "qwen2.5-0.5b": ("Qwen2Config", 24),
    "qwen2.5-1.5b": ("Qwen2Config", 28),
    "qwen2.5-3b": ("Qwen2Config", 36),
    "qwen3-0.6b": ("Qwen3Config", 28),
    "qwen3-1.7b": ("Qwen3Config", 28),
    "qwen3-4b": ("Qwen3Config", 36),
    "qwen3-8b": ("Qwen3Config", 36),
    "gemma-3-1b": ("Gemma3TextConfig", 26),
    "gemma-3-4b": ("Gemma3Config", 34),
}


def model_of(config_class: str, layers: int) -> Any:
    """All that the rule reads of a model: its config."""
    config = getattr(transformers, config_class)()
    config.get_text_config().num_hidden_layers = layers
    return SimpleNamespace(config=config)


def load(name: str) -> ROMEHyperParams:
    return ROMEHyperParams.from_hparams(f"ROME/{name}")


def test_the_files_are_those_of_the_tables() -> None:
    names = {name.removeprefix("ROME/") for name in shipped_names() if name.startswith("ROME/")}
    assert names == {*PUBLISHED, *BY_RULE}


@pytest.mark.parametrize("name", [*PUBLISHED, *BY_RULE])
def test_a_shipped_file_loads_in_silence_and_round_trips(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hparams = load(name)
        assert ROMEHyperParams(**hparams.to_dict()).to_dict() == hparams.to_dict()
    given = yaml.safe_load(find_hparams_file(f"ROME/{name}").read_text())
    assert {key: getattr(hparams, key) for key in given} == given


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_values_are_kept(name: str) -> None:
    hparams = load(name)
    assert (
        hparams.layers[0],
        hparams.v_loss_layer,
        hparams.v_num_grad_steps,
        hparams.v_weight_decay,
        hparams.fp16,
    ) == PUBLISHED[name]
    assert hparams.mom2_adjustment is False
    assert (hparams.v_lr, hparams.clamp_norm_factor, hparams.kl_factor) == (0.5, 4.0, 0.0625)
    assert hparams.context_template_length_params == [[5, 10], [10, 10]]


@pytest.mark.parametrize("name", KNOWN)
def test_the_rule_gives_what_was_published(name: str) -> None:
    hparams, rule = load(name), rome_rule(model_of(*KNOWN[name]))
    apart = {"model_name", "fp16", "mom2_adjustment"}
    if name == "gpt2-xl":  # EasyEdit names the embeddings, which the head is tied to
        assert hparams.lm_head_module == "transformer.wte"
        apart.add("lm_head_module")
    assert differences(hparams, rule) <= apart


@pytest.mark.parametrize("name", BY_RULE)
def test_files_from_the_rule_equal_the_rule(name: str) -> None:
    hparams, rule = load(name), rome_rule(model_of(*BY_RULE[name]))
    assert differences(hparams, rule) == {"model_name"}
    assert hparams.mom2_adjustment is None


def differences(one: Hparams, other: Hparams) -> set[str]:
    left, right = one.to_dict(), other.to_dict()
    return {key for key in left if left[key] != right[key]}


@pytest.mark.parametrize(
    ("config_class", "layers", "edited"),
    [
        ("GPT2Config", 48, 17),
        ("GPT2Config", 24, 8),
        ("GPTNeoXConfig", 44, 15),
        ("GPTJConfig", 28, 5),
        ("LlamaConfig", 32, 5),
        ("LlamaConfig", 2, 1),
        ("LlamaConfig", 1, 0),
    ],
)
def test_the_layer_by_the_rule(config_class: str, layers: int, edited: int) -> None:
    rule = rome_rule(model_of(config_class, layers))
    assert rule.layers == [edited]
    assert rule.v_loss_layer == layers - 1


def test_nothing_given_is_the_rule() -> None:
    hparams = resolve_rome_hparams(None, model_of("LlamaConfig", 30))
    assert hparams.layers == [5]
    assert hparams.source == "preset default; rule for Llama, 30 layers"


def test_a_mapping_overrides_the_rule() -> None:
    given = {"layers": [7], "v_lr": "1e-1", "second_moment": Path("stats.npz")}
    hparams = resolve_rome_hparams(given, model_of("LlamaConfig", 30))
    assert (hparams.layers, hparams.v_lr, hparams.v_loss_layer) == ([7], 0.1, 29)
    assert hparams.second_moment == "stats.npz"
    assert hparams.source == (
        "preset default; rule for Llama, 30 layers; given: layers, v_lr, second_moment"
    )


def test_a_file_goes_before_the_rule_which_fills_what_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("alg_name: ROME\nv_num_grad_steps: 3\n")
    hparams = resolve_rome_hparams(path, model_of("GPT2Config", 12))
    assert (hparams.v_num_grad_steps, hparams.v_weight_decay, hparams.layers) == (3, 0.5, [4])
    assert hparams.source == str(path)
    shipped = resolve_rome_hparams("ROME/llama-7b", model_of("LlamaConfig", 32))
    assert (shipped.mom2_adjustment, shipped.source) == (False, "ROME/llama-7b")


def test_ready_hyperparameters_are_returned_themselves() -> None:
    ready = load("llama-7b")
    assert resolve_rome_hparams(ready, model_of("LlamaConfig", 32)) is ready
    assert ready.source == "ROME/llama-7b"
    with pytest.raises(HparamsError, match="layers: 5 is not in this model of 4 layers"):
        resolve_rome_hparams(ready, model_of("LlamaConfig", 4))
    with pytest.raises(HparamsError, match="Hparams is not for ROME"):
        resolve_rome_hparams(Hparams(), model_of("LlamaConfig", 4))


def test_a_key_comes_from_the_last_source_that_has_it(tmp_path: Path) -> None:
    model = model_of("LlamaConfig", 30)
    path = tmp_path / "mine.yaml"
    path.write_text("context_template_length_params: [[5, 7]]\n")
    over_default = resolve_rome_hparams(path, model)
    assert over_default.context_template_length_params == [[5, 7]]
    assert over_default.v_optimizer == "normalised", "the file does not name it"
    over_file = resolve_rome_hparams(path, model, preset="exact")
    assert over_file.context_template_length_params == [[5, 10], [10, 10]]
    assert over_file.source == f"{path}; preset exact"
    given = {"v_optimizer": "normalised"}
    assert resolve_rome_hparams(given, model, preset="exact").v_optimizer == "normalised"


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_holds_known_keys_that_can_be_used(name: str) -> None:
    hparams = resolve_rome_hparams(None, model_of("LlamaConfig", 30), preset=name.upper())
    values = hparams.to_dict()
    assert {key: values[key] for key in PRESETS[name]} == PRESETS[name]
    assert hparams.source == f"preset {name.upper()}; rule for Llama, 30 layers"


def test_exact_is_what_easyedits_file_says() -> None:
    easyedit = {**load("llama-7b").to_dict(), "consistent_keys": False, "model_name": None}
    exact = resolve_rome_hparams(None, model_of("LlamaConfig", 32), preset="exact").to_dict()
    differs = {key for key in exact if exact[key] != easyedit[key]}
    assert differs <= {"mom2_adjustment", "device"}


def test_a_preset_is_refused_where_it_is_unknown_or_comes_too_late() -> None:
    model = model_of("LlamaConfig", 32)
    with pytest.raises(HparamsError, match="preset 'quick' is unknown; use one of exact, default"):
        resolve_rome_hparams(None, model, preset="quick")
    with pytest.raises(HparamsError, match="given ready made"):
        resolve_rome_hparams(load("llama-7b"), model, preset="fast")


def test_an_unknown_family_needs_a_whole_file_or_an_architecture() -> None:
    strange = model_of("MptConfig", 30)
    with pytest.raises(ModelError, match="mpt"):
        resolve_rome_hparams({"layers": [2]}, strange)
    whole = resolve_rome_hparams("ROME/chatglm2-6b", strange)
    assert whole.rewrite_module_tmp == "transformer.encoder.layers.{}.mlp.dense_4h_to_h"
    architecture = Architecture(
        name="MPT",
        model_types=("mpt",),
        decoder="transformer",
        blocks="transformer.blocks",
        embeddings="transformer.wte",
        final_norm=None,
        lm_head="lm_head",
        attention="attn",
        mlp="ffn",
        mlp_input_projections=("ffn.up_proj",),
        mlp_output_projection="ffn.down_proj",
    )
    ruled = resolve_rome_hparams(None, strange, architecture)
    assert ruled.rewrite_module_tmp == "transformer.blocks.{}.ffn.down_proj"
    assert ruled.ln_f_module == ""
    assert ruled.source == "preset default; rule for MPT, 30 layers"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layers": [99]}, "layers: 99 is not in this model of 30 layers"),
        ({"layers": []}, "layers: List should have at least 1 item"),
        ({"layers": [-1]}, "layers: must be greater than or equal to 0"),
        ({"layers": [5, 5]}, "layers: must name each layer once"),
        ({"layers": 5}, "layers: must be a valid list, got 5"),
        ({"v_lr": 0}, "v_lr: must be greater than 0"),
        ({"v_num_grad_steps": 0}, "v_num_grad_steps: must be greater than or equal to 1"),
        ({"kl_factor": -1}, "kl_factor: must be greater than or equal to 0"),
        ({"mom2_adjustment": "yes"}, "mom2_adjustment: must be a valid boolean"),
        ({"fact_token": "middle"}, "fact_token: must be 'subject_last'"),
        ({"alg_name": "MEND"}, "alg_name: must be 'ROME', got 'MEND'"),
        ({"context_template_length_params": [[5]]}, "must be a list of pairs"),
        ({"context_templates": []}, "context_templates: must not be empty"),
        ({"context_templates": ["no place"]}, r"must hold '\{\}' exactly once"),
        ({"rewrite_module_tmp": "model.layers.5"}, r"must hold '\{\}' exactly once"),
    ],
)
def test_a_value_that_cannot_be_used_is_one_line(
    tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    model = model_of("LlamaConfig", 30)
    with pytest.raises(HparamsError, match=message) as caught:
        resolve_rome_hparams(given, model)
    assert "\n" not in str(caught.value)
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(given))
    with pytest.raises(HparamsError, match=message) as caught:
        resolve_rome_hparams(path, model)
    assert str(caught.value).startswith(f"{path}: ")


def test_an_unknown_key_only_warns() -> None:
    with pytest.warns(UserWarning, match="'v_lrr'.*mean 'v_lr'"):
        resolve_rome_hparams({"v_lrr": 1.0}, model_of("LlamaConfig", 30))


def test_a_missing_file_names_near_ones() -> None:
    with pytest.raises(MissingFileError, match="ROME/llama-7b"):
        resolve_rome_hparams("ROME/llama-7", model_of("LlamaConfig", 30))


def test_a_file_alone_must_name_layers_and_modules() -> None:
    with pytest.raises(HparamsError, match="layers: is missing; v_loss_layer: is missing"):
        ROMEHyperParams()
