"""The scores before and after an edit together, request by request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from easyedit_fast.evaluation.evaluator import merge

if TYPE_CHECKING:
    from easyedit_fast.failures import Failures
    from easyedit_fast.requests import EditRequest


def join(
    requests: Sequence[EditRequest],
    pre: Mapping[int, Mapping[str, Any]],
    post: Sequence[Mapping[str, Any]],
    failures: Failures,
) -> list[dict[str, Any]]:
    """As `merge`, where some requests have failed.

    Args:
        requests: All requests.
        pre: What `Evaluator.score` gave before the edit, by place.
        post: The same after the edit, for each request that did not fail.
        failures: Those that did.

    Returns:
        One dict a request; one that failed has ``error``, a text, in the place of all scores.
    """
    places = failures.among(range(len(requests)))
    entries: dict[int, dict[str, Any]] = {
        place: {
            "case_id": place,
            "requested_rewrite": requests[place].to_dict(),
            "error": str(error),
        }
        for place, error in failures.items()
    }
    merged = merge(failures.others(requests), [pre[place] for place in places], post)
    for place, entry in zip(places, merged, strict=True):
        entries[place] = {**entry, "case_id": place}
    return [entries[place] for place in range(len(requests))]
