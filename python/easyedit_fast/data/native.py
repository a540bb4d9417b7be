"""The door to the Rust module: loaded at first use, its failure remembered, its version checked."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import os
from typing import TYPE_CHECKING

from easyedit_fast.errors import NativeModuleError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from easyedit_fast import _loader

_DISTRIBUTION = "easyedit-fast"
_REMEDY = "install the package anew (pip install easyedit-fast), or in a checkout run: make build"


@dataclasses.dataclass(frozen=True, slots=True)
class LoaderStatus:
    """Whether the Rust module can be used.

    Attributes:
        loaded: Whether it is there and fits this package.
        version: Its version, where it could be imported.
        reason: Why it cannot be used, or None.
    """

    loaded: bool
    version: str | None
    reason: str | None


@functools.cache
def loader_status() -> LoaderStatus:
    """Tries to load the Rust module, once a process, and says how that went."""
    try:
        from easyedit_fast import _loader
    except ImportError as error:
        return LoaderStatus(loaded=False, version=None, reason=str(error))
    version = getattr(_loader, "__version__", None)
    if version is None:
        place = getattr(_loader, "__file__", None) or "a folder of that name"
        reason: str | None = f"the module has no version, so it is no build of ours ({place})"
    else:
        reason = version_fault(version, _package_version())
    return LoaderStatus(loaded=reason is None, version=version, reason=reason)


def version_fault(module: str, package: str | None) -> str | None:
    """Says how the versions of module and package differ, or gives None where they fit.

    A checkout that is not installed has no version of its own (None), so nothing can differ.
    """
    if package is None or module == package:
        return None
    return f"the module is of version {module}, the Python package of version {package}"


def read_records(
    path: str | os.PathLike[str],
    *,
    format: str,  # noqa: A002 - the users' word, see `read_requests`
    limit: int | None,
    offset: int,
    on_error: str,
) -> _loader.ReadResult:
    """Reads a file of records; see `easyedit_fast.data.read_requests`."""
    _require()
    from easyedit_fast import _loader

    return _loader.read_records(path, format=format, limit=limit, offset=offset, on_error=on_error)


def open_batches(
    path: str | os.PathLike[str],
    tokenizer: _loader.Tokenizer,
    *,
    batch_size: int,
    padding_side: str,
    pad_id: int,
    add_special_tokens: bool,
    format: str,  # noqa: A002 - the users' word, see `read_batches`
    limit: int | None,
    offset: int,
) -> _loader.RequestBatches:
    """Opens a file of records; see `easyedit_fast.data.read_batches`."""
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("limit", limit, 0),
        ("offset", offset, 0),
    ):
        if value is not None and value < least:
            raise ValueError(f"{name} must be {least} or more, not {value}")
    _require()
    from easyedit_fast import _loader

    return _loader.RequestBatches(
        path,
        tokenizer,
        batch_size=batch_size,
        padding_side=padding_side,
        pad_id=pad_id,
        add_special_tokens=add_special_tokens,
        format=format,
        limit=limit,
        offset=offset,
    )


def open_tokenizer(json: str, *, split_special_tokens: bool) -> _loader.Tokenizer:
    """Builds a tokenizer from the text of its ``tokenizer.json``."""
    _require()
    from easyedit_fast import _loader

    return _loader.Tokenizer(json, split_special_tokens=split_special_tokens)


def open_corpus(
    paths: Sequence[Path],
    tokenizer: _loader.Tokenizer,
    *,
    block_length: int,
    rows: int,
    field: str,
) -> _loader.Corpus:
    """Opens files of texts; see `easyedit_fast.data.corpus.TextFiles`."""
    _require()
    from easyedit_fast import _loader

    return _loader.Corpus(paths, tokenizer, block_length=block_length, rows=rows, field=field)


def open_packer(tokenizer: _loader.Tokenizer, *, block_length: int) -> _loader.Packer:
    """Makes a packer of texts; see `easyedit_fast.data.corpus.HubDataset`."""
    _require()
    from easyedit_fast import _loader

    return _loader.Packer(tokenizer, block_length=block_length)


def _require() -> None:
    status = loader_status()
    if not status.loaded:
        raise NativeModuleError(
            f"the Rust module easyedit_fast._loader cannot be used: {status.reason}; {_REMEDY}"
        )


def _package_version() -> str | None:
    try:
        return importlib.metadata.version(_DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return None
