"""Files of records as padded batches of tokens, made ahead by the Rust module."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from easyedit_fast.data import native
from easyedit_fast.data.records import Format
from easyedit_fast.data.tokenizer import RequestTokenizer, TokenBatch

if TYPE_CHECKING:
    from easyedit_fast import _loader


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class SectionBatch:
    """The rows of one section of some records; a record may have none or several.

    Attributes:
        tokens: The rows, r of them: a prompt, one space and its answer; the labels are the
            answer's tokens. Without a known answer a row has no label.
        record: Place of each row's record in its batch, [r] int64.
    """

    tokens: TokenBatch
    record: NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class RequestBatch:
    """All prompts of n records.

    Attributes:
        numbers: Place of each record in its file, [n] int64.
        rewrite: The prompts with their targets: one row a record, with the subject's last token.
        rephrase: The other wordings with the same targets.
        locality: The locality prompts of all keys.
        portability: The portability prompts of all keys.
    """

    numbers: NDArray[np.int64]
    rewrite: SectionBatch
    rephrase: SectionBatch
    locality: SectionBatch
    portability: SectionBatch


def read_batches(
    path: str | os.PathLike[str],
    tokenizer: RequestTokenizer,
    *,
    batch_size: int,
    padding_side: Literal["left", "right"] = "right",
    add_special_tokens: bool = True,
    format: Format = "auto",  # noqa: A002 - as in `read_requests`
    limit: int | None = None,
    offset: int = 0,
) -> Iterator[RequestBatch]:
    """Reads a file of records as padded batches of tokens, for training and the like.

    Tokens, labels and subjects are those of `RequestTokenizer.encode`. A thread of the Rust module
    reads the records and then works ahead, a hundred batches at most; nothing becomes a Python
    object but the arrays.

    Args:
        path: As for `read_requests`.
        tokenizer: The model's tokenizer.
        batch_size: Records in a batch; the last one may have fewer.
        padding_side: Where the pads stand.
        add_special_tokens: Whether the tokenizer adds its special tokens.
        format: As for `read_requests`.
        limit: The most records to read; None for all.
        offset: Number of the first record to read.

    Yields:
        The batches, in the order of the file.

    Raises:
        RequestError: A record cannot be used; it names the record, the field and the cause.
        DataFileError: The file is damaged as a whole; where it is, is named.
        MissingFileError: There is no such file.
        NativeModuleError: The Rust module cannot be used.
        ValueError: An unknown format or side, or a number that is negative or zero.
    """
    batches = native.open_batches(
        path,
        tokenizer.native,
        batch_size=batch_size,
        padding_side=padding_side,
        pad_id=tokenizer.pad_id,
        add_special_tokens=add_special_tokens,
        format=format,
        limit=limit,
        offset=offset,
    )
    return map(_batch, batches)


def _batch(batch: _loader.RequestBatch) -> RequestBatch:
    return RequestBatch(
        batch.numbers,
        _section(batch.rewrite),
        _section(batch.rephrase),
        _section(batch.locality),
        _section(batch.portability),
    )


def _section(section: tuple[_loader.Batch, NDArray[np.int64]]) -> SectionBatch:
    rows, record = section
    return SectionBatch(TokenBatch.of(rows), record)
