"""Which records make each batch, and the batches made ahead."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from easyedit_fast.errors import HparamsError

_Batch = TypeVar("_Batch")


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


@contextlib.contextmanager
def made_ahead(
    make: Callable[[int], _Batch], first: int, last: int
) -> Iterator[Iterator[tuple[int, _Batch]]]:
    """What ``make`` gives for the numbers from `first` to before `last`, each made beforehand.

    A thread makes the next one while the caller uses the one before.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as pool:

        def batches() -> Iterator[tuple[int, _Batch]]:
            coming = pool.submit(make, first) if first < last else None
            for number in range(first, last):
                assert coming is not None
                batch = coming.result()
                coming = pool.submit(make, number + 1) if number + 1 < last else None
                yield number, batch

        yield batches()
