"""Requests in batches, one batch after another into the same model."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

from easyedit_fast.errors import EasyEditFastError, HparamsError, RecordError
from easyedit_fast.requests import EditRequest


@dataclasses.dataclass(frozen=True)
class Batch:
    """Requests that go into the model in one update.

    Attributes:
        requests: The requests.
        first: Place of the first of them in the whole list.
        number: Number of the batch, from 0.
        batches: How many there are.
        total: Requests of all batches.
    """

    requests: Sequence[EditRequest]
    first: int
    number: int
    batches: int
    total: int

    def progress(self, tell: Callable[[int, int], None]) -> Callable[[int, int], None]:
        """Turns what is done of this batch into what is done of the whole list.

        A method may count a request once a layer; so does the sum.
        """

        def told(done: int, of: int) -> None:
            layers = of // len(self.requests)
            tell(self.first * layers + done, self.total * layers)

        return told

    @contextlib.contextmanager
    def naming_errors(self) -> Iterator[None]:
        """Errors of the package then say which batch they are from, where there are several.

        Raises:
            EasyEditFastError: Of the same class. One that names a request names its place in the
                whole list.
        """
        try:
            yield
        except EasyEditFastError as error:
            if self.batches == 1:
                raise
            raise self._named(error) from error

    def _named(self, error: EasyEditFastError) -> EasyEditFastError:
        undone = "; the batches before it were taken out again" if self.number else ""
        if isinstance(error, RecordError) and error.record is not None:
            record = self.first + error.record
            return type(error)(error.reason + undone, record=record, field=error.field)
        place = f"batch {self.number} of {self.batches}, whose request 0 is {self.first} of all"
        return type(error)(f"{place}: {error}{undone}")


def in_batches(requests: Sequence[EditRequest], size: int | None) -> list[Batch]:
    """Splits requests into batches of `size`, in order; None puts all of them into one.

    Raises:
        HparamsError: The size is not positive.
    """
    if size is not None and size < 1:
        raise HparamsError(f"a batch must hold at least 1 request, not {size}")
    width = size or len(requests)
    starts = range(0, len(requests), width)
    return [
        Batch(requests[first : first + width], first, number, len(starts), len(requests))
        for number, first in enumerate(starts)
    ]
