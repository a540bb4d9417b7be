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
    more: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Adds a line for each of the records from `first` on, with what `more` has of each."""
    lines = [
        json.dumps({**own, **(more[place] if more else {}), "record": first + place})
        for place, own in enumerate(metrics)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write("\n".join(lines) + "\n")


def read(path: Path, requests: Sequence[EditRequest]) -> list[dict[str, Any]]:
    """The records of a file, none where there is none; a line that was not ended is cut off."""
    if not path.is_file():
        return []
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    if len(whole) < len(text):
        path.write_text(whole)
    records = [json.loads(line) for line in whole.splitlines()]
    for place, (record, request) in enumerate(zip(records, requests, strict=False)):
        if record["record"] != place or record["requested_rewrite"] != request.to_dict():
            raise SystemExit(f"error: line {place + 1} of {path} is of another data file; move it")
    return records[: len(requests)]
