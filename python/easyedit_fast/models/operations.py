"""How many operations a pass over the tail takes, counted from the shapes of the weights.

A product with a weight of p numbers takes 2 p operations a token (a multiplication and an addition
each), and as many again on the way back, where the gradient of the input alone is wanted and the
weights have none. Attention adds the products of queries with keys and of weights with values.
Norms, activations and softmax are left out: they take some thousandths of it.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from torch import nn

from easyedit_fast.models.architectures import Architecture, block_list

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclasses.dataclass(frozen=True, slots=True)
class TailOperations:
    """What a token costs in the edited layer and above.

    Attributes:
        edited_block: Numbers in the matrices of the edited block.
        later_blocks: Numbers in the matrices of all blocks above it.
        blocks: How many these are, the edited one included.
        attention: Heads times head size: length of all queries of a token.
        head: Numbers in the matrix of the output head.
    """

    edited_block: int
    later_blocks: int
    blocks: int
    attention: int
    head: int

    @classmethod
    def of(cls, model: PreTrainedModel, architecture: Architecture, layer: int) -> TailOperations:
        """Counts the weights of a model whose layer `layer` (from 0) is edited.

        Args:
            model: The model; a block's matrices are all taken to act on every token, which does
                not hold for a mixture of experts.
            architecture: Where its parts are.
            layer: The edited layer.
        """
        config = model.config.get_text_config()
        heads = int(config.num_attention_heads)
        head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
        sizes = [_matrix_numbers(part) for part in block_list(model, architecture)[layer:]]
        return cls(
            edited_block=sizes[0],
            later_blocks=sum(sizes[1:]),
            blocks=len(sizes),
            attention=heads * int(head_size),
            head=_matrix_numbers(model.get_output_embeddings()),
        )

    def forward(self, tokens: int, columns: int) -> int:
        """Operations of the blocks' forward pass.

        Args:
            tokens: Tokens that are run, in all rows.
            columns: Columns that each of them attends to, masked or not.
        """
        products = tokens * (self.edited_block + self.later_blocks)
        return 2 * products + 4 * self.blocks * tokens * columns * self.attention

    def backward(self, tokens: int, columns: int) -> int:
        """Operations of the blocks' backward pass; as `forward`.

        The gradient ends at the edited block's output: of that block nothing is run.
        """
        products = tokens * self.later_blocks
        return 2 * products + 8 * (self.blocks - 1) * tokens * columns * self.attention

    def head_pass(self, places: int) -> int:
        """Operations of the head where logits are read, one way; the way back takes as many."""
        return 2 * places * self.head


def _matrix_numbers(part: nn.Module) -> int:
    return sum(weight.numel() for weight in part.parameters() if weight.dim() == 2)
