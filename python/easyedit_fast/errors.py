"""The errors of the package: one line each, which names the cause and the remedy.

Every class also derives from the built-in exception that a caller would expect, so that
``except ValueError`` and ``except FileNotFoundError`` go on to work.
"""

from __future__ import annotations


class EasyEditFastError(Exception):
    """Base of all errors that this package raises on purpose."""


class RequestError(EasyEditFastError, ValueError):
    """An edit request that cannot be used.

    Attributes:
        record: Number of the record in its file or list (from 0), or None for a lone request.
        field: Name of the field at fault, or None.
        reason: What is wrong, and what to do about it.
    """

    def __init__(self, reason: str, *, record: int | None = None, field: str | None = None) -> None:
        self.reason = reason
        self.record = record
        self.field = field
        place = [
            *([f"record {record}"] if record is not None else []),
            *([f"field {field!r}"] if field is not None else []),
        ]
        super().__init__(f"{', '.join(place)}: {reason}" if place else reason)


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


class NonFiniteError(EasyEditFastError, ArithmeticError):
    """A result holds NaN or infinity; the weights were left as they were."""


class OutOfMemoryError(EasyEditFastError, MemoryError):
    """Memory ran out, also with one record at a time; the weights were left as they were.

    Attributes:
        record: Number of the record in its file or list (from 0); None where it is not one
            record's fault.
        reason: What ran out, and what to do about it.
    """

    def __init__(self, reason: str, *, record: int | None = None) -> None:
        self.reason = reason
        self.record = record
        super().__init__(reason if record is None else f"record {record}: {reason}")


class NativeModuleError(EasyEditFastError, ImportError):
    """A native module is missing, cannot be loaded, or is of another version."""


class MissingPackageError(EasyEditFastError, ImportError):
    """An optional package is needed and not installed; the message names the command."""
