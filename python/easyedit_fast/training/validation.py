"""What every method's validation counts, and the field's names of its means."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, nn

from easyedit_fast.training.losses import nll_and_divergence

COMMON_VALUES = (
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
"""Names of what a validation gives, whatever the method."""

COMMON_SUMS = (
    *(
        f"{name}.{part}"
        for name in ("edit", "rephrase", "pre", "post")
        for part in ("nll", "right", "n")
    ),
    "same",
    "kl",
    "kl.n",
)
"""Names of what is summed over records and processes for these."""


def answer_sums(name: str, logits: Tensor, wanted: Tensor) -> dict[str, float]:
    """Of tokens, by `name`: negative log-likelihoods, how many are the likeliest, and all.

    Args:
        name: Of the sums, e.g. ``edit``.
        logits: ``[n, vocabulary]``.
        wanted: ``[n]``, the tokens.
    """
    own = wanted.to(logits.device)
    nll = nn.functional.cross_entropy(logits.float(), own, reduction="sum")
    right = (logits.argmax(-1) == own).sum()
    return {f"{name}.nll": float(nll), f"{name}.right": float(right), f"{name}.n": len(own)}


def locality_sums(labels: Tensor, before: Tensor, after: Tensor) -> dict[str, float]:
    """What became of predictions that shall stay: of known answers, and KL(before ‖ after) of all.

    Args:
        labels: ``[n]``, the tokens of the answers; -100 where none is known.
        before: ``[n, vocabulary]``, the unedited model's logits.
        after: ``[n, vocabulary]``, the edited model's.
    """
    known = labels != -100
    sums: dict[str, float] = {}
    for when, logits in (("pre", before), ("post", after)):
        sums |= answer_sums(when, logits[known], labels[known])
    _, divergence = nll_and_divergence(after, labels[:0], before)
    return {**sums, "kl": float(divergence.sum()), "kl.n": len(after)}


def common_means(sums: Mapping[str, float]) -> dict[str, float]:
    """The means by the field's names, but for losses on edits, locality's accuracy and times."""
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
    values["loss/loc_val"] = sums["kl"] / sums["kl.n"]
    return values


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
