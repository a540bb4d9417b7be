r"""Layers and second-moment modes compared: isolated ROME edits, with 95 % intervals and a plot.

    python benchmarks/sweep.py --data counterfact-edit.json --records 200 \
        --layers 2 5 8 11 14 17 20 23 25 --text wikitext.txt --out sweep/

A run that was ended goes on from ``--out`` when it is started again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import report

from easyedit_fast import Editor, TextFiles, read_requests, sweep
from easyedit_fast.metrics import Estimate
from easyedit_fast.sweeps.rows import SCORES


def main() -> None:
    """Parses the options, sweeps, writes the table and the plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--records", type=int, default=200)
    parser.add_argument("--layers", type=int, nargs="+", required=True)
    parser.add_argument("--text", type=Path, nargs="*", help="for the second moments")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--out", type=Path, required=True, help="folder that the run goes on from")
    options = parser.parse_args()
    editor = Editor.from_pretrained(options.model, preset=options.preset, device="cpu")
    result = sweep(
        editor,
        read_requests(options.data, limit=options.records),
        options.layers,
        text=TextFiles.of(*options.text) if options.text else None,
        folder=options.out,
    )
    names = [name for name in SCORES if any(name in row.records for row in result.rows)]
    lines = [
        [
            str(row.layer),
            row.mode,
            *(_cell(row.scores[name]) for name in names),
            f"{row.steps:.1f}",
            f"{row.update_norm:.1f}",
            f"{row.seconds:.2f}",
        ]
        for row in result.rows
    ]
    lines += [
        [str(layer), "full − simplified", *(_cell(scores[name]) for name in names), "", "", ""]
        for layer, scores in result.differences.items()
    ]
    phases = ", ".join(f"{phase} {seconds:.0f} s" for phase, seconds in result.timings.items())
    report.RESULTS.mkdir(exist_ok=True)
    result.plot(report.RESULTS / "sweep.png")
    report.write(
        "sweep",
        f"ROME at {len(options.layers)} layers in both modes, {options.records} isolated edits",
        f"python benchmarks/sweep.py --data {options.data.name} --records {options.records} "
        f"--layers {' '.join(map(str, options.layers))} --preset {options.preset} --text … --out …",
        ["layer", "mode", *names, "steps", "‖Δ‖", "s an edit"],
        lines,
        ["![every score against the layer](sweep.png)", "", f"Last process: {phases}."],
    )


def _cell(score: Estimate) -> str:
    return f"{score.mean:.3f} ({score.low:.3f} – {score.high:.3f})"


if __name__ == "__main__":
    main()
