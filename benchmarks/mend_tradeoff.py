"""Rewrite against locality over the size of MEND's steps, and an editor of one of these sizes.

    python benchmarks/mend_tradeoff.py --archive run/editor.safetensors
        --data counterfact-val.json --offset 200 --records 300 --write 1.08 editor.safetensors

An editor's step sizes can be scaled after its training (``lr_scale``): larger steps make edits
hold and reach further, and disturb more beside them. Records are edited alone, and scored
teacher-forced.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import report

from easyedit_fast import Editor, read_requests
from easyedit_fast.mend.editor_files import read_editor, write_editor
from easyedit_fast.models.loading import load_model

SCALES = "0.7,0.85,1,1.08,1.2,1.4"


def main() -> None:
    """Parses the options, edits at each size, writes the table and the editor."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--archive", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--offset", type=int, default=200)
    parser.add_argument("--records", type=int, default=300)
    parser.add_argument("--scales", default=SCALES)
    parser.add_argument("--write", nargs=2, metavar=("SCALE", "FILE"))
    options = parser.parse_args()
    if options.scales:
        measure(options)
    if options.write:
        scale, path = float(options.write[0]), Path(options.write[1])
        editor = read_editor(options.archive)
        hparams = {**editor.hparams, "lr_scale": scale}
        write_editor(path, dataclasses.replace(editor, hparams=hparams))


def measure(options: argparse.Namespace) -> None:
    """Writes the table."""
    model, tokenizer = load_model("demo", device="cpu")
    requests = read_requests(options.data, offset=options.offset, limit=options.records)
    rows = []
    for scale in map(float, options.scales.split(",")):
        hparams = {"archive": options.archive, "lr_scale": scale}
        editor = Editor(model, tokenizer, method="mend", hparams=hparams)
        summary = editor.edit(requests, isolated=True, generate=False).summary["post"]
        leaves = (
            summary["rewrite_acc"],
            summary["rephrase_acc"],
            summary["locality"]["neighborhood_acc"],
        )
        rows.append([f"{scale:g}", *(f"{leaf['mean']:.3f}" for leaf in leaves)])
        print(rows[-1], flush=True)
    report.write(
        "mend_tradeoff",
        "MEND: the size of the steps",
        f"python benchmarks/mend_tradeoff.py --archive run/editor.safetensors --data "
        f"{options.data.name} --offset {options.offset} --records {options.records} "
        f"--scales {options.scales}",
        ["lr_scale", "rewrite", "rephrase", "locality"],
        rows,
        [f"{len(requests)} records, edited alone; teacher-forced."],
    )


if __name__ == "__main__":
    main()
