"""What a model's config says about how much it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def context_length(model: PreTrainedModel) -> int | None:
    """The most tokens that the model reads, where its config tells."""
    length: int | None = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return length
