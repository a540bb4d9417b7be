"""Refusing to learn from what is not finite."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from easyedit_fast.errors import NonFiniteError
from easyedit_fast.processes import gathered


def require_finite(places: Sequence[int], fine: Tensor, what: str) -> None:
    """Names the first record of which something is NaN or infinite, in whatever process it is.

    Args:
        places: The records of this process's rows.
        fine: ``[rows]`` bool.
        what: What of a record it is about, e.g. ``its loss is``.

    Raises:
        NonFiniteError: There is one; it is raised in all processes.
    """
    bad = next((p for p, ok in zip(places, fine.tolist(), strict=True) if not ok), -1)
    found = [int(one) for one in gathered(torch.tensor(bad, device=fine.device)) if one >= 0]
    if found:
        raise NonFiniteError(f"{what} NaN or infinite", record=found[0])
