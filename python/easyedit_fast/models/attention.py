"""Attention whose query heads share keys, without a copy of the keys for every query head.

With a mask, transformers repeats keys and values for each query head of a group and leaves the
rest to torch; on the CPU these copies and their gradients cost as much as the attention. Torch's
own kernel for the CPU reads shared keys where they are, from 2.9 on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_CHOICE = "_attn_implementation"  # of a configuration; blocks read it in every call
_NAME = "easyedit_fast_shared_keys"


def sharing_configs(blocks: Iterable[nn.Module]) -> list[Any]:
    """The configurations of those blocks whose query heads share keys, for `shared_keys`.

    Args:
        blocks: Blocks of a decoder. Those that do not use transformers' SDPA are left out, and all
            are with an older torch.
    """
    if torch.__version__ < "2.9":  # compared as versions
        return []
    found = {
        id(part.config): part.config
        for block in blocks
        for part in block.modules()
        if getattr(part, "num_key_value_groups", 1) > 1
        and getattr(getattr(part, "config", None), _CHOICE, None) == "sdpa"
        # Those of others would change with it.
        and not getattr(part.config, "sub_configs", None)
    }
    return list(found.values())


@contextlib.contextmanager
def shared_keys(configs: Sequence[Any]) -> Iterator[None]:
    """Blocks of these configurations read shared keys where they are, in the ``with`` block.

    What differs is a name in the configuration; a model that has the same one computes the same in
    the meantime.
    """
    try:
        for config in configs:
            setattr(config, _CHOICE, _NAME)
        yield
    finally:
        for config in configs:
            setattr(config, _CHOICE, "sdpa")


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """What ``sdpa_attention_forward`` of transformers gives, and takes.

    Args:
        module: The attention module.
        query: ``[rows, heads, T, head size]``.
        key: ``[rows, shared heads, L, head size]``.
        value: ``[rows, shared heads, L, head size]``.
        attention_mask: ``[rows, 1 or heads, T, L]``, added to the scores, or what may be attended
            to; None where the model leaves it out.
        dropout: Probability; the blocks are in evaluation mode.
        scaling: Of the scores.
        kwargs: What else the model says, for the cases that are left to transformers.
    """
    special = kwargs.get("position_bias") is not None or kwargs.get("softcap") is not None
    sizes = {query.shape[-1], key.shape[-1], value.shape[-1]}
    if query.device.type != "cpu" or attention_mask is None or special or len(sizes) > 1:
        result: tuple[Tensor, Tensor | None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return result
    output = scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=attention_mask[..., : key.shape[-2]],
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=True,
    )
    return output.transpose(1, 2).contiguous(), None


AttentionInterface.register(_NAME, _attend)
AttentionMaskInterface.register(_NAME, sdpa_mask)
