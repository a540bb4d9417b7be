"""Edit requests from JSON and JSONL files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from easyedit_fast.data import native
from easyedit_fast.errors import RequestError
from easyedit_fast.requests import EditRequest, Probe

if TYPE_CHECKING:
    from easyedit_fast import _loader

Format = Literal["auto", "requests", "counterfact", "zsre", "knowedit"]


class RequestList(list[EditRequest]):
    """The requests of a file.

    Attributes:
        skipped: What was wrong with the records that were left out (``on_error="skip"``).
        records: Number of each request's record in the file, from 0.
    """

    def __init__(
        self,
        requests: Iterable[EditRequest] = (),
        skipped: Iterable[RequestError] = (),
        offset: int = 0,
    ) -> None:
        super().__init__(requests)
        self.skipped = list(skipped)
        left_out = {error.record for error in self.skipped}
        looked_at = range(offset, offset + len(self) + len(self.skipped))
        self.records = [number for number in looked_at if number not in left_out]


def read_requests(
    path: str | os.PathLike[str],
    *,
    format: Format = "auto",  # noqa: A002 - what users call it
    limit: int | None = None,
    offset: int = 0,
    on_error: Literal["raise", "skip"] = "raise",
) -> RequestList:
    """Reads edit requests from a JSON array, a JSON object or JSON lines.

    Four forms are known. ``requests``: `EditRequest`'s fields, EasyEdit's locality and
    portability, and EasyEdit's flat ``locality_prompt`` and ``locality_ground_truth``.
    ``counterfact`` (Meng et al., 2022): nested as published, or EasyEdit's flat form. ``zsre``:
    MEND's form (Mitchell et al., 2022) with EasyEdit's ``portability``. The prompts beside the
    edit come under EasyEdit's keys: locality ``neighborhood``, zsRE's portability ``one_hop``.
    ``knowedit`` (Zhang et al., 2024): its Wiki, zsRE and WikiBio files, with their own keys; of a
    probe's answers the first is taken.

    The file is mapped into memory; no other process may cut it short meanwhile.

    Args:
        path: A ``.json`` or ``.jsonl`` file in UTF-8.
        format: The form of its records; ``auto`` goes by the keys of the first telling record.
        limit: The most records to look at, bad ones counted; None for all.
        offset: Number of the first record to look at.
        on_error: ``raise`` at the first bad record, or ``skip`` such records and keep their
            errors.

    Raises:
        RequestError: A record cannot be used; it names the record, the field and the cause.
        DataFileError: The file is damaged as a whole; where it is, is named.
        MissingFileError: There is no such file.
        NativeModuleError: The Rust module cannot be used.
        ValueError: An unknown format or on_error, or a negative limit or offset.
    """
    for name, value in (("limit", limit), ("offset", offset)):
        if value is not None and value < 0:
            raise ValueError(f"{name} must not be negative, not {value}")
    read = native.read_records(path, format=format, limit=limit, offset=offset, on_error=on_error)
    return RequestList((_request(record) for record in read.records), read.skipped, offset)


def _request(record: _loader.Record) -> EditRequest:
    # The template, not the filled prompt: which occurrence of the subject is edited depends on it.
    return EditRequest(
        prompt=record.template,
        subject=record.subject,
        target_new=record.target_new,
        ground_truth=record.ground_truth,
        rephrase_prompt=record.rephrase_prompt,
        locality=_section(record.locality),
        portability=_section(record.portability),
    )


def _section(
    section: dict[str, tuple[tuple[str, str | None], ...]],
) -> dict[str, tuple[Probe, ...]]:
    return {key: tuple(Probe(*pair) for pair in pairs) for key, pairs in section.items()}
