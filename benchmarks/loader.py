"""Records of a file to padded batches of tokens: the Rust loader, and the loop that EasyEdit has.

    python benchmarks/loader.py --data counterfact-train.json

The five texts of a record are prompt with target, rephrase with target, locality prompt with
answer, the target, the answer. EasyEdit's loop (`collate_gpt_fn` of its CounterFact data set) reads
the file with ``json`` and calls a fast tokenizer once for each of the five, batch by batch, with
``padding=True, return_tensors="pt"``; the last two are its labels. Ours labels the answers within
the first three. The ids of the three and the labelled answers are equal, which is checked.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import report
import torch
from timing import interleaved, median_ratio, spread

from easyedit_fast.data import RequestTokenizer, read_batches
from easyedit_fast.models.loading import load_model

_THEIRS = "EasyEdit's loop"
_FIRST = "easyedit-fast, first pass"
_LATER = "easyedit-fast, later passes"


def main() -> None:
    """Parses the options, times both, writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="CounterFact in EasyEdit's form")
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--batch-size", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--model", default="demo")
    options = parser.parse_args()
    _, tokenizer = load_model(options.model, device="cpu")
    _check(options, tokenizer)
    new = iter([_new(tokenizer) for _ in range(options.rounds)])
    known = _new(tokenizer)
    _count(_ours(options, known))
    ways: dict[str, Callable[[], int]] = {
        _THEIRS: lambda: _count(_theirs(options, tokenizer)),
        _FIRST: lambda: _count(_ours(options, next(new))),
        _LATER: lambda: _count(_ours(options, known)),
    }
    seconds, _ = interleaved(ways, options.rounds)
    report.write(
        "loader",
        f"{options.records:,} records to padded batches of {options.batch_size}",
        f"python benchmarks/loader.py --data {options.data.name} --records {options.records}",
        ["", "seconds: median (range)", "records/s", "ratio"],
        [
            [
                name,
                spread(times, 3),
                f"{options.records / statistics.median(times):,.0f}",
                f"{median_ratio(seconds[_THEIRS], times):.1f}×",
            ]
            for name, times in seconds.items()
        ],
        [
            (
                f"{os.cpu_count()} CPUs, all in turn in one process; ids and labels are equal. "
                "Each word is tokenised once: a first pass has a tokenizer that has met none, a "
                "later one has met all. EasyEdit's tokenizer keeps words too, and has met them."
            )
        ],
    )


def _new(tokenizer: Any) -> RequestTokenizer:
    """A tokenizer that has met no word."""
    return RequestTokenizer(tokenizer.backend_tokenizer.to_str(), pad_id=tokenizer.pad_token_id)


def _ours(
    options: argparse.Namespace, tokenizer: RequestTokenizer
) -> Iterator[list[dict[str, torch.Tensor]]]:
    """Per batch the rows of the three prompts."""
    for batch in read_batches(
        options.data, tokenizer, batch_size=options.batch_size, limit=options.records
    ):
        sections = (batch.rewrite, batch.rephrase, batch.locality)
        yield [
            {
                "input_ids": torch.from_numpy(section.tokens.input_ids),
                "attention_mask": torch.from_numpy(section.tokens.attention_mask),
                "labels": torch.from_numpy(section.tokens.labels),
            }
            for section in sections
        ]


def _theirs(options: argparse.Namespace, tokenizer: Any) -> Iterator[list[Any]]:
    """Per batch the rows of the three prompts, of the targets and of the answers."""
    with options.data.open() as file:
        data = json.load(file)[: options.records]
    for first in range(0, len(data), options.batch_size):
        batch = data[first : first + options.batch_size]
        target = [" " + record["target_new"] for record in batch]
        answer = [" " + record["locality_ground_truth"] for record in batch]
        prompts = [
            [record[name].rstrip() + end for record, end in zip(batch, ends, strict=True)]
            for name, ends in (
                ("prompt", target),
                ("rephrase_prompt", target),
                ("locality_prompt", answer),
            )
        ]
        yield [
            tokenizer(texts, padding=True, return_tensors="pt")
            for texts in (*prompts, target, answer)
        ]


def _count(batches: Iterator[list[Any]]) -> int:
    """Takes all batches, as a training loop does, and keeps none."""
    return sum(section["input_ids"].numel() for batch in batches for section in batch)


def _check(options: argparse.Namespace, tokenizer: Any) -> None:
    """Holds our ids and labels to theirs."""
    both = zip(_ours(options, _new(tokenizer)), _theirs(options, tokenizer), strict=True)
    for ours, (*prompts, target, answer) in both:
        for section, prompt, labels in zip(ours, prompts, (target, target, answer), strict=True):
            assert torch.equal(section["input_ids"], prompt["input_ids"])
            assert torch.equal(section["attention_mask"], prompt["attention_mask"])
            wanted = labels["input_ids"][labels["attention_mask"].bool()]
            assert torch.equal(section["labels"][section["labels"] != -100], wanted)


if __name__ == "__main__":
    main()
