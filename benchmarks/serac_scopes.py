r"""Where the prompts of records go: SERAC's scope as an embedding, and as a cross-encoder.

    python benchmarks/serac_scopes.py --scope embedding=FILE --scope cross-encoder=FILE \
        --memory counterfact-val.json:1500 --memory counterfact-edit.json:500 --records 200

A scope is an editor's file. A memory holds the first so many records of a file; the prompts of the
first ``--records`` of these are asked: rewrite, rephrase and locality prompts, and prompts of other
facts about the same subject, made of its name and another record's wording as training makes them.
Of a cross-encoder what it makes of fewer candidates is told too. No language model takes part.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import report
import torch
from timing import interleaved, spread

from easyedit_fast import EditRequest, read_requests
from easyedit_fast.metrics import mean_interval
from easyedit_fast.serac.editor_files import read_editor
from easyedit_fast.serac.hparams import SERACHparams
from easyedit_fast.serac.memory import EditMemory
from easyedit_fast.serac.negatives import Negatives
from easyedit_fast.serac.routing import Router
from easyedit_fast.serac.scope import Scope
from easyedit_fast.serac.scopes import AnyScope, make_scope
from easyedit_fast.serac.store import SqliteStore
from easyedit_fast.serac.training_data import unfair_pairs
from easyedit_fast.training.batches import draws

_COUNTS = (1, 4, 8, 16)
_TIMED = 10
KINDS = ("rewrite", "rephrase", "locality", "locality that names an edited subject", "same subject")


def main() -> None:
    """Parses the options, fills memories, asks, writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scope", action="append", required=True, metavar="NAME=FILE")
    parser.add_argument("--memory", action="append", required=True, metavar="FILE:EDITS")
    parser.add_argument("--records", type=int, default=200, help="records that are asked")
    parser.add_argument("--rounds", type=int, default=5, help="of the timing")
    options = parser.parse_args()
    named = dict(text.split("=", 1) for text in options.scope)
    scopes = {name: scope_of(Path(file)) for name, file in named.items()}
    rows = []
    for text in options.memory:
        file, _, size = text.rpartition(":")
        read = read_requests(file, limit=int(size), on_error="skip")
        requests = list({request.prompt: request for request in read}.values())
        rows += rows_of(scopes, Path(file).name, requests, options)
    shown = " ".join(f"--memory {Path(text).name}" for text in options.memory)
    report.write(
        "serac_scopes",
        "SERAC: where prompts go, by the kind of scope",
        f"python benchmarks/serac_scopes.py {' '.join(f'--scope {name}=FILE' for name in named)} "
        f"{shown} --records {options.records}",
        ["memory", "edits", "scope", "candidates", *KINDS, "seconds a prompt"],
        rows,
        [
            (
                "Rewrite and rephrase: go to their edit; the others: go to none. Means with 95 % "
                "intervals, and how many were asked. Seconds: median and range of "
                f"{options.rounds} rounds of {_TIMED} prompts, one by one, the scopes in turn."
            )
        ],
    )


def scope_of(path: Path) -> AnyScope:
    """The scope of an editor's file."""
    editor = read_editor(path)
    scope = make_scope(SERACHparams(**editor.hparams), torch.device("cpu"))
    own = {name: one for name, one in editor.tensors.items() if name.startswith("scope.")}
    scope.load_trained_state({name.removeprefix("scope."): one for name, one in own.items()})
    return scope


def rows_of(
    scopes: dict[str, AnyScope], file: str, requests: Sequence[EditRequest], options: Any
) -> list[list[str]]:
    """A row for each scope, and for each number of candidates of a cross-encoder."""
    asked = asked_of(requests, options.records)
    timed = [prompt for prompt, _ in asked["rephrase"][:_TIMED]]
    routers = {name: filled(scope, requests) for name, scope in scopes.items()}
    counts = {name: counted(router.scope.candidates) for name, router in routers.items()}
    ways = {
        f"{name} {count}": functools.partial(one_by_one, router, timed, count)
        for name, router in routers.items()
        for count in counts[name]
    }
    seconds, _ = interleaved(ways, options.rounds)
    rows = []
    for name, router in routers.items():
        found = {kind: right(router, pairs, counts[name]) for kind, pairs in asked.items()}
        for count in counts[name]:
            cells = [cell(found[kind][count]) for kind in KINDS]
            time = spread([one / len(timed) for one in seconds[f"{name} {count}"]], 3)
            rows.append([file, str(len(requests)), name, str(count), *cells, time])
            print(rows[-1], flush=True)
    return rows


def counted(most: int) -> list[int]:
    """Numbers of candidates that are told of."""
    return sorted({count for count in _COUNTS if count < most} | {most})


def asked_of(
    requests: Sequence[EditRequest], records: int
) -> dict[str, list[tuple[str, EditRequest | None]]]:
    """Prompts by their kind, with the edit that each is to go to."""
    own = requests[:records]
    made = Negatives(Scope(SERACHparams(), trained=False), requests)
    probes = [probe.prompt for one in own for group in one.locality.values() for probe in group]
    named = unfair_pairs(probes, requests).any(1).tolist()
    subject = [
        text
        for place in range(len(own))
        for text in made.of_subject(place, 1, draws(0, "validation", place))
    ]
    return {
        "rewrite": [(one.prompt, one) for one in own],
        "rephrase": [(text, one) for one in own for text in one.rephrase_prompt],
        KINDS[2]: [(text, None) for text, names in zip(probes, named, strict=True) if not names],
        KINDS[3]: [(text, None) for text, names in zip(probes, named, strict=True) if names],
        "same subject": [(text, None) for text in subject],
    }


def filled(scope: AnyScope, requests: Sequence[EditRequest]) -> Router:
    """A router whose memory holds the edits."""
    memory = EditMemory(SqliteStore(None), scope)
    memory.add(list(requests))
    return Router(scope, memory)


def right(
    router: Router, asked: Sequence[tuple[str, EditRequest | None]], counts: Sequence[int]
) -> dict[int, list[float]]:
    """Whether each prompt goes where it should, with so many candidates."""
    prompts = [prompt for prompt, _ in asked]
    if not prompts:
        return {count: [] for count in counts}
    found = router.memory.nearest(router.scope.embed(prompts), max(counts))
    likely = router.scope.similarities(prompts, found)
    scores: dict[int, list[float]] = {count: [] for count in counts}
    for (_, wanted), edits, own in zip(asked, found, likely, strict=True):
        for count in counts:
            best = max(range(len(own[:count])), key=own.__getitem__)
            goes = edits[best].edit.request if own[best] > 0.5 else None
            told = goes is wanted if wanted is None else goes == wanted
            scores[count].append(float(told))
    return scores


def one_by_one(router: Router, prompts: Sequence[str], count: int) -> None:
    """What routing takes, prompt by prompt, with so many candidates."""
    for prompt in prompts:
        found = router.memory.nearest(router.scope.embed([prompt]), count)
        router.scope.similarities([prompt], found)


def cell(values: Sequence[float]) -> str:
    """The mean; empty where nothing was asked."""
    if not values:
        return ""
    mean = mean_interval(values)
    return f"{mean.mean:.3f} ({mean.low:.3f} – {mean.high:.3f}), {mean.count}"


if __name__ == "__main__":
    main()
