"""The errors of the package: one line each, which names the cause and the remedy.

Every class also derives from the built-in exception that a caller would expect, so that
``except ValueError`` and ``except FileNotFoundError`` go on to work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self


class EasyEditFastError(Exception):
    """Base of all errors that this package raises on purpose."""


class RecordError(EasyEditFastError):
    """Base of the errors that may be the fault of one record.

    Attributes:
        record: Number of the record in its file or list (from 0), or None for a lone request.
        field: Name of the field at fault, or None.
        reason: What is wrong, and what to do about it.
        among: Which records it is one of, where there are several lists of them, or None.
    """

    def __init__(
        self,
        reason: str,
        *,
        record: int | None = None,
        field: str | None = None,
        among: str | None = None,
    ) -> None:
        self.reason = reason
        self.record = record
        self.field = field
        self.among = among
        of = "" if among is None else f" of {among}"
        place = [
            *([f"record {record}{of}"] if record is not None else []),
            *([f"field {field!r}"] if field is not None else []),
        ]
        super().__init__(f"{', '.join(place)}: {reason}" if place else reason)

    def at(self, record: int, among: str | None = None) -> Self:
        """The same error under the record's number in another list."""
        return type(self)(self.reason, record=record, field=self.field, among=among or self.among)


class RequestError(RecordError, ValueError):
    """An edit request that cannot be used."""


class DataFileError(EasyEditFastError, ValueError):
    """A data, statistics, edit or hyperparameter file that is damaged or of an unknown form."""


class MissingFileError(EasyEditFastError, FileNotFoundError):
    """A file or folder that was named and is not there."""


class HparamsError(EasyEditFastError, ValueError):
    """A hyperparameter with a wrong type or value."""


class ModelError(EasyEditFastError, ValueError):
    """A model that cannot be used: unknown family, no causal language model, missing layer."""


class EditStateError(EasyEditFastError, RuntimeError):
    """An edit that does not fit the model's state: applied twice, another model, not applied."""


class NonFiniteError(RecordError, ArithmeticError):
    """A result holds NaN or infinity; the weights were left as they were."""


class OutOfMemoryError(RecordError, MemoryError):
    """Memory ran out, also with one record at a time; the weights were left as they were."""


class NativeModuleError(EasyEditFastError, ImportError):
    """A native module is missing, cannot be loaded, or is of another version."""


class MissingPackageError(EasyEditFastError, ImportError):
    """An optional package is needed and not installed; the message names the command."""
