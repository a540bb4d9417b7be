r"""How far SERAC's similarities are the probabilities that they say they are.

    python benchmarks/serac_calibration.py --data counterfact-edit.json --edits 500

The first records are in one memory, and their prompts are asked: rephrased ones and questions in
words of their own, which are in the scope of their edit, locality prompts, prompts of other facts
about the same subject and questions about these, which are in none. A prompt's similarity is the
probability that its nearest edit is its own.
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections.abc import Sequence
from pathlib import Path

import report
import torch
from facts import FACTS, known
from serac_scopes import KINDS, asked_of, filled

from easyedit_fast import EditRequest, read_requests
from easyedit_fast.serac.routing import Router
from easyedit_fast.serac.trained import trained_scope

_BOUNDS = (0.0, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0)
_THRESHOLDS = (0.5, 0.3, 0.2, 0.1, 0.05)
_Pairs = list[tuple[float, bool]]


def main() -> None:
    """Parses the options, fills the memory, asks, writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--edits", type=int, default=500)
    parser.add_argument("--archive", type=Path, help="a scope and adapter of ours")
    options = parser.parse_args()
    read = read_requests(options.data, limit=options.edits)
    requests = list({request.prompt: request for request in read}.values())
    router = filled(trained_scope(options.archive), requests)
    prompts = asked_of(requests, len(requests))
    own, others = questions(requests)
    asked = {"questions": own, "questions about other facts": others, **prompts}
    found = {kind: likely(router, pairs) for kind, pairs in asked.items() if pairs}
    command = (
        f"python benchmarks/serac_calibration.py --data {options.data.name} --edits {options.edits}"
    )
    note = f"{len(requests)} edits in the memory."
    write_calibration(found, command, note)
    report.write(
        "serac_thresholds",
        "SERAC: where prompts go, by the threshold",
        command,
        ["threshold", *found],
        [
            [
                f"{threshold:g}",
                *(right(pairs, asked[kind], threshold) for kind, pairs in found.items()),
            ]
            for threshold in _THRESHOLDS
        ],
        [
            (
                f"{note} Rewrite and rephrase prompts and questions about the edited fact: go to "
                "their edit; all others: go to none. Shares, and how many were asked. Of the "
                "other facts some are such that nobody would ask them."
            )
        ],
    )


def write_calibration(found: dict[str, _Pairs], command: str, note: str) -> None:
    """The table of the bins of similarities."""
    kinds = {
        "prompts": [pair for kind in KINDS[1:] for pair in found.get(kind, [])],
        "questions": found["questions"] + found["questions about other facts"],
    }
    rows = [
        [f"{low:g} – {high:g}", *(cell for own in kinds.values() for cell in cells(own, low, high))]
        for low, high in itertools.pairwise(_BOUNDS)
    ]
    report.write(
        "serac_calibration",
        "SERAC: whether similarities are probabilities",
        command,
        ["similarity", *(f"{kind}: {what}" for kind in kinds for what in ("n", "mean", "own"))],
        rows,
        [
            (
                f"{note} Mean: of the similarities; own: the share of prompts whose nearest edit "
                "is theirs."
            ),
            *(f"{summary(kind, own)}" for kind, own in kinds.items()),
        ],
    )


def questions(
    requests: Sequence[EditRequest],
) -> tuple[list[tuple[str, EditRequest | None]], list[tuple[str, EditRequest | None]]]:
    """Questions about edited facts, and about other facts of their subjects."""
    draw = random.Random(0)
    own: list[tuple[str, EditRequest | None]] = []
    others: list[tuple[str, EditRequest | None]] = []
    for request, fact in known(list(requests)):
        other = draw.choice([one for one in FACTS if one.kind == fact.kind and one != fact])
        own.append((fact.about(request.subject), request))
        others.append((other.about(request.subject), None))
    return own, others


def likely(router: Router, asked: Sequence[tuple[str, EditRequest | None]]) -> _Pairs:
    """Each prompt's similarity to its nearest edit, and whether that is its own."""
    prompts = [prompt for prompt, _ in asked]
    with torch.no_grad():
        nearest = router.memory.nearest(router.scope.embed(prompts), 1)
        similarities = router.scope.similarities(prompts, nearest)
    return [
        (own[0], edits[0].edit.request == wanted)
        for own, edits, (_, wanted) in zip(similarities, nearest, asked, strict=True)
    ]


def right(pairs: _Pairs, asked: Sequence[tuple[str, EditRequest | None]], threshold: float) -> str:
    """The share that goes where it should."""
    inside = asked[0][1] is not None
    goes = [one > threshold and own if inside else one <= threshold for one, own in pairs]
    return f"{sum(goes) / len(goes):.3f}, {len(goes)}"


def within(pairs: _Pairs, low: float, high: float) -> _Pairs:
    """Those whose similarity is in a bin; the last bin holds its upper bound."""
    return [pair for pair in pairs if low <= pair[0] < high or pair[0] == high == _BOUNDS[-1]]


def cells(pairs: _Pairs, low: float, high: float) -> list[str]:
    """How many are in a bin, their mean similarity, and the share whose edit is their own."""
    inside = within(pairs, low, high)
    if not inside:
        return ["0", "", ""]
    return [str(len(inside)), *(f"{mean:.3f}" for mean in means(inside))]


def means(pairs: _Pairs) -> tuple[float, float]:
    """Of the similarities, and of what is true."""
    return sum(one for one, _ in pairs) / len(pairs), sum(own for _, own in pairs) / len(pairs)


def summary(kind: str, pairs: _Pairs) -> str:
    """The errors over all prompts of a kind."""
    brier = sum((one - own) ** 2 for one, own in pairs) / len(pairs)
    error = 0.0
    for low, high in itertools.pairwise(_BOUNDS):
        inside = within(pairs, low, high)
        if inside:
            said, true = means(inside)
            error += abs(said - true) * len(inside) / len(pairs)
    return (
        f"Of {len(pairs)} {kind}: expected calibration error {error:.3f}, Brier score {brier:.3f}."
    )


if __name__ == "__main__":
    main()
