"""The second moment of a layer's keys, and its Cholesky factor."""

from __future__ import annotations

import dataclasses
import logging

import torch

from easyedit_fast.errors import DataFileError

logger = logging.getLogger(__name__)

_DAMPING_START = 1e-6
_DAMPING_END = 1e-1


@dataclasses.dataclass(frozen=True, eq=False)
class SecondMoment:
    """C = E[k kᵀ] over the keys k of one layer.

    Attributes:
        matrix: [d_in, d_in] float64, symmetric: the mean of k kᵀ.
        count: Number of tokens in the mean.
        source: Where it came from, for messages.
    """

    matrix: torch.Tensor
    count: int
    source: str = ""

    def factorise(self) -> SecondMomentFactor:
        """The Cholesky factor of C, in float64.

        Statistics of fewer tokens than d_in (or of float32 sums) can be singular. C then gets a
        multiple of its mean diagonal added, the smallest power of ten that helps, and that is
        logged.

        Raises:
            DataFileError: C is not positive definite even so.
        """
        factor, info = torch.linalg.cholesky_ex(self.matrix)
        scale = self.matrix.diagonal().mean()
        damping = _DAMPING_START
        while info.item() and damping <= _DAMPING_END:
            damped = self.matrix + damping * scale * torch.eye(
                len(self.matrix), dtype=self.matrix.dtype, device=self.matrix.device
            )
            factor, info = torch.linalg.cholesky_ex(damped)
            if not info.item():
                logger.warning(
                    "second moment %s (%d tokens for %d dimensions) is singular; added %.0e of "
                    "its mean diagonal. Collect more tokens for exact results",
                    self.source,
                    self.count,
                    len(self.matrix),
                    damping,
                )
            damping *= 10
        if info.item():
            raise DataFileError(
                f"{self.source or 'the second moment'} is not positive definite; collect it again"
            )
        return SecondMomentFactor(factor)


@dataclasses.dataclass(frozen=True, eq=False)
class SecondMomentFactor:
    """C = L Lᵀ by its lower Cholesky factor.

    Attributes:
        lower: L, [d_in, d_in] float64.
    """

    lower: torch.Tensor

    def solve(self, keys: torch.Tensor) -> torch.Tensor:
        """C⁻¹ keys, for keys [d_in, n], in float64."""
        return torch.cholesky_solve(keys.to(self.lower), self.lower)
