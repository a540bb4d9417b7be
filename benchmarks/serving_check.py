"""What is asked of a server under load, and whether its answers can be right."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from easyedit_fast import Editor, EditRequest

_KINDS = {"route": 45, "complete": 30, "add": 18, "revert": 7}  # in a hundred
_APART = 24
"""Requests between an edit's addition and what needs it, so that it is there by then."""

_ROUNDING = 1e-4


@dataclasses.dataclass(frozen=True)
class Plan:
    """A request.

    Attributes:
        kind: What is wanted.
        record: Number of the record whose prompt, or edit, it is about.
    """

    kind: Literal["route", "complete", "add", "revert"]
    record: int


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer: its kind, the prompt, when it was asked for and came, and the edit it names."""

    kind: str
    prompt: str
    sent: float
    ended: float
    edit: int | None


@dataclasses.dataclass
class Kept:
    """An edit of the memory: when it was sent and acknowledged, and the same of its reversal."""

    record: int
    id: int
    sent: float
    added: float
    revert_sent: float = math.inf
    revert_ended: float = math.inf

    def reverted(self, sent: float, ended: float) -> None:
        """It was taken out."""
        self.revert_sent, self.revert_ended = sent, ended


def plan(records: int, edits: int, count: int) -> list[Plan]:
    """So many requests, the same each time.

    The first records are in the memory from the start, and those after them are added one by one.
    Half of the prompts are of these, some of them reverted by then, and half of the last records,
    which are never added.
    """
    chosen = random.Random(0)
    kinds = [kind for kind, share in _KINDS.items() for _ in range(share * count // 100)]
    chosen.shuffle(kinds)
    adds = kinds.count("add")
    outside = range(edits + adds, records)
    made: list[Plan] = []
    added: list[tuple[int, int]] = []  # when, and which
    reverted: list[int] = []
    for place, kind in enumerate(kinds):
        there = [record for at, record in added if at + _APART <= place]
        if kind == "revert" and not there:
            kind = "route"
        if kind == "add":
            record = edits + len(added) + len(reverted)
            added.append((place, record))
        elif kind == "revert":
            record = chosen.choice(there)
            added = [one for one in added if one[1] != record]
            reverted.append(record)
        elif chosen.random() < 0.5:
            record = chosen.choice(outside)
        else:
            record = chosen.choice([chosen.randrange(edits), *there[-8:], *reverted[-2:]])
        made.append(Plan(kind, record))  # type: ignore[arg-type]
    return made


def wrong_routes(
    answers: Sequence[Answer], kept: Sequence[Kept], records: Sequence[EditRequest]
) -> list[str]:
    """The answers whose route no state of the memory has that it may have had meanwhile."""
    method: Any = Editor.from_pretrained("demo", method="serac", device="cpu").method
    scope = method.memory.encoder
    rows = scope.embed([records[one.record].prompt for one in kept])
    place = {one.id: number for number, one in enumerate(kept)}
    routed = [one for one in answers if not one.kind.endswith("an edit")]
    faults = []
    for one, query in zip(routed, scope.embed([one.prompt for one in routed]), strict=True):
        parts = (rows - query).view(len(rows), scope.heads, -1)
        distances = parts.square().sum(2).amin(1)
        sure = torch.tensor([e.added <= one.sent and e.revert_sent >= one.ended for e in kept])
        least = min(distances[sure].tolist(), default=math.inf)
        if one.edit is None:
            right = scope.similarity(least) <= 0.5 + _ROUNDING
        else:
            own, edit = float(distances[place[one.edit]]), kept[place[one.edit]]
            possible = edit.sent <= one.ended and edit.revert_ended >= one.sent
            near = scope.similarity(own) > 0.5 - _ROUNDING and own <= least + _ROUNDING
            right = possible and near
        if not right:
            faults.append(f"wrong route: {one}")
    return faults


def lost_edits(
    kept: Mapping[int, Kept],
    records: Sequence[EditRequest],
    exported: Sequence[Mapping[str, Any]],
    listed: Sequence[Mapping[str, Any]],
    count: int,
) -> list[str]:
    """What differs from the acknowledged edits.

    Args:
        kept: The edits by their record.
        records: The records.
        exported: What the server exported in the end.
        listed: What it lists after a restart.
        count: How many it says it has then.
    """
    right = {
        one.id: (records[one.record].prompt, records[one.record].target_new)
        for one in kept.values()
        if math.isinf(one.revert_sent)
    }
    found = {one["id"]: (one["prompt"], one["target_new"]) for one in listed}
    faults = [f"lost edit: {id_}" for id_ in right if found.get(id_) != right[id_]]
    faults += [f"reverted edit is back: {id_}" for id_ in found if id_ not in right]
    before = sorted((one["prompt"], one["target_new"]) for one in exported)
    if before != sorted(right.values()) or count != len(right):
        faults.append(f"{len(before)} edits exported, {count} after a restart, not {len(right)}")
    return faults
