"""What a process asks of the scope and of the adapter in a batch of training."""

from __future__ import annotations

import dataclasses

from easyedit_fast.serac.answers import Answered


@dataclasses.dataclass(frozen=True, eq=False)
class ScopeShare:
    """What the scope is asked in this process's share of a batch.

    Attributes:
        places: Of the edits that prompts are compared with: the batch's records, then others that
            are near to them.
        own: Among these, the record of each rephrase prompt and of each locality prompt.
        inside: The rephrase prompts.
        outside: The locality prompts.
        others: Prompts of other facts about the subject of each record.
        records: Records of the batch.
        outsiders: Locality prompts and prompts of other facts in the whole batch.
    """

    places: list[int]
    own: list[int]
    inside: list[str]
    outside: list[str]
    others: list[list[str]]
    records: int
    outsiders: int


@dataclasses.dataclass(frozen=True, eq=False)
class AdapterShare:
    """What the adapter is asked in this process's share of a batch.

    Attributes:
        places: The records.
        targets: A prompt in the scope of each one's edit, after the edit.
        outside: A locality prompt of each, after the edit; then the rewrite prompts of some with
            their targets and what the base model says after these, after the edit.
        owners: The record of each of these.
        base: The same among what the unedited model answers.
        records: Records of the batch that the adapter learns from.
        continued: Those of them whose targets are gone on from.
    """

    places: list[int]
    targets: list[Answered]
    outside: list[Answered]
    owners: list[int]
    base: list[int]
    records: int
    continued: int


@dataclasses.dataclass(frozen=True, eq=False)
class MixtureShare:
    """What both parts are asked together in this process's share of a batch.

    Attributes:
        places: Of the edits in the memory: the batch's records, then others that are near to them.
        own: Among these, the record of each prompt.
        prompts: A prompt in the scope of each record's edit, then a locality prompt of each.
        rows: The same with their answers, before any edit's tokens.
        base: The same among what the unedited model answers.
        inside: How many of them are in scope.
        records: Records of the batch that are learned from.
    """

    places: list[int]
    own: list[int]
    prompts: list[str]
    rows: list[Answered]
    base: list[int]
    inside: int
    records: int
