"""Greedy continuations of prompts, in batches with the key-value cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import torch

from easyedit_fast.data import RequestTokenizer
from easyedit_fast.evaluation.isolation import Updates, own_updates
from easyedit_fast.evaluation.rows import sorted_batches
from easyedit_fast.models.generation import end_ids, generation_settings
from easyedit_fast.models.tracing import frozen

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
    ends = end_ids(model, tokenizer)
    for places in sorted_batches(batch.lengths.tolist(), batch_size):
        width = int(batch.lengths[places].max())
        mask = batch.attention_mask[places, -width:]
        edits = None if updates is None else [updates[place] for place in places]
        settings = generation_settings(
            model,
            tokenizer,
            do_sample=False,
            num_beams=1,
            max_new_tokens=max(new_tokens[place] for place in places),
        )
        with torch.no_grad(), frozen(model), own_updates(model, edits), settings:
            tokens = generate(
                input_ids=torch.from_numpy(batch.input_ids[places, -width:]).to(model.device),
                attention_mask=torch.from_numpy(mask).to(model.device),
            )
        for place, row in zip(places, tokens[:, width:].tolist(), strict=True):
            kept = _until_end(row[: new_tokens[place]], ends)
            texts[place] = str(tokenizer.decode(kept, skip_special_tokens=True))
    return texts


def _until_end(tokens: list[int], ends: Sequence[int]) -> list[int]:
    stops = [place for place, token in enumerate(tokens) if token in ends]
    return tokens[: stops[0]] if stops else tokens
