"""What training asks of its records."""

from __future__ import annotations

from typing import TYPE_CHECKING

from easyedit_fast.errors import RequestError

if TYPE_CHECKING:
    from easyedit_fast.requests import EditRequest


def locality_texts(place: int, request: EditRequest) -> list[tuple[int, str, str | None]]:
    """The record's place with each of its locality prompts, and the answer where it is known.

    Raises:
        RequestError: There is no such prompt.
    """
    found = [
        (place, probe.prompt, probe.ground_truth)
        for probes in request.locality.values()
        for probe in probes
    ]
    if not found:
        raise RequestError(
            "has no locality prompt, and training needs one: a prompt whose answer shall stay "
            "('locality', or EasyEdit's 'locality_prompt' and 'locality_ground_truth')",
            record=place,
            field="locality",
        )
    return found
