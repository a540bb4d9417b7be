"""When to stop training, and which checkpoint is the best."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

_HIGHER_IS_BETTER = ("acc", "prob", "log_prob")


@dataclasses.dataclass
class EarlyStopping:
    """Follows one value from validation to validation.

    Attributes:
        key: Name of the value, e.g. ``edit/acc_val`` or ``loss/total_edit_val``. Accuracies and
            probabilities are better the higher, all else the lower.
        patience: Steps without a better value after which training stops.
        best: The best value so far; None before the first.
        best_step: The step that it is of.
    """

    key: str
    patience: int
    best: float | None = None
    best_step: int = 0

    def update(self, step: int, values: Mapping[str, float]) -> bool:
        """Takes the values of a validation in, and says whether they are the best so far.

        A value that is not finite is never the best.
        """
        value = values[self.key]
        if not math.isfinite(value) or (self.best is not None and not self._better(value)):
            return False
        self.best, self.best_step = value, step
        return True

    def is_over(self, step: int) -> bool:
        """Whether the patience is at its end."""
        return step - self.best_step >= self.patience

    def _better(self, value: float) -> bool:
        assert self.best is not None
        parts = {part.removesuffix("_val") for part in self.key.split("/")}
        return value < self.best if parts.isdisjoint(_HIGHER_IS_BETTER) else value > self.best
