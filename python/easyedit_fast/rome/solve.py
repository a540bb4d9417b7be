"""ROME's closed form, for one request and for many.

A request asks that its value move by δ at its key. Each has two keys: k, of the bare prompt, and
k̄, the mean over the context templates. With the keys of all requests in the columns of
K = [k̄₁ … k̄ₙ k₁ … kₙ], U = C⁻¹ K and R = [δ₁ … δₙ δ₁ … δₙ],

    Δ = R (Uᵀ K + D)⁻¹ Uᵀ,   D = diag(0 … 0, ρ k₁ᵀ C⁻¹ k₁ … ρ kₙᵀ C⁻¹ kₙ).

Among the Δ with Δ k̄ᵢ = δᵢ it has the least tr(Δ C Δᵀ) + Σ ‖Δ kᵢ − δᵢ‖² / (ρ kᵢᵀ C⁻¹ kᵢ): k̄ is held
exactly, k nearly. R repeats n columns, so that Δ has rank n. With the keys k̄ alone, which is
r-ROME's way to use one key throughout (arXiv 2403.07175), it is ROME's Λ (C⁻¹k̄)ᵀ for n = 1 (Meng
et al. 2022, arXiv 2202.05262, equation 2) and EMMET's update for n > 1 (arXiv 2403.14236). The bare
prompt is then often missed, above all where it begins with the subject.

ROME's first code applies C⁻¹ to k̄ and holds the equality at k: with n columns in each matrix,
Δ = R (Ūᵀ K)⁻¹ Ūᵀ, Ū = C⁻¹ [k̄₁ … k̄ₙ], K = [k₁ … kₙ]. Where C⁻¹k̄ and k are nearly orthogonal Δ
grows without bound, and the edit disables the model.
"""

from __future__ import annotations

import dataclasses
import logging
import math

import torch

from easyedit_fast.errors import NonFiniteError
from easyedit_fast.moments import SecondMomentFactor
from easyedit_fast.updates import LowRankUpdate, WeightLayout

logger = logging.getLogger(__name__)

ILL_CONDITIONED = 1e8
"""Condition number above which the equalities of several requests begin to contradict."""

BARE_DAMPING = 0.25
"""ρ. Zero would hold every k too: many requests together then change other texts more."""


@dataclasses.dataclass(frozen=True, eq=False)
class ClosedForm:
    """The solved update.

    Attributes:
        update: Δ, of rank n.
        condition: Condition number of the solved system, its keys scaled to unit length;
            infinity where it is singular.
    """

    update: LowRankUpdate
    condition: float


def solve_update(
    residuals: torch.Tensor,
    bare_keys: torch.Tensor,
    mean_keys: torch.Tensor,
    second_moment: SecondMomentFactor | None,
    weight_layout: WeightLayout,
    *,
    consistent: bool = True,
) -> ClosedForm:
    """Solves for Δ in float64.

    Args:
        residuals: δ, [n, d_out]: by how much each request's value shall move.
        bare_keys: k, [n, d_in].
        mean_keys: k̄, [n, d_in].
        second_moment: Factor of C, or None for C = I.
        weight_layout: Passed on to the update.
        consistent: False gives the mixture of ROME's first code.

    Raises:
        NonFiniteError: A key is zero or not finite, or the update is not finite. The request is
            named, if it can be told.
    """
    bare, mean = bare_keys.double(), mean_keys.double()
    keys = torch.cat([mean, bare]) if consistent else bare
    directions = keys if consistent else mean
    if second_moment is not None:
        directions = second_moment.solve(directions.T).T
    system = directions @ keys.T
    rows, columns = _scales(system, directions, keys, consistent)
    _refuse_unusable(rows, columns, len(bare))
    directions = directions / rows[:, None]
    system = system / rows[:, None] / columns
    system.diagonal()[len(bare) :].mul_(1 + BARE_DAMPING)
    condition = _condition(system, consistent)
    if condition > ILL_CONDITIONED:
        _warn_ill_conditioned(len(bare), condition)
        solved = torch.linalg.pinv(system, rtol=1.0 / ILL_CONDITIONED) @ directions
    else:
        solved = torch.linalg.solve(system, directions)
    # R repeats its columns, so the rows that belong to one request add up.
    input_factor = (solved / columns[:, None]).reshape(-1, *bare.shape).sum(dim=0)
    try:
        update = LowRankUpdate(residuals.T.float(), input_factor.float(), weight_layout)
    except NonFiniteError as error:
        if len(bare) > 1:
            raise
        raise error.at(0) from error
    return ClosedForm(update, condition)


def _condition(system: torch.Tensor, symmetric: bool) -> float:
    """Condition number of ``system [m, m]``; infinity where it is singular."""
    if len(system) == 1:
        return 1.0
    if not symmetric:
        return float(torch.linalg.cond(system))
    least, *_, largest = torch.linalg.eigvalsh(system).tolist()  # ascending
    return largest / least if least > 0 else math.inf


def _warn_ill_conditioned(requests: int, condition: float) -> None:
    logger.warning(
        "%d requests together are ill-conditioned (condition number %.1e): some share almost "
        "the same key, e.g. the same subject at the start of the prompt. Their values are "
        "met in the least-squares sense; word the prompts so that the text up to the subject "
        "differs, or edit them isolated (isolated=True, --isolated)",
        requests,
        condition,
    )


def _scales(
    system: torch.Tensor, directions: torch.Tensor, keys: torch.Tensor, symmetric: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales of the rows and columns of ``system [m, m]``, under which all keys count alike."""
    if symmetric:
        scale = system.diagonal().sqrt()
        return scale, scale
    return directions.norm(dim=1), keys.norm(dim=1)


def _refuse_unusable(rows: torch.Tensor, columns: torch.Tensor, requests: int) -> None:
    """Refuses keys that are zero or not finite, by the scales ``[m]`` that they give."""
    usable = rows.isfinite() & columns.isfinite() & (rows > 0) & (columns > 0)
    places = [place % requests for place in (~usable).nonzero().squeeze(1).tolist()]
    if places:
        raise NonFiniteError(
            "its key is zero or not finite; nothing was changed. Load the model in float32 or "
            "bfloat16, or leave that record out",
            record=min(places),
        )
