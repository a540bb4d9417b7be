"""Second moments of one layer's keys and of all layers', ours and EasyEdit's, on the same texts.

    python benchmarks/second_moments.py --easyedit DIR --text valid.txt test.txt

Both are timed as a user calls them, from texts to the written file: ours is `collect_statistics`,
theirs ``layer_stats`` of their ROME, which takes one layer a pass. In float32, in two forms:

- blocks: documents of exactly one block of tokens, in batches of the same size. Both see the same
  tokens in the same blocks, without a pad, so that the matrices can be compared.
- lines: the lines of the text, as WikiText's rows are, with EasyEdit's defaults.

All layers take EasyEdit a pass each. Some of these passes are timed; a pass to layer l takes
a + b·l seconds, so a line through the measured medians gives the sum over all layers.

The floor counts the operations that cannot be left out: the forward up to the last layer's keys
(causal attention, 2 operations a multiplication and addition) and one triangle of k kᵀ a layer.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import report
import torch
from easyedit import EasyEditStatistics
from timing import interleaved, median_ratio

from easyedit_fast.data import RequestTokenizer, TextFiles
from easyedit_fast.models.architectures import (
    architecture_of,
    block,
    edited_module,
    key_size,
    number_of_layers,
)
from easyedit_fast.models.loading import load_model
from easyedit_fast.moments import collect_statistics, read_second_moment

_BATCH = 4  # blocks in a forward pass: what ours takes on a CPU by itself, 2,048 tokens
_MEASURED = 4  # of EasyEdit's passes over all layers
_OTHERS = "EasyEdit"
_OURS = "easyedit-fast"


@dataclasses.dataclass(frozen=True)
class _Run:
    """Both collectors on one model.

    Attributes:
        model: The model.
        tokenizer: Its tokenizer.
        theirs: EasyEdit's.
        block_length: Tokens in a block.
        folder: For texts and statistics.
    """

    model: Any
    tokenizer: Any
    theirs: EasyEditStatistics
    block_length: int
    folder: Path

    def ours(self, corpus: TextFiles, layers: Sequence[int], tokens: int) -> dict[int, Path]:
        """The file of each layer; the next call overwrites it."""
        return collect_statistics(
            self.model,
            self.tokenizer,
            corpus,
            layers,
            tokens=tokens,
            block_length=self.block_length,
            batch_size=_BATCH,
            folder=self.folder,
            overwrite=True,
        )

    def easyedit(
        self, texts: Sequence[str], layer: int, *, blocks: bool
    ) -> tuple[torch.Tensor, int]:
        """C of a layer, and the tokens that it saw."""
        name = architecture_of(self.model).projection_name(layer)
        return self.theirs.moment(name, texts, _BATCH * self.block_length if blocks else None)

    def corpus(self, texts: Sequence[str], name: str) -> TextFiles:
        """The texts as a file of ours."""
        path = self.folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        return TextFiles.of(path)


def main() -> None:
    """Parses the options, times both, writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--easyedit", type=Path, required=True, metavar="DIR")
    parser.add_argument("--text", type=Path, nargs="+", required=True)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rounds-all", type=int, default=2, help="of all layers")
    parser.add_argument("--layer", type=int, default=5)
    parser.add_argument("--block-length", type=int, default=512)
    parser.add_argument("--model", default="demo")
    options = parser.parse_args()
    model, tokenizer = load_model(options.model, device="cpu", dtype="float32")
    theirs = EasyEditStatistics(options.easyedit, model, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        run = _Run(model, tokenizer, theirs, options.block_length, Path(folder))
        blocks = _block_texts(run, options.text, options.tokens)
        lines = _lines(run, options.text, options.tokens)
        peak = _matmul_peak()
        one, errors = _one_layer(run, blocks, options.layer, options.rounds, peak)
        loose = _lines_rows(run, lines, options.layer, options.rounds, peak)
        whole, more, passes = _all_layers(run, blocks, options.rounds_all, peak)
    report.write(
        "second_moments",
        "Second-moment statistics, against EasyEdit",
        f"python benchmarks/second_moments.py --easyedit DIR --text "
        f"{' '.join(path.name for path in options.text)} --tokens {options.tokens}",
        ["layers", "texts", "", "tokens", "seconds", "tokens/s", "ratio", "share of the peak"],
        [*one, *loose, *whole],
        _notes(run, options.layer, peak, {**errors, **more}, passes),
    )


def _one_layer(
    run: _Run, texts: Sequence[str], layer: int, rounds: int, peak: float
) -> tuple[list[list[str]], dict[int, float]]:
    """Rows of one layer on blocks, and the error between both matrices."""
    corpus, tokens = run.corpus(texts, "blocks"), len(texts) * run.block_length
    seconds, results = interleaved(
        {
            _OTHERS: lambda: run.easyedit(texts, layer, blocks=True),
            _OURS: lambda: run.ours(corpus, [layer], tokens),
        },
        rounds,
    )
    matrix, count = results[_OTHERS]
    assert count == tokens
    rows = _rows(str(layer), "blocks", tokens, seconds, _floor(run, [layer]), peak)
    return rows, {layer: _error(results[_OURS][layer], matrix)}


def _lines_rows(
    run: _Run, texts: Sequence[str], layer: int, rounds: int, peak: float
) -> list[list[str]]:
    """Rows of one layer on lines, of which EasyEdit pads the shorter ones."""
    corpus, tokens = run.corpus(texts, "lines"), _count(run, texts)
    seconds, results = interleaved(
        {
            _OTHERS: lambda: run.easyedit(texts, layer, blocks=False),
            _OURS: lambda: run.ours(corpus, [layer], tokens),
        },
        rounds,
    )
    assert results[_OTHERS][1] == tokens
    return _rows(str(layer), "lines", tokens, seconds, _floor(run, [layer]), peak)


def _all_layers(
    run: _Run, texts: Sequence[str], rounds: int, peak: float
) -> tuple[list[list[str]], dict[int, float], str]:
    """Rows of all layers, the errors at the layers that were measured, and what was measured."""
    depth = number_of_layers(run.model, architecture_of(run.model))
    measured = sorted({round(place) for place in np.linspace(0, depth - 1, _MEASURED)})
    corpus, tokens = run.corpus(texts, "blocks"), len(texts) * run.block_length

    def one_pass(layer: int) -> Any:
        return lambda: run.easyedit(texts, layer, blocks=True)

    names = {f"{_OTHERS}, layer {layer}": one_pass(layer) for layer in measured}
    seconds, results = interleaved(
        {**names, _OURS: lambda: run.ours(corpus, range(depth), tokens)}, rounds
    )
    sums = [
        _sum_of_passes(measured, [seconds[name][number] for name in names], depth)
        for number in range(rounds)
    ]
    both = {_OTHERS: sums, _OURS: seconds[_OURS]}
    errors = {
        layer: _error(results[_OURS][layer], results[name][0])
        for layer, name in zip(measured, names, strict=True)
    }
    told = ", ".join(
        f"{statistics.median(seconds[name]):.2f} s to layer {layer}"
        for layer, name in zip(measured, names, strict=True)
    )
    floor = _floor(run, range(depth))
    return _rows(f"all {depth}", "blocks", tokens, both, floor, peak), errors, told


def _sum_of_passes(measured: Sequence[int], seconds: Sequence[float], depth: int) -> float:
    """Seconds of a pass to every layer, by the line a + b·l through those that were measured."""
    slope, start = np.polyfit(measured, seconds, 1)
    return float(sum(start + slope * layer for layer in range(depth)))


def _rows(
    layers: str, form: str, tokens: int, seconds: dict[str, list[float]], floor: float, peak: float
) -> list[list[str]]:
    """A row for each of both; `floor` in operations a token, `peak` in operations a second."""
    rows = []
    ratio = median_ratio(seconds[_OTHERS], seconds[_OURS])
    for name, times in seconds.items():
        middle = statistics.median(times)
        rows.append(
            [
                layers,
                form,
                name,
                f"{tokens:,}",
                f"{middle:.2f} ({min(times):.2f} – {max(times):.2f})",
                f"{tokens / middle:,.0f}",
                f"{ratio:.1f}×" if name == _OURS else "",
                f"{tokens * floor / middle / peak:.0%}",
            ]
        )
    return rows


def _floor(run: _Run, layers: Sequence[int]) -> float:
    """Operations a token that one pass for the second moments of these layers needs."""
    places, last = architecture_of(run.model), max(layers)
    linear = [
        module.weight.numel()
        for layer in range(last + 1)
        for module in block(run.model, places, layer).modules()
        if isinstance(module, torch.nn.Linear)
    ]
    not_run = edited_module(run.model, places, last).weight.numel()
    config = run.model.config
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # Scores and mixture, each over half the block on average.
    attention = 2 * 2 * (run.block_length / 2) * config.num_attention_heads * head
    moments = sum(
        size * (size + 1) for size in (key_size(run.model, places, layer) for layer in layers)
    )
    return 2.0 * (sum(linear) - not_run) + (last + 1) * attention + moments


def _matmul_peak(seconds: float = 2.0) -> float:
    """Operations a second of the fastest of some float32 products."""
    best = 0.0
    for shape in ((2048, 2048, 2048), (2048, 576, 1536), (1536, 2048, 1536)):
        m, k, n = shape
        left, right = torch.rand(m, k), torch.rand(k, n)
        end = time.perf_counter() + seconds / 3
        while (start := time.perf_counter()) < end:
            left @ right
            best = max(best, 2.0 * m * k * n / (time.perf_counter() - start))
    return best


def _block_texts(run: _Run, paths: Sequence[Path], tokens: int) -> list[str]:
    """Texts that are tokenised to exactly one block each.

    A block whose ends cut a character or a word in two may not come back as it was; it is left
    out.
    """
    own = RequestTokenizer.from_transformers(run.tokenizer)
    texts: list[str] = []
    corpus = TextFiles.of(*paths)
    for blocks in corpus.blocks(own, block_length=run.block_length, rows=64):
        for row in blocks.tolist():
            text = run.tokenizer.decode(row, clean_up_tokenization_spaces=False)
            if len(row) == run.block_length and run.tokenizer.encode(text) == row:
                texts.append(text)
            if len(texts) * run.block_length >= tokens:
                return texts
    raise SystemExit("error: the text is too short; give more, or fewer --tokens")


def _lines(run: _Run, paths: Sequence[Path], tokens: int) -> list[str]:
    """The first lines that hold that many tokens."""
    lines: list[str] = []
    left = tokens
    for path in paths:
        with path.open() as file:
            for line in file:
                if left <= 0:
                    return lines
                lines.append(line)
                left -= _count(run, [line])
    return lines


def _count(run: _Run, texts: Sequence[str]) -> int:
    return sum(len(run.tokenizer.encode(text)) for text in texts)


def _error(ours: Path, theirs: torch.Tensor) -> float:
    reference = theirs.double()
    return float((read_second_moment(ours).matrix - reference).norm() / reference.norm())


def _notes(run: _Run, layer: int, peak: float, errors: dict[int, float], passes: str) -> list[str]:
    depth = number_of_layers(run.model, architecture_of(run.model))
    worst = max(errors.values())
    one, whole = (_floor(run, layers) / 1e6 for layers in ([layer], range(depth)))
    return [
        (
            f"Float32, blocks of {run.block_length} tokens, {_BATCH} in a batch; medians (range) "
            "of whole calls, files written, in turn in one process; tokens without pads."
        ),
        "",
        (
            f"All layers take EasyEdit {depth} passes: {passes} (medians); the sum over all layers "
            "is that of the line through them, round by round."
        ),
        "",
        (
            f"Relative error between both matrices, over layers "
            f"{', '.join(map(str, sorted(errors)))}: {worst:.1e} at most (blocks)."
        ),
        "",
        (
            f"Floor: {one:.0f} million operations a token for layer {layer}, {whole:.0f} million "
            f"for all layers. Peak: {peak / 1e9:.0f} GFLOP/s, the fastest float32 product "
            f"measured here; at it the floor takes {one / peak * 1e12:.0f} µs and "
            f"{whole / peak * 1e12:.0f} µs a token. For EasyEdit's passes over all layers the "
            "share counts one pass's operations, since one is enough."
        ),
    ]


if __name__ == "__main__":
    main()
