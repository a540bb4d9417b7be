"""What a MEND editor does to records that it does not learn from."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from easyedit_fast.errors import ModelError
from easyedit_fast.mend.factors import token_factors
from easyedit_fast.mend.hparams import MENDTrainingHparams
from easyedit_fast.mend.losses import edited_in_groups
from easyedit_fast.mend.network import EditorNetwork
from easyedit_fast.mend.training_rows import LocalityRows, TrainingRows
from easyedit_fast.processes import rank_and_ranks, sum_over_ranks
from easyedit_fast.training.losses import nll_and_divergence

_ROWS_AT_ONCE = 32
VALUES = (
    *(f"{name}/{part}_val" for name in ("edit", "rephrase") for part in ("acc", "log_prob")),
    *(
        f"{name}/{when}_val"
        for when in ("pre", "post")
        for name in ("acc", "nll", "perplexity", "n_tokens")
    ),
    "locality/acc_val",
    *(f"loss/{name}_val" for name in ("edit", "loc", "total_edit", "total")),
    "time/edit_val",
)
"""Names of what a validation gives."""
_SUMS = (
    *(
        f"{name}.{part}"
        for name in ("edit", "rephrase", "pre", "post")
        for part in ("nll", "right", "n")
    ),
    "same",
    "kl",
    "kl.n",
    "models",
    "seconds",
)


@torch.no_grad()
def validate(
    network: EditorNetwork,
    modules: Mapping[str, nn.Module],
    rows: TrainingRows,
    hparams: MENDTrainingHparams,
) -> dict[str, float]:
    """Edits records, `val_batch_size` in a model, and looks at each model.

    Args:
        network: The editor network; it is left in evaluation mode.
        modules: The modules of the edited weights.
        rows: The records.
        hparams: The hyperparameters.

    Returns:
        By the names of `VALUES`, the same in every process.

    Raises:
        ModelError: The edited model was not asked what the unedited one was.
    """
    network.eval()
    size = hparams.val_batch_size
    models = math.ceil(rows.records / size)
    models = min(models, hparams.val_steps or models)
    records = min(rows.records, models * size)
    rank, ranks = rank_and_ranks()
    sums: dict[str, float] = dict.fromkeys(_SUMS, 0.0)
    at_once = max(1, _ROWS_AT_ONCE // size) * size
    for number, first in enumerate(range(0, records, at_once)):
        if number % ranks == rank:
            places = list(range(first, min(first + at_once, records)))
            for name, value in _sums_over(network, modules, rows, hparams, places).items():
                sums[name] += value
    device = network.edit_lrs.device
    totals = torch.tensor(list(sums.values()), dtype=torch.float64, device=device)
    sum_over_ranks([totals])
    return _means(dict(zip(sums, totals.tolist(), strict=True)), hparams)


def _sums_over(
    network: EditorNetwork,
    modules: Mapping[str, nn.Module],
    rows: TrainingRows,
    hparams: MENDTrainingHparams,
    places: list[int],
) -> dict[str, float]:
    """Sums over some of the records."""
    edits = rows.targets(places)
    asked = {"edit": edits, "rephrase": rows.targets([rows.rephrases[p][0] for p in places])}
    locality = rows.locality([rows.localities[p][0] for p in places], hparams.loc_tokens)
    groups = renumbered([place // hparams.val_batch_size for place in places])
    start = time.perf_counter()
    gradients = token_factors(edits.target_logits, modules, edits.rows)
    factors = network(gradients.factors)
    network.edit_lrs.sum().item()  # waits for the device
    sums = {"seconds": time.perf_counter() - start, "models": float(max(groups) + 1)}
    with edited_in_groups(modules, factors, gradients.tokens, groups):
        for name, targets in asked.items():
            wanted = targets.rows.labels[targets.rows.labels != -100]
            nll, right = _against(targets.target_logits(), wanted)
            sums |= {f"{name}.nll": nll, f"{name}.right": right, f"{name}.n": len(wanted)}
        after = locality.rows.logits(locality.reads)
    return sums | _locality_sums(locality, after)


def _means(sums: Mapping[str, float], hparams: MENDTrainingHparams) -> dict[str, float]:
    """Means by the field's names."""
    values: dict[str, float] = {}
    for name in ("edit", "rephrase"):
        values[f"{name}/acc_val"] = sums[f"{name}.right"] / sums[f"{name}.n"]
        values[f"{name}/log_prob_val"] = -sums[f"{name}.nll"] / sums[f"{name}.n"]
    for when in ("pre", "post"):
        tokens = sums[f"{when}.n"]
        nll = sums[f"{when}.nll"] / tokens if tokens else math.nan
        values[f"acc/{when}_val"] = sums[f"{when}.right"] / tokens if tokens else math.nan
        values[f"nll/{when}_val"] = nll
        values[f"perplexity/{when}_val"] = _exp(nll)
        values[f"n_tokens/{when}_val"] = tokens
    values["locality/acc_val"] = sums["same"] / sums["pre.n"] if sums["pre.n"] else math.nan
    edit = -values["edit/log_prob_val"]
    if hparams.outer_prompts == "alternate":
        edit = (edit - values["rephrase/log_prob_val"]) / 2
    values["loss/edit_val"] = edit
    values["loss/loc_val"] = sums["kl"] / sums["kl.n"]
    total = hparams.cedit * edit + hparams.cloc * values["loss/loc_val"]
    values["loss/total_edit_val"] = values["loss/total_val"] = total
    values["time/edit_val"] = sums["seconds"] / sums["models"]
    return values


def _locality_sums(locality: LocalityRows, after: Tensor) -> dict[str, float]:
    """What became of the predictions that shall stay.

    Raises:
        ModelError: The edited model was not asked what the unedited one was.
    """
    labels, before = locality.labels(), locality.base_logits()
    if not len(before) == len(after) == len(labels):
        raise ModelError(
            f"{len(labels)} tokens shall stay, and the unedited model was asked {len(before)}, the "
            f"edited one {len(after)}; remove the caches of the trunk"
        )
    known = labels != -100
    sums: dict[str, float] = {}
    for when, logits in (("pre", before), ("post", after)):
        nll, right = _against(logits[known], labels[known])
        sums |= {f"{when}.nll": nll, f"{when}.right": right, f"{when}.n": len(logits[known])}
    same = before[known].argmax(-1) == after[known].argmax(-1)
    _, divergence = nll_and_divergence(after, labels[:0], before)
    return {**sums, "same": float(same.sum()), "kl": float(divergence.sum()), "kl.n": len(after)}


def _against(logits: Tensor, wanted: Tensor) -> tuple[float, float]:
    """Sum of the negative log-likelihoods of tokens, and how many are the likeliest."""
    nll = nn.functional.cross_entropy(logits.float(), wanted, reduction="sum")
    return float(nll), float((logits.argmax(-1) == wanted).sum())


def renumbered(groups: Sequence[int]) -> list[int]:
    """The same groups, numbered from 0 in order."""
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    return [numbers[group] for group in groups]


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
