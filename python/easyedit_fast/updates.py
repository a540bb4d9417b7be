"""Low-rank updates of weights: what every weight-editing method computes."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, TypeAlias

import torch

from easyedit_fast.errors import NonFiniteError

WeightLayout: TypeAlias = Literal["out_in", "in_out"]


@dataclasses.dataclass(frozen=True, eq=False)
class LowRankUpdate:
    """An update ``output_factor @ input_factor`` [d_out, d_in] of one weight, kept factored.

    Attributes:
        output_factor: [d_out, r] float32.
        input_factor: [r, d_in] float32.
        weight_layout: How the weight itself lies: ``out_in`` for ``nn.Linear`` [d_out, d_in],
            ``in_out`` for the Conv1D of GPT-2 [d_in, d_out].

    Raises:
        ValueError: The factors do not fit each other.
        NonFiniteError: A factor holds NaN or infinity.
    """

    output_factor: torch.Tensor
    input_factor: torch.Tensor
    weight_layout: WeightLayout = "out_in"

    def __post_init__(self) -> None:
        output, input_ = self.output_factor, self.input_factor
        if output.dim() != 2 or input_.dim() != 2 or output.shape[1] != input_.shape[0]:
            raise ValueError(
                f"output_factor [d_out, r] is {list(output.shape)} and input_factor [r, d_in] is "
                f"{list(input_.shape)}; they do not fit"
            )
        for name, factor in (("output_factor", output), ("input_factor", input_)):
            plain = factor.detach().to(torch.float32).contiguous()
            if not torch.isfinite(plain).all():
                raise NonFiniteError(f"{name} holds NaN or infinity; nothing was changed")
            object.__setattr__(self, name, plain)

    @property
    def rank(self) -> int:
        """Number of columns of the output factor."""
        return self.output_factor.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (d_out, d_in) of the update."""
        return self.output_factor.shape[0], self.input_factor.shape[1]

    def dense(self) -> torch.Tensor:
        """The update as one matrix [d_out, d_in] float32."""
        return self.output_factor @ self.input_factor

    def norm(self) -> float:
        """Frobenius norm, from the Gram matrices of the factors (r × r)."""
        output, input_ = self.output_factor.double(), self.input_factor.double()
        squared = ((output.T @ output) * (input_ @ input_.T)).sum().clamp_min(0.0)
        return float(squared.sqrt())


@dataclasses.dataclass(frozen=True)
class ComputedUpdates:
    """What a method computed for a list of requests.

    Attributes:
        updates: Updates by parameter name: one entry for all requests that did not fail
            (together), or one for each of them (isolated); none where all failed.
        details: What the method tells of each request, as plain JSON values; empty for those that
            failed.
    """

    updates: list[dict[str, LowRankUpdate]]
    details: list[dict[str, Any]]
