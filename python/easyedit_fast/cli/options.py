"""Options that several commands share, each defined once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="'demo' (the packaged model), a folder, or a name on the hub."
    ),
]
ModelOrFromHparams = Annotated[
    Optional[str],  # noqa: UP045  typer reads the annotation at run time, on Python 3.10 too
    typer.Option(
        "--model",
        "-m",
        help="'demo' (the packaged model), a folder, or a name on the hub; unless given, "
        "the model_name of --hparams, else 'demo'.",
    ),
]
Method = Annotated[str, typer.Option(help="Editing method: 'rome', 'mend' or 'serac'.")]
Archive = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        help="The trained editor of MEND (a file of ours, or a checkpoint of EasyEdit) or SERAC."
    ),
]
Memory = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="SERAC's edits: the SQLite file that keeps them; made where there is none."),
]
Threshold = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(
        min=0,
        max=1,
        help="A prompt is answered from SERAC's edit where its similarity is above this; lower "
        "takes in more wordings, and more that is not meant; 0.5 unless given.",
    ),
]
Prompt = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Prompt of one edit; holds the subject, or '{}' in its place."),
]
Subject = Annotated[Optional[str], typer.Option(help="Subject of the edit.")]  # noqa: UP045
Target = Annotated[Optional[str], typer.Option(help="New answer to the prompt.")]  # noqa: UP045
File = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(help="Many edits: requests (JSON, JSONL), CounterFact, zsRE or KnowEdit."),
]
Isolated = Annotated[
    bool,
    typer.Option(
        "--isolated/--together",
        help="Each edit in its own copy of the model, or all in one model.",
    ),
]
Limit = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--limit", "-n", min=1, help="Records of the file at most."),
]
Offset = Annotated[int, typer.Option(min=0, help="Records of the file to pass over.")]
SkipBad = Annotated[
    bool,
    typer.Option("--skip-bad", help="Leave out records that cannot be used or fail, and say so."),
]
Sequential = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(
        min=1, help="This many edits at a time, one batch after another into the same model."
    ),
]
BatchSize = Annotated[
    str,
    typer.Option(
        help="Records that are optimised, and with --out written, together: a number, or "
        "'auto': as many as fit in memory. Running out halves it."
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Begin anew where the results are of another run.")
]
Hparams = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Hyperparameters: a YAML file, or a name such as ROME/llama-7b."),
]
Layers = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Layers to edit, e.g. 5, 4,5 or 4-6."),
]
SecondMoment = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        help="Second-moment statistics (.npz); turns them on. For several layers '{}' in the "
        "path stands for the layer's number. 'none': C = I, whatever statistics there are."
    ),
]
Preset = Annotated[
    Optional[str],  # noqa: UP045
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
    if not numbers:
        raise typer.BadParameter(f"--layers {text!r} names no layer; write the lower one first")
    return numbers
