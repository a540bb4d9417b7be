"""Types of the Rust module; `tests/unit/test_data_stub.py` holds them to the module itself."""

import os
from collections.abc import Sequence
from typing import final

import numpy as np
from numpy.typing import NDArray

from easyedit_fast.errors import RequestError

__version__: str

@final
class Record:
    @property
    def number(self) -> int: ...
    @property
    def template(self) -> str: ...
    @property
    def prompt(self) -> str: ...
    @property
    def subject(self) -> str: ...
    @property
    def subject_start(self) -> int: ...
    @property
    def target_new(self) -> str: ...
    @property
    def ground_truth(self) -> str | None: ...
    @property
    def rephrase_prompt(self) -> tuple[str, ...]: ...
    @property
    def locality(self) -> dict[str, tuple[tuple[str, str | None], ...]]: ...
    @property
    def portability(self) -> dict[str, tuple[tuple[str, str | None], ...]]: ...

@final
class ReadResult:
    @property
    def records(self) -> list[Record]: ...
    @property
    def skipped(self) -> list[RequestError]: ...

@final
class Batch:
    @property
    def input_ids(self) -> NDArray[np.int64]: ...
    @property
    def attention_mask(self) -> NDArray[np.int64]: ...
    @property
    def labels(self) -> NDArray[np.int64] | None: ...
    @property
    def subject_last(self) -> NDArray[np.int64] | None: ...
    @property
    def lengths(self) -> NDArray[np.int64]: ...
    @property
    def addresses(self) -> dict[str, int]: ...

@final
class Tokenizer:
    def __new__(cls, json: str, *, split_special_tokens: bool = False) -> Tokenizer: ...
    @property
    def vocab_size(self) -> int: ...
    def encode(
        self,
        texts: Sequence[str],
        *,
        subject_spans: Sequence[tuple[int, int]] | None = None,
        target_spans: Sequence[tuple[int, int]] | None = None,
        padding_side: str = "right",
        pad_id: int = 0,
        add_special_tokens: bool = True,
    ) -> Batch: ...

@final
class Corpus:
    def __new__(
        cls,
        paths: Sequence[str | os.PathLike[str]],
        tokenizer: Tokenizer,
        *,
        block_length: int,
        rows: int,
        field: str = "text",
    ) -> Corpus: ...
    def __iter__(self) -> Corpus: ...
    def __next__(self) -> NDArray[np.int64]: ...

@final
class Packer:
    def __new__(cls, tokenizer: Tokenizer, *, block_length: int) -> Packer: ...
    @property
    def full_blocks(self) -> int: ...
    def push(self, texts: Sequence[str]) -> None: ...
    def take(self, rows: int) -> NDArray[np.int64] | None: ...
    def take_rest(self) -> NDArray[np.int64] | None: ...

@final
class RequestBatch:
    @property
    def numbers(self) -> NDArray[np.int64]: ...
    @property
    def rewrite(self) -> tuple[Batch, NDArray[np.int64]]: ...
    @property
    def rephrase(self) -> tuple[Batch, NDArray[np.int64]]: ...
    @property
    def locality(self) -> tuple[Batch, NDArray[np.int64]]: ...
    @property
    def portability(self) -> tuple[Batch, NDArray[np.int64]]: ...

@final
class RequestBatches:
    def __new__(
        cls,
        path: str | os.PathLike[str],
        tokenizer: Tokenizer,
        *,
        batch_size: int,
        padding_side: str = "right",
        pad_id: int = 0,
        add_special_tokens: bool = True,
        format: str = "auto",
        limit: int | None = None,
        offset: int = 0,
    ) -> RequestBatches: ...
    def __iter__(self) -> RequestBatches: ...
    def __next__(self) -> RequestBatch: ...

def read_records(
    path: str | os.PathLike[str],
    *,
    format: str = "auto",
    limit: int | None = None,
    offset: int = 0,
    on_error: str = "raise",
) -> ReadResult: ...
