"""Small models with random weights, one of every family, for tests."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

VOCABULARY = 128

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA: dict[str, Any] = {
    **_COMMON,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
_GPT2: dict[str, Any] = {**_COMMON, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64}
_WINDOW: dict[str, Any] = {"sliding_window": 4}
_MIXED_LAYERS = ["sliding_attention", "full_attention"] * 2
_OPT: dict[str, Any] = {
    **_COMMON,
    "hidden_size": 32,
    "ffn_dim": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "word_embed_proj_dim": 32,
}
_FALCON: dict[str, Any] = {
    **_COMMON,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}

# Name to (config class, its arguments). Windows are shorter than the tests' rows.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _LLAMA),
    "mistral": ("MistralConfig", {**_LLAMA, **_WINDOW}),
    "qwen2": (
        "Qwen2Config",
        {**_LLAMA, **_WINDOW, "use_sliding_window": True, "max_window_layers": 2},
    ),
    "qwen3": ("Qwen3Config", _LLAMA),
    "gemma2": (
        "Gemma2Config",
        {**_LLAMA, **_WINDOW, "query_pre_attn_scalar": 8, "final_logit_softcapping": 0.5},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {**_LLAMA, **_WINDOW, "query_pre_attn_scalar": 8, "layer_types": _MIXED_LAYERS},
    ),
    "phi3": ("Phi3Config", {**_LLAMA, **_WINDOW}),
    "gpt2": ("GPT2Config", _GPT2),
    "gptj": ("GPTJConfig", {**_GPT2, "rotary_dim": 4}),
    "gpt_neox": (
        "GPTNeoXConfig",
        {
            **_COMMON,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "rotary_pct": 0.5,
        },
    ),
    "opt": ("OPTConfig", _OPT),
    "opt-350m": (
        "OPTConfig",
        {**_OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 16},
    ),
    "falcon": ("FalconConfig", {**_FALCON, "multi_query": True, "parallel_attn": True}),
    "falcon-alibi": (
        "FalconConfig",
        {**_FALCON, "alibi": True, "multi_query": False, "parallel_attn": False, "bias": True},
    ),
    "falcon-new": (
        "FalconConfig",
        {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "bloom": ("BloomConfig", {**_COMMON, "hidden_size": 32, "n_layer": 4, "n_head": 4}),
}


WORDS = (
    "the",
    "capital",
    "of",
    "Peru",
    "Oslo",
    "is",
    "in",
    "city",
    "country",
    "I",
    "think",
    "Bergen",
    "north",
    "people",
    "speak",
    "Lima",
)


def tiny_model(family: str = "llama", *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A causal language model of 4 layers in float32 and evaluation mode.

    Args:
        family: A key of `FAMILIES`.
        seed: Of the random weights.
        changes: Further arguments of the config.
    """
    config_class, arguments = FAMILIES[family]
    config = getattr(transformers, config_class)(**{**arguments, **changes})
    return _randomised(AutoModelForCausalLM.from_config(config), seed)


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words within the vocabulary."""
    vocabulary = {"[UNK]": 3, "[EOS]": 2, **{word: 10 + n for n, word in enumerate(words)}}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", eos_token="[EOS]")


def tiny_gemma3_with_vision(seed: int = 0) -> PreTrainedModel:
    """A Gemma 3 with an image encoder around its language model."""
    text = FAMILIES["gemma3"][1]
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    }
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=100
    )
    return _randomised(transformers.Gemma3ForConditionalGeneration(config), seed)


def tiny_tokenizer(texts: Sequence[str], *, across_words: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE with as many tokens as the small models have, and a BOS of its own.

    Args:
        texts: What it learns its tokens from.
        across_words: Whether a token may hold letters of two words.
    """
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=not across_words
    )
    inner.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    inner.train_from_iterator(
        list(texts) * 3,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=special,
            show_progress=False,
            initial_alphabet=["Ġ", *map(chr, range(ord("!"), ord("~")))],
        ),
    )
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def ending(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A copy that puts its EOS after every text, too."""
    made = copy.deepcopy(tokenizer)
    before = [*tokenizer("")["input_ids"]]
    around = [str(name) for name in made.convert_ids_to_tokens([*before, made.eos_token_id])]
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=" ".join([*around[:-1], "$A", around[-1]]),
        special_tokens=list(zip(around, [*before, made.eos_token_id], strict=True)),
    )
    assert made("the")["input_ids"] == [*tokenizer("the")["input_ids"], made.eos_token_id]
    return made


def _randomised(model: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Weights large enough for every part to show in the logits, biases and norms included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.add_(0.2 * noise)
            else:
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)
    return model.eval()
