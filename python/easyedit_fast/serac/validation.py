"""What SERAC makes of records that it does not learn from."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from easyedit_fast.errors import ModelError
from easyedit_fast.models.tracing import frozen
from easyedit_fast.processes import first_tells, rank_and_ranks, sum_over_ranks
from easyedit_fast.serac.answers import Answered, routed_logits
from easyedit_fast.serac.counterfactual import CounterfactualAdapter
from easyedit_fast.serac.hparams import SERACTrainingHparams
from easyedit_fast.serac.scopes import AnyScope
from easyedit_fast.serac.training_data import SeracData, unfair_pairs
from easyedit_fast.training.validation import (
    COMMON_SUMS,
    COMMON_VALUES,
    answer_sums,
    common_means,
    locality_sums,
)

_ROWS_AT_ONCE = 32
VALUES = (
    *COMMON_VALUES,
    *(f"scope/{name}_val" for name in ("rewrite", "rephrase", "locality", "other")),
    "loss/scope_val",
)
"""Names of what a validation gives."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Routed:
    """Where the prompts of all records go.

    Attributes:
        rewrite: By record, the edit that its rewrite prompt goes to; -1 for none.
        rephrase: The same for its first rephrase prompt.
        locality: The same for its first locality prompt.
        loss: Cross-entropy of the scope's answers to the last two.
        kept_out: Whether each locality prompt goes to no edit, among those that speak of none.
        others_out: Whether each prompt of another fact about an edit's subject goes to no edit.
        seconds: Time of an edit's embedding.
    """

    rewrite: list[int]
    rephrase: list[int]
    locality: list[int]
    loss: float
    kept_out: Tensor
    others_out: Tensor
    seconds: float


@torch.no_grad()
def validate(
    scope: AnyScope,
    adapter: CounterfactualAdapter,
    data: SeracData,
    others: Sequence[Sequence[str]],
    hparams: SERACTrainingHparams,
) -> dict[str, float]:
    """Puts all records into one memory, and asks their prompts.

    Args:
        scope: The scope.
        adapter: The adapter, with its model.
        data: The records; `val_steps` times `val_batch_size` of them at most are asked.
        others: Prompts of other facts about the subject of each record.
        hparams: The hyperparameters.

    Returns:
        By the names of `VALUES`, the same in every process.

    Raises:
        ModelError: After the edits other tokens were asked than before.
    """
    # As the first process has them: a rounding elsewhere must not end its training alone.
    routed = first_tells(_routes(scope, data, [text for own in others for text in own]))
    asked = len(data)
    if hparams.val_steps is not None:
        asked = min(asked, hparams.val_steps * hparams.val_batch_size)
    rank, ranks = rank_and_ranks()
    sums: dict[str, float] = dict.fromkeys(COMMON_SUMS, 0.0)
    for number, first in enumerate(range(0, asked, _ROWS_AT_ONCE)):
        if number % ranks == rank:
            places = range(first, min(first + _ROWS_AT_ONCE, asked))
            with frozen(adapter.model):
                found = _sums_over(adapter, data, routed, places)
            for name, value in found.items():
                sums[name] += value
    totals = torch.tensor(list(sums.values()), dtype=torch.float64, device=adapter.model.device)
    sum_over_ranks([totals])
    return _means(dict(zip(sums, totals.tolist(), strict=True)), routed, hparams)


