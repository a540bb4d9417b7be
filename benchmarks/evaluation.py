"""What scoring adds to editing: isolated edits without metrics, and with them before and after.

    python benchmarks/evaluation.py --data counterfact-edit.json --second-moment second_moment.npz

The ways edit the same records in turn. ``teacher-forced`` scores rewrite, rephrase and locality of
each record before and after; ``generated`` adds greedy continuations of the same prompts;
``fluency`` adds the n-gram entropy of a long one. The share is what scoring takes in units of the
editing itself.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import report
from timing import interleaved, spread

from easyedit_fast import Editor, read_requests

_WAYS: dict[str, dict[str, bool]] = {
    "no metrics": {"evaluate": False},
    "teacher-forced": {"generate": False},
    "and generated": {},
    "and fluency": {"fluency": True},
}


def main() -> None:
    """Parses the options, times all, writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--second-moment", required=True, help="of the edited layer")
    parser.add_argument("--records", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--preset", choices=["exact", "default", "fast"], default="default")
    parser.add_argument("--model", default="demo")
    options = parser.parse_args()
    editor = Editor.from_pretrained(
        options.model, preset=options.preset, hparams={"second_moment": options.second_moment}
    )
    requests = read_requests(options.data, limit=options.records)
    editor.edit(requests[:2], isolated=True)  # warms up
    phases: dict[str, list[dict[str, float]]] = {name: [] for name in _WAYS}

    def way(name: str) -> Any:
        def run() -> None:
            result = editor.edit(requests, isolated=True, **_WAYS[name])
            phases[name].append(dict(result.timings))

        return run

    seconds, _ = interleaved({name: way(name) for name in _WAYS}, options.rounds)
    rows = [_row(name, seconds[name], phases[name]) for name in _WAYS]
    report.write(
        f"evaluation_{options.preset}",
        f"What scoring adds to {options.records} isolated edits",
        f"python benchmarks/evaluation.py --data {options.data.name} --second-moment … "
        f"--records {options.records} --preset {options.preset}",
        ["metrics", "seconds", "editing, s", "before, s", "after, s", "share of the editing"],
        rows,
        [
            (
                f"Preset {options.preset}, layers {editor.method.settings()['layers']}, with the "
                f"second moment; medians (range) of {options.rounds} rounds, all in turn."
            )
        ],
    )


def _row(name: str, seconds: list[float], phases: list[dict[str, float]]) -> list[str]:
    before, after = (
        statistics.median(phase.get(f"evaluate {when}", 0.0) for phase in phases)
        for when in ("before", "after")
    )
    shares = [_share(phase) for phase in phases]
    editing = statistics.median(seconds) - before - after
    return [
        name,
        spread(seconds),
        f"{editing:.2f}",
        f"{before:.2f}",
        f"{after:.2f}",
        f"{statistics.median(shares):.0%}",
    ]


def _share(phase: dict[str, float]) -> float:
    scoring = sum(seconds for name, seconds in phase.items() if name.startswith("evaluate"))
    return scoring / (sum(phase.values()) - scoring)


if __name__ == "__main__":
    main()
