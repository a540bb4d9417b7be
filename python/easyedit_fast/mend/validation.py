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
from easyedit_fast.training.validation import (
    COMMON_SUMS,
    COMMON_VALUES,
    answer_sums,
    common_means,
    locality_sums,
)

_ROWS_AT_ONCE = 32
VALUES = COMMON_VALUES
"""Names of what a validation gives."""
_SUMS = (*COMMON_SUMS, "models", "seconds")


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
            sums |= answer_sums(name, targets.target_logits(), wanted)
        after = locality.rows.logits(locality.reads)
    return sums | _locality_sums(locality, after)


def _means(sums: Mapping[str, float], hparams: MENDTrainingHparams) -> dict[str, float]:
    """Means by the field's names."""
    values = common_means(sums)
    values["locality/acc_val"] = sums["same"] / sums["pre.n"] if sums["pre.n"] else math.nan
    edit = -values["edit/log_prob_val"]
    if hparams.outer_prompts == "alternate":
        edit = (edit - values["rephrase/log_prob_val"]) / 2
    values["loss/edit_val"] = edit
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
    same = before[known].argmax(-1) == after[known].argmax(-1)
    return {**locality_sums(labels, before, after), "same": float(same.sum())}


def renumbered(groups: Sequence[int]) -> list[int]:
    """The same groups, numbered from 0 in order."""
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    return [numbers[group] for group in groups]
