"""Many edits in one model: one update of a weight that does at each edit's tokens what it would.

The sum of the edits' updates adds to a text what every edit makes of it, so that many edits drown
each other. MALMEN (Tan et al., arXiv 2311.04661, equation 4) asks instead for the one update S that
moves the output of each edit's own tokens as that edit's update would: with these tokens' inputs in
the columns of U and the moves in those of D,

    S = argmin ‖S U - D‖² + λ ‖S‖² = D (Uᵀ U + λ I)⁻¹ Uᵀ = D Uᵀ (U Uᵀ + λ I)⁻¹.

What the editor learned to do at other wordings is lost in it, for S sees these tokens alone. So
`corrected_sum` begins with the sum Σ, scaled, and mends what it does at the edits' tokens:

    S = argmin ‖S U - D‖² + λ ‖S - √c Σ‖²,   c = ⟨Σ U, D⟩ / ‖Σ U‖².

c, cut to [0, 1], is the scale at which the sum is nearest to D: 1 for a lone edit, whose own update
S then is, and the less the more the edits drown each other. Its root was chosen by the scores of
validation records. Here an edit's tokens are all of its prompt and target, and λ is measured by
their mean squared norm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from easyedit_fast.errors import NonFiniteError
from easyedit_fast.updates import LowRankUpdate

Updates = Mapping[str, LowRankUpdate]


def summed(edits: Sequence[Updates]) -> dict[str, LowRankUpdate]:
    """The sum of edits, still factored."""
    return {name: _sum([edit[name] for edit in edits]) for name in edits[0]}


def least_squares(
    edits: Sequence[Updates], inputs: Sequence[Mapping[str, Tensor]], ridge: float
) -> dict[str, LowRankUpdate]:
    """MALMEN's update: about what each edit's own would do, at that edit's tokens.

    Args:
        edits: The edits.
        inputs: By weight, the inputs ``[tokens, d_in]`` of each edit's tokens.
        ridge: λ in units of the tokens' mean squared norm.

    Returns:
        By weight, an update whose rank is the number of tokens, or the weight's smaller side where
        that is less.

    Raises:
        NonFiniteError: It is not finite.
    """
    return _by_weight(_fitted, edits, inputs, ridge)


def corrected_sum(
    edits: Sequence[Updates], inputs: Sequence[Mapping[str, Tensor]], ridge: float
) -> dict[str, LowRankUpdate]:
    """The edits' scaled sum, corrected by least squares at each edit's tokens.

    Args:
        edits: The edits.
        inputs: By weight, the inputs ``[tokens, d_in]`` of each edit's tokens.
        ridge: λ in units of the tokens' mean squared norm.

    Returns:
        By weight, an update whose rank is twice the number of tokens, or the weight's smaller side
        where that is less.

    Raises:
        NonFiniteError: It is not finite.
    """
    return _by_weight(_corrected, edits, inputs, ridge)


def _by_weight(
    make: Callable[[Sequence[LowRankUpdate], Sequence[Tensor], float], LowRankUpdate],
    edits: Sequence[Updates],
    inputs: Sequence[Mapping[str, Tensor]],
    ridge: float,
) -> dict[str, LowRankUpdate]:
    made: dict[str, LowRankUpdate] = {}
    for name, first in edits[0].items():
        # The modules of a model that is spread are on several devices, the editor on one.
        device = first.input_factor.device
        own = [one[name].to(device, torch.float32) for one in inputs]
        made[name] = _with_least_rank(make([edit[name] for edit in edits], own, ridge))
    return made


def _sum(updates: Sequence[LowRankUpdate]) -> LowRankUpdate:
    return LowRankUpdate(
        torch.cat([update.output_factor for update in updates], dim=1),
        torch.cat([update.input_factor for update in updates], dim=0),
        updates[0].weight_layout,
    )


def _fitted(
    updates: Sequence[LowRankUpdate], inputs: Sequence[Tensor], ridge: float
) -> LowRankUpdate:
    fit = _fit(_moves(updates, inputs), torch.cat(list(inputs)), ridge)
    return LowRankUpdate(*fit, updates[0].weight_layout)


def _corrected(
    updates: Sequence[LowRankUpdate], inputs: Sequence[Tensor], ridge: float
) -> LowRankUpdate:
    wanted, keys = _moves(updates, inputs), torch.cat(list(inputs))
    total = _sum(updates)
    made = _move(total, keys)
    c = (made * wanted).sum() / made.square().sum().clamp_min(torch.finfo(made.dtype).tiny)
    root = c.clamp(0, 1).sqrt()
    output, input_ = _fit(wanted - root * made, keys, ridge)
    return LowRankUpdate(
        torch.cat([root * total.output_factor, output], dim=1),
        torch.cat([total.input_factor, input_]),
        total.weight_layout,
    )


def _moves(updates: Sequence[LowRankUpdate], inputs: Sequence[Tensor]) -> Tensor:
    """D ``[d_out, tokens]``: what each edit's own update adds at its tokens."""
    moves = [_move(update, own) for update, own in zip(updates, inputs, strict=True)]
    return torch.cat(moves, dim=1)


def _move(update: LowRankUpdate, inputs: Tensor) -> Tensor:
    return update.output_factor @ (update.input_factor @ inputs.T)


def _fit(moves: Tensor, inputs: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """The S of least ‖S U - moves‖² + λ ‖S‖² as factors; solved in float64, in the smaller form."""
    keys = inputs.double()
    tokens, size = keys.shape
    few = tokens <= size
    system = keys @ keys.T if few else keys.T @ keys
    system.diagonal().add_(ridge * keys.square().sum() / tokens)
    factor, failed = torch.linalg.cholesky_ex(system)
    if failed:
        raise NonFiniteError(
            f"the edits' tokens are too much alike, or not finite, for ridge {ridge:g}; raise it"
        )
    if few:
        return moves, torch.cholesky_solve(keys, factor).float()
    return moves @ inputs, torch.cholesky_inverse(factor).float()


def _with_least_rank(update: LowRankUpdate) -> LowRankUpdate:
    """The same, of no higher rank than its smaller side."""
    output_size, input_size = update.shape
    if update.rank <= min(output_size, input_size):
        return update
    dense = update.dense()
    one = torch.eye(min(output_size, input_size), dtype=dense.dtype, device=dense.device)
    factors = (one, dense) if output_size < input_size else (dense, one)
    return LowRankUpdate(*factors, update.weight_layout)