def _routes(scope: AnyScope, data: SeracData, others: Sequence[str]) -> _Routed:
    edits = [request.prompt for request in data.requests]
    start = time.perf_counter()
    scope.embed(edits)
    seconds = (time.perf_counter() - start) / len(data)
    rephrases = [own[0] for own in data.rephrase_prompts]
    localities = [own[0] for own in data.locality_prompts]
    asked = [*edits, *rephrases, *localities, *others]
    none = len(data)
    everything = torch.ones(len(asked), none, dtype=torch.bool)
    seen = scope.looked_at(asked, edits, everything, scope.candidates)
    # The loss asks of a rephrase prompt's own edit even where a route would not look at it.
    owned = seen.clone()
    owned[range(none, 2 * none), range(none)] = True
    scores = scope.answers(asked, edits, owned).cpu()
    wanted = torch.tensor([*range(none), *[none] * (none + len(others))])
    loss = functional.cross_entropy(scores[none:], wanted)
    routed = scores.masked_fill(~functional.pad(seen, (0, 1), value=True), -math.inf).argmax(1)
    parts = routed.masked_fill(routed == none, -1).split([none, none, none, len(others)])
    places = [own.tolist() for own in parts]
    fair = ~unfair_pairs(localities, data.requests).any(1)
    kept_out = (torch.tensor(places[2]) == -1)[fair]
    others_out = torch.tensor(places[3]) == -1
    return _Routed(places[0], places[1], places[2], float(loss), kept_out, others_out, seconds)


def _sums_over(
    adapter: CounterfactualAdapter, data: SeracData, routed: _Routed, places: Sequence[int]
) -> dict[str, float]:
    """Sums over some of the records."""
    sums: dict[str, float] = {}
    for name, rows, routes in (
        ("edit", [data.rewrites[place] for place in places], routed.rewrite),
        ("rephrase", [data.rephrases[place][0] for place in places], routed.rephrase),
    ):
        logits, _ = _logits(adapter, data, rows, [routes[place] for place in places])
        wanted = torch.tensor([token for row in rows for token in row.answer])
        sums |= answer_sums(name, logits, wanted)
    probes = [data.localities[place][0] for place in places]
    rows = [data.probes[probe] for probe in probes]
    own = [routed.locality[place] for place in places]
    after, before = _logits(adapter, data, rows, own, probes)
    return sums | _locality_sums(rows, before, after)


def _logits(
    adapter: CounterfactualAdapter,
    data: SeracData,
    rows: Sequence[Answered],
    routes: Sequence[int],
    probes: Sequence[int] = (),
) -> tuple[Tensor, Tensor]:
    """What predicts the rows' answers, each answered by its edit or the unedited model.

    The logits of the data's probes come last; see `routed_logits`.
    """
    pairs = zip(rows, routes, strict=True)
    placed = [row if edit < 0 else data.with_edit(row, edit) for row, edit in pairs]
    return routed_logits(adapter, data.base, placed, [edit >= 0 for edit in routes], probes)


def _locality_sums(rows: Sequence[Answered], before: Tensor, after: Tensor) -> dict[str, float]:
    """What became of the predictions that shall stay.

    Raises:
        ModelError: After the edits other tokens were asked than before.
    """
    if len(before) != len(after):
        raise ModelError(f"{len(before)} tokens were asked before the edits, {len(after)} after")
    labels = torch.tensor([t for row in rows for t in (row.answer or [-100])]).to(after.device)
    same = before.argmax(-1) == after.argmax(-1)
    return {**locality_sums(labels, before, after), "same": float(same.sum())}


def _means(
    sums: dict[str, float], routed: _Routed, hparams: SERACTrainingHparams
) -> dict[str, float]:
    """Means by the field's names."""
    values = common_means(sums)
    values["locality/acc_val"] = sums["same"] / sums["kl.n"]
    for name in ("rewrite", "rephrase"):
        own = [place == edit for place, edit in enumerate(getattr(routed, name))]
        values[f"scope/{name}_val"] = sum(own) / len(own)
    for name, out in (("locality", routed.kept_out), ("other", routed.others_out)):
        values[f"scope/{name}_val"] = float(out.float().mean()) if len(out) else math.nan
    edit = -(values["edit/log_prob_val"] + values["rephrase/log_prob_val"]) / 2
    values["loss/scope_val"] = routed.loss
    values["loss/edit_val"] = edit
    total = routed.loss + hparams.cedit * edit + hparams.cloc * values["loss/loc_val"]
    values["loss/total_val"] = values["loss/total_edit_val"] = total
    values["time/edit_val"] = routed.seconds
    return values
