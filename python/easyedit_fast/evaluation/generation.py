"""Greedy continuations of prompts, in batches with the key-value cache."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, cast

import torch

from easyedit_fast.data import RequestTokenizer
from easyedit_fast.evaluation.isolation import Updates, own_updates
from easyedit_fast.evaluation.rows import sorted_batches
from easyedit_fast.models.tracing import frozen

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase


def continue_greedily(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    new_tokens: Sequence[int],
    *,
    updates: Sequence[Updates] | None = None,
    batch_size: int = 64,
) -> list[str]:
    """Continues each prompt with the most probable tokens, whatever the model's own settings.

    A row's text depends on the row alone, not on the rows that share its batch.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        prompts: The n prompts.
        new_tokens: Tokens at most, for each prompt; the text ends earlier at an end-of-sequence.
        updates: One edit a prompt, or None.
        batch_size: Prompts in one call of ``generate``.

    Returns:
        The n continuations, without the prompts and without special tokens.
    """
    batch = RequestTokenizer.from_transformers(tokenizer).encode(prompts, padding_side="left")
    generate = cast("Callable[..., torch.Tensor]", model.generate)
    texts = [""] * len(prompts)
    ends = _end_ids(model, tokenizer)
    for places in sorted_batches(batch.lengths.tolist(), batch_size):
        width = int(batch.lengths[places].max())
        mask = batch.attention_mask[places, -width:]
        edits = None if updates is None else [updates[place] for place in places]
        config = _greedy(max(new_tokens[place] for place in places), tokenizer, ends)
        with torch.no_grad(), frozen(model), own_updates(model, edits), _settings(model, config):
            tokens = generate(
                input_ids=torch.from_numpy(batch.input_ids[places, -width:]).to(model.device),
                attention_mask=torch.from_numpy(mask).to(model.device),
            )
        for place, row in zip(places, tokens[:, width:].tolist(), strict=True):
            kept = _until_end(row[: new_tokens[place]], ends)
            texts[place] = str(tokenizer.decode(kept, skip_special_tokens=True))
    return texts


def _greedy(
    new_tokens: int, tokenizer: PreTrainedTokenizerBase, ends: Sequence[int]
) -> GenerationConfig:
    from transformers import GenerationConfig

    pad = tokenizer.pad_token_id
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=new_tokens,
        eos_token_id=list(ends) or None,
        pad_token_id=ends[0] if pad is None else pad,
    )


@contextlib.contextmanager
def _settings(model: PreTrainedModel, config: GenerationConfig) -> Iterator[None]:
    """Puts `config` in the place of the model's own, which ``generate`` would mix into it.

    Some models ship a repetition penalty there; with it the argmax is not what is generated.
    """
    own = model.generation_config
    model.generation_config = config
    try:
        yield
    finally:
        model.generation_config = own


def _end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end a text: the model's and the tokenizer's."""
    config = getattr(model, "generation_config", None)
    own = getattr(config, "eos_token_id", None)
    ids = list(own) if isinstance(own, (list, tuple)) else [own]
    return [id_ for id_ in dict.fromkeys([*ids, tokenizer.eos_token_id]) if id_ is not None]


def _until_end(tokens: list[int], ends: Sequence[int]) -> list[int]:
    stops = [place for place, token in enumerate(tokens) if token in ends]
    return tokens[: stops[0]] if stops else tokens
