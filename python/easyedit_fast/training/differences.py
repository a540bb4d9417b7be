"""What keeps a training run from going on with another's folder, in a user's words."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

_LENGTH = "hyperparameter max_iters"
_WORDS = {
    "model": "its model is another",
    "records": "its records differ (the data file changed, or another is given)",
    "validation records": "its validation records differ (the data file changed, or another is "
    "given)",
    "tokenizer": "the model's tokenizer is another",
    "chat_template": "the tokenizer's chat template is another",
    "encoder": "its sentence encoder is another (the weights or the tokenizer differ)",
    "archive_sha256": "the editor that it began with (archive) is another",
}


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    """What differs between the descriptions of two runs; see `Trainee.description`.

    A longer run goes on where a shorter one ended, unless the learning rates follow from its
    length.

    Args:
        there: The description of the run that the folder holds.
        here: That of the wanted one.
    """
    before, now = _told(there), _told(here)
    names = [name for name in {**now, **before} if before.get(name) != now.get(name)]
    if "model" in names:  # whose tokens are others too
        names = [name for name in names if not name.endswith("records")]
    for name in names:
        if name == _LENGTH:
            yield from _of_length(before, now)
        else:
            was, now_is = (reprlib.repr(told.get(name)) for told in (before, now))
            yield _WORDS.get(name, f"its {name} was {was} and is {now_is}")
    if not names and there != here:
        yield "its model, or this package's version, is another"


def _told(description: Mapping[str, Any]) -> dict[str, Any]:
    """What a user knows of a run, by its name."""
    told = {name: value for name, value in description.items() if name not in ("hparams", "data")}
    hparams = description.get("hparams", {})
    told |= {f"hyperparameter {name}": value for name, value in hparams.items()}
    whose = ("records", "validation records")
    for name, rows in zip(whose, description.get("data", ()), strict=False):
        if isinstance(rows, str):  # a digest
            told[name] = rows
            continue
        told[name] = [rows["labels"], *(rows[part]["tokens"] for part in ("targets", "locality"))]
        told |= {key: rows["targets"][key] for key in ("device", "dtype")}
    return told


def _of_length(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Why the run of one length does not go on to another."""
    was, wanted = before.get(_LENGTH), now.get(_LENGTH)
    changed = f"its max_iters was {was} and is {wanted}"
    decay, steps = (now.get(f"hyperparameter {name}") for name in ("lr_decay", "accumulate_bs"))
    if was is None or wanted is None or wanted < was:
        yield f"{changed}: a run can be made longer, not shorter"
    elif decay != "none":
        yield (
            f"{changed}: with lr_decay {decay!r} the learning rates of the iterations already run "
            "would have been others"
        )
    elif steps and was % steps:
        yield (
            f"{changed}: it ends between two optimiser steps (accumulate_bs {steps}), where "
            "nothing goes on"
        )
