r"""Edits a second of the presets, alone and in batches, against EasyEdit's ROME, timed in turn.

    python benchmarks/rome_batch.py --easyedit DIR --data counterfact-edit.json \
        --second-moment second_moment.npz

DIR is a checkout of zjunlp/EasyEdit. It edits one record after the other with its defaults: 21
context templates, Adam to its stop. All use the same second moment, in float32, and evaluation is
in no time.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import report
from easyedit import EasyEditRome
from timing import interleaved

from easyedit_fast import Editor, EditRequest, read_requests
from easyedit_fast.models.loading import load_model

_PRESETS = ("exact", "default", "fast")
_OTHERS = "EasyEdit"


def main() -> None:
    """Parses the options, times all, writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--easyedit", type=Path, required=True, metavar="DIR")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--second-moment", type=Path, required=True, help="of the edited layer")
    parser.add_argument("--rounds", type=int, default=3, help="and records of EasyEdit")
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--batch-exact", type=int, default=6)
    parser.add_argument("--model", default="demo")
    options = parser.parse_args()
    requests = read_requests(options.data, limit=max(options.batch, options.rounds))
    model, tokenizer = load_model(options.model, device="cpu", dtype="float32")
    tokenizer.padding_side = "right"  # as EasyEdit sets it for ROME
    editors = {
        preset: Editor(
            model,
            tokenizer,
            preset=preset,
            hparams={"second_moment": str(options.second_moment)},
        )
        for preset in _PRESETS
    }
    exact = editors["exact"].method.used_hparams()
    theirs = EasyEditRome(
        options.easyedit,
        model,
        tokenizer,
        exact,
        exact["context_templates"],
        second_moment=options.second_moment,
    )
    ways = _Ways(theirs, editors, requests)
    for preset in _PRESETS:
        ways.edit(preset, requests[:1])  # templates are made, statistics factorised
    sizes = dict.fromkeys(_PRESETS, options.batch) | {"exact": options.batch_exact}
    seconds, _ = interleaved(ways.all(sizes), options.rounds)
    report.write(
        "rome_batch",
        "ROME's presets, alone and in batches, against EasyEdit",
        f"python benchmarks/rome_batch.py --easyedit DIR --data {options.data.name} "
        f"--second-moment … --rounds {options.rounds} --batch {options.batch}",
        ["", "records at once", "seconds an edit", "range", "ratio", "edits a second", "steps"],
        _rows(seconds, ways),
        [
            (
                f"Layer {exact['layers'][0]}, float32, with the second moment, isolated, no "
                f"evaluation; medians of {options.rounds} rounds, all in turn in one process. "
                "EasyEdit and 'one at a time' take another record each round, the same one for "
                "all; a batch holds the first records each round. Steps are means over records. "
                f"Context templates: {', '.join(_templates(editors))}; EasyEdit those of exact."
            )
        ],
    )


class _Ways:
    """What is timed, and what it tells.

    Attributes:
        sizes: Edits that a call of each way makes.
        steps: Steps of each edit so far, by way.
    """

    def __init__(
        self, theirs: EasyEditRome, editors: dict[str, Editor], requests: Sequence[EditRequest]
    ) -> None:
        self.sizes: dict[str, int] = {}
        self.steps: dict[str, list[int]] = {}
        self._theirs, self._editors, self._requests = theirs, editors, requests

    def all(self, batches: dict[str, int]) -> dict[str, Callable[[], Any]]:
        """EasyEdit, then each preset alone, then each in its batch."""
        ways: dict[str, Callable[[], Any]] = {_OTHERS: self._easyedit}
        self.sizes[_OTHERS] = 1
        for preset in batches:
            name = f"{preset}, one at a time"
            ways[name] = self._way(name, preset, 1)
        for preset, size in batches.items():
            name = f"{preset}, batch"
            ways[name] = self._way(name, preset, size)
        return ways

    def edit(self, preset: str, requests: Sequence[EditRequest]) -> list[int]:
        """Edits some requests with a preset; gives the steps of each."""
        result = self._editors[preset].edit(requests, isolated=True, evaluate=False)
        return [
            sum(layer["steps"] for layer in details["layers"].values())
            for details in result.details
        ]

    def _way(self, name: str, preset: str, size: int) -> Callable[[], Any]:
        self.sizes[name] = size

        def run() -> None:
            told = self.steps.setdefault(name, [])
            first = len(told) if size == 1 else 0
            told += self.edit(preset, self._requests[first : first + size])

        return run

    def _easyedit(self) -> None:
        told = self.steps.setdefault(_OTHERS, [])
        request = self._requests[len(told)]
        self._theirs.update(request.prompt, request.subject, request.target_new)
        told.append(self._theirs.steps)


def _rows(seconds: dict[str, list[float]], ways: _Ways) -> list[list[str]]:
    theirs = statistics.median(seconds[_OTHERS])
    rows = []
    for name, times in seconds.items():
        each = sorted(time / ways.sizes[name] for time in times)
        middle = statistics.median(each)
        rows.append(
            [
                name.removesuffix(", batch").removesuffix(", one at a time"),
                str(ways.sizes[name]),
                f"{middle:.2f}",
                f"{each[0]:.2f} – {each[-1]:.2f}",
                "" if name == _OTHERS else f"{theirs / middle:.1f}×",
                f"{1 / middle:.2f}",
                f"{statistics.fmean(ways.steps[name]):.1f}",
            ]
        )
    return rows


def _templates(editors: dict[str, Editor]) -> list[str]:
    return [
        f"{preset} {len(editor.method.used_hparams()['context_templates'])}"
        for preset, editor in editors.items()
    ]


if __name__ == "__main__":
    main()
