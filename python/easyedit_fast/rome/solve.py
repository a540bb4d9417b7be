"""ROME's closed form, for one request and for many.

With equality keys K [d_in, n], solve keys K̄ [d_in, n] and U = C⁻¹ K̄, the update is

    Δ = R (Uᵀ K)⁻¹ Uᵀ,   R = V* − W K,

so that (W + Δ) K = V* holds for every request. For n = 1 this is ROME's Λ (C⁻¹k)ᵀ
(Meng et al. 2022, arXiv 2202.05262, equation 2); for K̄ = K it is EMMET's (arXiv 2403.14236).
K̄ ≠ K, the averaged key in U and the bare one in the equality, is the behaviour of ROME's first
code, which r-ROME (arXiv 2403.07175) mends.
"""

from __future__ import annotations

import dataclasses
import logging

import torch

from easyedit_fast.errors import NonFiniteError
from easyedit_fast.moments import SecondMomentFactor
from easyedit_fast.updates import LowRankUpdate, WeightLayout

logger = logging.getLogger(__name__)

ILL_CONDITIONED = 1e8
"""Condition number of Uᵀ K above which equalities of several requests begin to contradict."""


@dataclasses.dataclass(frozen=True, eq=False)
class ClosedForm:
    """The solved update.

    Attributes:
        update: Δ, of rank n.
        condition: Condition number of Uᵀ K with unit columns; 1.0 for one request, infinity
            where it is singular.
    """

    update: LowRankUpdate
    condition: float


def solve_update(
    residuals: torch.Tensor,
    equality_keys: torch.Tensor,
    solve_keys: torch.Tensor,
    second_moment: SecondMomentFactor | None,
    weight_layout: WeightLayout,
    *,
    first_request: int = 0,
) -> ClosedForm:
    """Solves for Δ in float64.

    Args:
        residuals: Rᵀ, [n, d_out]: what each key's value lacks, v* − W k.
        equality_keys: Kᵀ, [n, d_in].
        solve_keys: K̄ᵀ, [n, d_in].
        second_moment: Factor of C, or None for C = I.
        weight_layout: Passed on to the update.
        first_request: Number of the first of the n requests, for messages.

    Raises:
        NonFiniteError: A key is zero, or a key or a residual is not finite.
    """
    keys, directions = equality_keys.double(), solve_keys.double()
    if second_moment is not None:
        directions = second_moment.solve(directions.T).T
    directions = directions / directions.norm(dim=1, keepdim=True)
    scales = keys.norm(dim=1)
    _refuse_unusable(directions, scales, first_request)
    scaled = directions @ keys.T / scales
    condition = float(torch.linalg.cond(scaled)) if len(scaled) > 1 else 1.0
    target = residuals.double() / scales[:, None]
    if condition > ILL_CONDITIONED:
        logger.warning(
            "%d requests together are ill-conditioned (condition number %.1e): some share almost "
            "the same key, e.g. the same subject at the start of the prompt. Their values are "
            "met in the least-squares sense; word the prompts so that the text up to the subject "
            "differs, or edit with isolated=True",
            len(scaled),
            condition,
        )
        output = torch.linalg.pinv(scaled.T, rtol=1.0 / ILL_CONDITIONED) @ target
    else:
        output = torch.linalg.solve(scaled.T, target)
    return ClosedForm(LowRankUpdate(output.T.float(), directions.float(), weight_layout), condition)


def _refuse_unusable(directions: torch.Tensor, scales: torch.Tensor, first_request: int) -> None:
    """Refuses keys that are zero or not finite, by ``directions [n, d_in]`` and norms ``[n]``."""
    usable = directions.isfinite().all(dim=1) & scales.isfinite() & (scales > 0)
    bad = [str(first_request + place) for place in (~usable).nonzero().squeeze(1).tolist()]
    if bad:
        raise NonFiniteError(
            f"the key of request {', '.join(bad)} is zero or not finite; nothing was changed. "
            "Load the model in float32 or bfloat16, or leave out what is named"
        )
