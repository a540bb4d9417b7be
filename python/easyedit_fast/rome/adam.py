"""Adam (Kingma & Ba 2015, arXiv 1412.6980) on a batch whose rows may leave.

The optimisers of torch keep their state by parameter, and a row cannot leave a parameter.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-8


@dataclasses.dataclass(eq=False)
class Adam:
    """State of Adam with torch's default betas and epsilon.

    Attributes:
        learning_rate: Step size.
        first: m, the running mean of the gradient, [n, d].
        second: v, the running mean of its square, [n, d].
        steps: Steps taken.
    """

    learning_rate: float
    first: Tensor
    second: Tensor
    steps: int = 0

    @classmethod
    def start(cls, parameters: Tensor, learning_rate: float) -> Adam:
        """The state before the first step, for parameters [n, d]."""
        zeros = torch.zeros_like(parameters, requires_grad=False)
        return cls(learning_rate, zeros, zeros.clone())

    def step(self, gradient: Tensor) -> Tensor:
        """What to add to the parameters, [n, d]."""
        self.steps += 1
        self.first.lerp_(gradient, 1 - _BETA_1)
        self.second.mul_(_BETA_2).addcmul_(gradient, gradient, value=1 - _BETA_2)
        first = self.first / (1 - _BETA_1**self.steps)
        second = self.second / (1 - _BETA_2**self.steps)
        return -self.learning_rate * first / (second.sqrt() + _EPSILON)

    def select(self, rows: Tensor) -> Adam:
        """The state of some rows."""
        return Adam(self.learning_rate, self.first[rows], self.second[rows], self.steps)
