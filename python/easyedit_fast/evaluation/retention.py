"""How much of earlier edits is left after later ones into the same model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from easyedit_fast.evaluation.evaluator import compare

_SCORES = ("rewrite_acc", "rephrase_acc")


def add_batch_scores(
    metrics: Sequence[Mapping[str, Any]], post_batch: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Adds the scores right after each request's own batch, and what of them is retained.

    Args:
        metrics: What `join` gave, one a request; ``post`` is of the final model.
        post_batch: What `Evaluator.score` gave right after the request's own batch, for each that
            did not fail.

    Returns:
        The metrics with ``post_batch`` and ``retention`` in each.
    """
    joined: list[dict[str, Any]] = []
    left = iter(post_batch)
    for entry in metrics:
        if "error" in entry:
            joined.append(dict(entry))
            continue
        after_batch = compare(entry["pre"], next(left))
        joined.append(
            {**entry, "post_batch": after_batch, "retention": retained(after_batch, entry["post"])}
        )
    return joined


def retained(post_batch: Mapping[str, Any], post: Mapping[str, Any]) -> dict[str, Any]:
    """Which prompts that held right after their batch hold on the final model.

    A prompt holds where its score is 1: every token of the target is predicted or, under
    ``generated``, the text begins with the target.

    Returns:
        ``rewrite_acc``, ``rephrase_acc`` and ``generated`` of both: of the prompts that held after
        the batch, 1.0 for each that holds still, 0.0 for each that does not.
    """
    kept: dict[str, Any] = {
        name: [
            float(final == 1.0)
            for first, final in zip(post_batch[name], post[name], strict=True)
            if first == 1.0
        ]
        for name in _SCORES
        if name in post_batch
    }
    if "generated" in post_batch:
        kept["generated"] = retained(post_batch["generated"], post["generated"])
    return kept
