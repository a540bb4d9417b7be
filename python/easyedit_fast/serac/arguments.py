"""Arguments of ``forward`` and ``generate``: their names, and those that SERAC refuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import GenerationConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from easyedit_fast.errors import ModelError

CACHE_NAMES = ("cache", "past_key_values")
"""Of releases of transformers, new and old."""
CACHE = CACHE_NAMES[not hasattr(CausalLMOutputWithPast, "cache")]
"""Of the one that is installed."""
OF_THE_ROWS = ("input_ids", "attention_mask", "position_ids", "cache_position", "token_type_ids")
"""Of the user's rows, or of what the model makes up itself; a pass with contexts has its own."""

_REFUSED = {
    "assistant_model": "another model's drafts",
    "prompt_lookup_num_tokens": "drafts from the prompt",
    "assistant_early_exit": "drafts of early layers",
    "use_mtp": "drafts",
    "dola_layers": "DoLa",
    "penalty_alpha": "contrastive search",
    "guidance_scale": "guidance by a second pass",
    "custom_generate": "another generation loop",
    "prefill_chunk_size": "a prompt in chunks",
    "token_healing": "healing of the prompt's end",
    "cache_implementation": "a cache of fixed size",
    "past_key_values": "a cache of earlier tokens",
    "cache": "a cache of earlier tokens",
}
_GROWING_CACHES = ("dynamic", "offloaded", "quantized")


def cache_of(given: dict[str, Any]) -> Any:
    """The cache among arguments, whatever its name; None: there is none."""
    return next((given[name] for name in CACHE_NAMES if given.get(name) is not None), None)


def setting(name: str, kwargs: dict[str, Any], configs: Sequence[GenerationConfig | None]) -> Any:
    """What holds in ``generate``: an argument, or else what the first config says."""
    values = (getattr(config, name, None) for config in configs)
    return kwargs.get(name, next((value for value in values if value is not None), None))


def fixed_cache(config: GenerationConfig) -> str | None:
    """The cache of fixed size that the settings name, if they do."""
    name: str | None = getattr(config, "cache_implementation", None)
    return None if name in _GROWING_CACHES else name


def refuse_unsupported(
    kwargs: dict[str, Any], given: GenerationConfig | None, own: GenerationConfig
) -> None:
    """Checks that SERAC can generate as it is told.

    Args:
        kwargs: Arguments of ``generate``.
        given: Settings among them.
        own: The model's settings.

    Raises:
        ModelError: It cannot; the argument is named.
    """
    if kwargs.get("inputs_embeds") is not None:
        raise ModelError("SERAC routes by the prompt's tokens; pass input_ids, not inputs_embeds")
    fixed = fixed_cache(own)  # Gemma's own settings name such a cache; it is replaced
    for name, what in _REFUSED.items():
        unused = (None, False, 0, *([1] if name == "guidance_scale" else _GROWING_CACHES), fixed)
        if setting(name, kwargs, [given, own]) not in unused:
            raise ModelError(
                f"SERAC cannot generate with {what}; leave {name} out, or use model.base, which "
                "knows no edits"
            )
