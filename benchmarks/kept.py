"""Scores of a long run, kept record by record, so that it goes on where it was ended."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from easyedit_fast import EditRequest


def add(
    path: Path,
    first: int,
    metrics: Sequence[Mapping[str, Any]],
    settings: Mapping[str, Any],
    more: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Adds a line for each of the records from `first` on, with what `more` has of each."""
    lines = [
        json.dumps(
            {**own, **(more[place] if more else {}), "record": first + place, "settings": settings}
        )
        for place, own in enumerate(metrics)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write("\n".join(lines) + "\n")


def read(
    path: Path,
    requests: Sequence[EditRequest],
    group: int = 1,
    settings: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """The records of a file, none where there is none; it is cut after its last whole group.

    They must be of these requests and, unless that is None, of these settings.
    """
    if not path.is_file():
        return []
    lines = path.read_text().splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    if len(whole) < len(requests):
        whole = whole[: len(whole) // group * group]
    if len(whole) < len(lines):
        path.write_text("".join(whole))
    records = [json.loads(line) for line in whole]
    wanted = json.loads(json.dumps(settings))
    for place, (record, request) in enumerate(zip(records, requests, strict=False)):
        own = wanted if settings is None else record["settings"]
        known = (record["record"], record["requested_rewrite"], own)
        if known != (place, request.to_dict(), wanted):
            raise SystemExit(f"error: line {place + 1} of {path} is of another run; move the file")
    return records[: len(requests)]
