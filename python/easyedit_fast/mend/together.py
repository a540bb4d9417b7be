"""Many edits in one model: the sum of their updates, or one update that does what each would.

The sum adds to a text what every edit makes of it, so that hundreds of edits drown each other.
MALMEN (Tan et al., arXiv 2311.04661, equation 4) asks instead for the one update S that moves the
output of each edit's own tokens as that edit's update would: with these tokens' inputs in the
columns of U and the moves in those of D,

    S = argmin ‖S U - D‖² + λ ‖S‖² = D (Uᵀ U + λ I)⁻¹ Uᵀ = D Uᵀ (U Uᵀ + λ I)⁻¹.

Here an edit's update is that of all its tokens, and λ is measured by their mean squared norm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from easyedit_fast.errors import NonFiniteError
from easyedit_fast.updates import LowRankUpdate

Updates = Mapping[str, LowRankUpdate]


def summed(edits: Sequence[Updates]) -> dict[str, LowRankUpdate]:
    """The sum of edits, still factored."""
    return {
        name: LowRankUpdate(
            torch.cat([edit[name].output_factor for edit in edits], dim=1),
            torch.cat([edit[name].input_factor for edit in edits], dim=0),
            edits[0][name].weight_layout,
        )
        for name in edits[0]
    }


def least_squares(
    edits: Sequence[Updates], inputs: Sequence[Mapping[str, Tensor]], ridge: float
) -> dict[str, LowRankUpdate]:
    """One update that does at each edit's tokens about what the edit's own would do.

    Args:
        edits: The edits.
        inputs: By weight, the inputs ``[tokens, d_in]`` of each edit's tokens.
        ridge: λ in units of the tokens' mean squared norm.

    Returns:
        By weight, an update whose rank is the number of tokens, or d_in where that is less.

    Raises:
        NonFiniteError: It is not finite.
    """
    return {
        name: _solved([edit[name] for edit in edits], [own[name] for own in inputs], ridge)
        for name in edits[0]
    }


def _solved(
    updates: Sequence[LowRankUpdate], inputs: Sequence[Tensor], ridge: float
) -> LowRankUpdate:
    """The update of one weight, solved in float64 in the smaller of both forms."""
    moves = torch.cat(
        [
            update.output_factor @ (update.input_factor @ own.float().T)
            for update, own in zip(updates, inputs, strict=True)
        ],
        dim=1,
    )
    keys = torch.cat([own.double() for own in inputs])
    tokens, size = keys.shape
    penalty = ridge * keys.square().sum() / tokens
    few = tokens <= size
    system = keys @ keys.T if few else keys.T @ keys
    system.diagonal().add_(penalty)
    factor, failed = torch.linalg.cholesky_ex(system)
    if failed:
        raise NonFiniteError(
            f"the edits' tokens are too much alike, or not finite, for ridge {ridge:g}; raise it"
        )
    if few:
        output, input_ = moves, torch.cholesky_solve(keys, factor)
    else:
        output, input_ = moves @ keys.float(), torch.cholesky_inverse(factor)
    return LowRankUpdate(output, input_.float(), updates[0].weight_layout)
