"""What ROME knows of one layer before the closed form: keys, and the moves of the values."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from easyedit_fast.failures import numbered
from easyedit_fast.moments import SecondMomentFactor
from easyedit_fast.rome.solve import ClosedForm, solve_update
from easyedit_fast.updates import WeightLayout


@dataclasses.dataclass(frozen=True, eq=False)
class LayerValues:
    """What one layer's closed form needs; the first dimension is the request.

    None of it depends on the second moment, nor on whether the requests are edited together.

    Attributes:
        bare_keys: [n, d_in] float32, k under the first template.
        mean_keys: [n, d_in] float32, the mean of k over the templates.
        deltas: [n, d_out] float32, v* − v.
        losses: Per request, the list of (total, NLL, KL, weight decay) before each step.
        seconds: Time that the optimisation took.
    """

    bare_keys: Tensor
    mean_keys: Tensor
    deltas: Tensor
    losses: list[list[list[float]]]
    seconds: float = 0.0

    @classmethod
    def joined(cls, parts: Sequence[LayerValues]) -> LayerValues:
        """The values of some lists of requests as those of one list; of none, those of none."""
        if not parts:
            return cls(torch.empty(0, 0), torch.empty(0, 0), torch.empty(0, 0), [])
        return cls(
            torch.cat([part.bare_keys for part in parts]),
            torch.cat([part.mean_keys for part in parts]),
            torch.cat([part.deltas for part in parts]),
            [losses for part in parts for losses in part.losses],
            sum(part.seconds for part in parts),
        )

    def to(self, device: torch.device) -> LayerValues:
        """The same with its tensors on another device."""
        return dataclasses.replace(
            self,
            bare_keys=self.bare_keys.to(device),
            mean_keys=self.mean_keys.to(device),
            deltas=self.deltas.to(device),
        )

    def of(self, requests: Sequence[int]) -> LayerValues:
        """The values of some of the requests."""
        places = list(requests)
        return dataclasses.replace(
            self,
            bare_keys=self.bare_keys[places],
            mean_keys=self.mean_keys[places],
            deltas=self.deltas[places],
            losses=[self.losses[place] for place in places],
        )

    def solve(
        self,
        requests: Sequence[int],
        second_moment: SecondMomentFactor | None,
        weight_layout: WeightLayout,
        *,
        consistent: bool,
    ) -> ClosedForm:
        """The one update that makes the edits of some of the requests; see `solve_update`."""
        part = self.of(requests)
        with numbered(requests):
            return solve_update(
                part.deltas,
                part.bare_keys,
                part.mean_keys,
                second_moment,
                weight_layout,
                consistent=consistent,
            )
