"""Records of a file to padded batches of tokens: the Rust loader, and the loop that EasyEdit has.

    python benchmarks/loader.py --data counterfact-train.json

The five texts of a record: prompt with target, rephrase with target, locality prompt with answer,
the target, the answer. EasyEdit's loop (`collate_gpt_fn` of its CounterFact data set) reads the
file with ``json`` and calls a fast tokenizer once for each of the five, batch by batch, with
``padding=True, return_tensors="pt"``. Both give the same ids, which is checked.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import report
import torch
from timing import interleaved, median_ratio, spread

from easyedit_fast import EditRequest, read_requests
from easyedit_fast.data import RequestTokenizer
from easyedit_fast.models.loading import load_model

_TEXTS = 5


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
    size = options.batch_size

    def ours() -> list[torch.Tensor]:
        return list(_ours(options.data, options.records, size, tokenizer))

    def theirs() -> list[torch.Tensor]:
        return list(_theirs(options.data, options.records, size, tokenizer))

    for one, other in zip(ours(), theirs(), strict=True):  # warms both up as well
        assert torch.equal(one, other)
    seconds, results = interleaved(
        {"EasyEdit's loop": theirs, "easyedit-fast": ours}, options.rounds
    )
    rows = [
        [name, spread(times), f"{_rate(options.records, times):,.0f}", f"{ratio:.1f}×"]
        for (name, times), ratio in zip(
            seconds.items(), (1.0, median_ratio(*seconds.values())), strict=True
        )
    ]
    report.write(
        "loader",
        f"{options.records:,} records to padded batches of {size}",
        f"python benchmarks/loader.py --data {options.data.name} --records {options.records}",
        ["", "seconds: median (range)", "records/s", "ratio"],
        rows,
        _notes(options.data, options.records, size, tokenizer, results["easyedit-fast"]),
    )


def _ours(path: Path, records: int, size: int, tokenizer: Any) -> Iterator[torch.Tensor]:
    """The ids of each batch, five tensors a batch."""
    own = RequestTokenizer.from_transformers(tokenizer)
    requests = read_requests(path, limit=records)
    for first in range(0, len(requests), size):
        for texts in zip(*map(_texts, requests[first : first + size]), strict=True):
            batch = own.encode(texts)
            yield torch.from_numpy(batch.input_ids)


def _texts(request: EditRequest) -> tuple[str, ...]:
    (locality,) = request.locality["neighborhood"]
    return (
        f"{request.prompt} {request.target_new}",
        f"{request.rephrase_prompt[0]} {request.target_new}",
        f"{locality.prompt} {locality.ground_truth}",
        f" {request.target_new}",
        f" {locality.ground_truth}",
    )


def _theirs(path: Path, records: int, size: int, tokenizer: Any) -> Iterator[torch.Tensor]:
    """The same as a loop over a fast tokenizer."""
    with path.open() as file:
        data = json.load(file)[:records]
    for first in range(0, len(data), size):
        batch = data[first : first + size]
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
        for texts in (*prompts, target, answer):
            yield tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]


def _notes(
    path: Path, records: int, size: int, tokenizer: Any, batches: list[torch.Tensor]
) -> list[str]:
    """Where our time goes: reading alone, and tokenising all texts of a kind at once."""
    own = RequestTokenizer.from_transformers(tokenizer)
    requests = read_requests(path, limit=records)
    columns = [list(column) for column in zip(*map(_texts, requests), strict=True)]
    reading = _median(lambda: read_requests(path, limit=records))
    whole = _median(lambda: [own.encode(column) for column in columns])
    cells = sum(batch.numel() for batch in batches)
    return [
        (
            f"{_TEXTS} texts a record, {cells:,} ids with pads, equal to EasyEdit's; "
            f"{os.cpu_count()} CPUs; both run in turn in one process."
        ),
        "",
        (
            f"Of ours, reading and checking the records takes {reading:.2f} s; all texts of a kind "
            f"in one call instead of {size} at a time are tokenised in {whole:.2f} s."
        ),
    ]


def _median(work: Callable[[], Any], rounds: int = 3) -> float:
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def _rate(records: int, seconds: list[float]) -> float:
    return records / statistics.median(seconds)


if __name__ == "__main__":
    main()
