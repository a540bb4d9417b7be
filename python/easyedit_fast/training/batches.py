"""Which records make each batch."""

from __future__ import annotations

import numpy as np

from easyedit_fast.errors import HparamsError


class BatchOrder:
    """The records of each iteration: all of them in a new order each epoch.

    It depends on the seed and the iteration alone, so that a run can go on anywhere. What is left
    of an epoch after its last whole batch is not used in it.

    Attributes:
        batches: Batches of an epoch.
    """

    def __init__(self, records: int, batch_size: int, seed: int) -> None:
        """Takes the number of records.

        Raises:
            HparamsError: They are fewer than a batch.
        """
        if records < batch_size:
            raise HparamsError(
                f"there are {records} records for batches of {batch_size}; give more of them, or "
                f"batch_size={records}"
            )
        self.batches = records // batch_size
        self._records, self._batch_size, self._seed = records, batch_size, seed

    def places(self, iteration: int) -> list[int]:
        """Places of the records of an iteration, from 0."""
        epoch, number = divmod(iteration, self.batches)
        order = draws(self._seed, "epoch", epoch).permutation(self._records)
        return [int(place) for place in order[number * self._batch_size :][: self._batch_size]]


def draws(seed: int, purpose: str, number: int) -> np.random.Generator:
    """Random numbers of their own for each purpose and number."""
    return np.random.default_rng([seed, *purpose.encode(), number])
