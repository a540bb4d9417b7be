"""What ``generate`` of transformers is asked to do, whatever the model's own settings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@contextlib.contextmanager
def generation_settings(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **settings: Any
) -> Iterator[None]:
    """Puts `settings` in the place of the model's own, which ``generate`` would mix into them.

    Some models ship a repetition penalty there; with it the tokens do not follow the
    probabilities alone.

    Args:
        model: The model; it has its own settings again after the ``with`` block.
        tokenizer: Its tokenizer.
        settings: Arguments of transformers' ``GenerationConfig``. The ids that end a text and
            the pad's are filled in.
    """
    from transformers import GenerationConfig

    ends, pad = end_ids(model, tokenizer), tokenizer.pad_token_id
    if pad is None:
        pad = ends[0] if ends else None
    own = model.generation_config
    model.generation_config = GenerationConfig(
        eos_token_id=ends or None, pad_token_id=pad, **settings
    )
    try:
        yield
    finally:
        model.generation_config = own


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end a text: the model's and the tokenizer's."""
    config = getattr(model, "generation_config", None)
    own = getattr(config, "eos_token_id", None)
    ids = list(own) if isinstance(own, (list, tuple)) else [own]
    return [id_ for id_ in dict.fromkeys([*ids, tokenizer.eos_token_id]) if id_ is not None]
