"""Edits with the same prompt, of which the newest holds."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from easyedit_fast.serac.store import StoredEdit


def plain_prompt(edit: StoredEdit) -> str:
    """The prompt with runs of white space as one space: what edits are compared by."""
    return " ".join(edit.request.prompt.split())


def superseded_by(ids: Collection[int], edits: Iterable[StoredEdit]) -> list[int]:
    """The edits that held until some with the same prompts were added.

    Args:
        ids: Of those that were added.
        edits: All edits of the memory, by rising ids.
    """
    found: list[int] = []
    newest: dict[str, int] = {}
    for edit in edits:
        prompt = plain_prompt(edit)
        if edit.id in ids and prompt in newest:
            found.append(newest[prompt])
        newest[prompt] = edit.id
    return found
