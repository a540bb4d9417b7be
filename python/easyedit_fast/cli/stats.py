"""``easyedit-fast stats``: collects the second moments of the keys over a corpus."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from easyedit_fast.cli import options
from easyedit_fast.cli.destinations import require_folder_path
from easyedit_fast.cli.output import print_json, print_line, print_table, token_progress

if TYPE_CHECKING:
    from easyedit_fast.data import Corpus


def stats(
    more_text: Annotated[
        Optional[list[Path]],  # noqa: UP045  typer reads the annotation at run time
        typer.Argument(metavar="[FILE]...", help="More text files."),
    ] = None,
    model: options.Model = "demo",
    text: Annotated[
        Optional[list[Path]],  # noqa: UP045
        typer.Option(metavar="FILE...", help="Texts: .txt, .jsonl, or either with .gz."),
    ] = None,
    dataset: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Or a dataset: wikipedia, wikitext, wikitext2, or a name on the hub; "
            "NAME:CONFIG names a configuration."
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the dataset.")] = "train",
    field: Annotated[
        str, typer.Option(help="Field or column that holds the text of a record.")
    ] = "text",
    layers: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Layers, e.g. 5 or 4,5 or 0-11, or 'all'; the one that ROME edits."),
    ] = None,
    tokens: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Tokens to look at; 10 for each dimension of the keys."),
    ] = None,
    block_length: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=2, help="Tokens that are read as one text; 512."),
    ] = None,
    batch_size: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Blocks in a forward pass; by the device."),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Folder to write to, in EasyEdit's layout (its stats_dir); the user's cache, "
            "where 'edit' finds them by itself."
        ),
    ] = None,
    name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Name of the corpus in the files' path (EasyEdit's mom2_dataset)."),
    ] = None,
    samples: Annotated[
        int,
        typer.Option(min=1, help="Number in the files' names (EasyEdit's mom2_n_samples)."),
    ] = 100_000,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files from another corpus or model.")
    ] = False,
    device: options.Device = None,
    dtype: options.Dtype = None,
    json: options.Json = False,
) -> None:
    """Collect second moments of the keys, which ROME's C⁻¹ is made of.

    A run that was ended goes on where it was when the same command is given again.

    Example: easyedit-fast stats --model demo --text wiki.txt --layers 5
    """
    corpus = _corpus([*(text or []), *(more_text or [])], dataset, split, field)
    require_folder_path(out, "--out")
    from easyedit_fast.models.loading import load_model
    from easyedit_fast.moments import collect_statistics
    from easyedit_fast.processes import own_device, rank_and_ranks
    from easyedit_fast.rome.hparams import rome_rule

    loaded, tokenizer = load_model(model, device=device or own_device(), dtype=dtype)
    depth = int(loaded.config.get_text_config().num_hidden_layers)
    chosen = options.layer_numbers(layers, depth) if layers else rome_rule(loaded).layers
    first = rank_and_ranks()[0] == 0
    title = f"layers {', '.join(map(str, chosen))}"
    with token_progress(title, quiet=json or not first) as progress:
        files = collect_statistics(
            loaded,
            tokenizer,
            corpus,
            chosen,
            tokens=tokens,
            block_length=block_length,
            batch_size=batch_size,
            folder=out,
            name=name,
            samples=samples,
            overwrite=overwrite,
            progress=progress,
        )
    if first:
        _report(model, corpus, files, json=json)
        if out is None and not json:
            print_line("'easyedit-fast edit' uses them from now on for this model.")


def _report(model: str, corpus: Corpus, files: dict[int, Path], *, json: bool) -> None:
    from easyedit_fast.moments import read_origin

    rows: list[dict[str, Any]] = []
    for layer, path in files.items():
        origin = read_origin(path)
        assert origin is not None
        rows.append({"layer": layer, "tokens": origin.tokens, "file": str(path)})
    if json:
        print_json({"model": model, "corpus": corpus.name, "statistics": rows})
        return
    print_table("Second moments", list(rows[0]), [list(row.values()) for row in rows])


def _corpus(texts: list[Path], dataset: str | None, split: str, field: str) -> Corpus:
    from easyedit_fast.data import HubDataset, TextFiles

    if bool(texts) == (dataset is not None):
        raise typer.BadParameter("give text files (--text FILE...), or a --dataset")
    if dataset is None:
        return TextFiles.of(*texts, field=field)
    name, _, config = dataset.partition(":")
    return HubDataset(name, config or None, split, field)
