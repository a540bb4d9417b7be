"""Options that several commands share, each defined once."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="'demo' (the packaged model), a folder, or a name on the hub."
    ),
]
Preset = Annotated[
    Optional[str],  # noqa: UP045  typer reads the annotation at run time, on Python 3.10 too
    typer.Option(help="Quality against time: 'exact', 'default' (unless given) or 'fast'."),
]
Device = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="'cpu', 'cuda', 'cuda:1' …; a GPU where there is one, unless given."),
]
Dtype = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="'float32', 'bfloat16' or 'float16'; as the model was saved, unless given."),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object, and nothing else, to stdout.")
]


def layer_numbers(text: str, depth: int | None = None) -> list[int]:
    """Layers as a user writes them: ``5``, ``4,5``, ``0-11``, or ``all`` where `depth` is known.

    Raises:
        typer.BadParameter: It is none of these.
    """
    if text == "all" and depth is not None:
        return list(range(depth))
    numbers: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            numbers += range(int(first), int(last or first) + 1)
    except ValueError:
        raise typer.BadParameter(f"--layers {text!r} is no list of numbers") from None
    return numbers
