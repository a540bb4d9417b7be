r"""How good isolated ROME edits are: success, rephrase and locality, with 95 % intervals.

    python benchmarks/rome_quality.py --data counterfact-edit.json --records 24 \
        --templates templates.json --second-moment second_moment.npz

``--templates`` takes a JSON list, or an object with the list ``templates`` or
``context_templates``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import report

from easyedit_fast import Editor, read_requests
from easyedit_fast.metrics import wilson_interval

_SCORES = {
    "rewrite": ("rewrite_acc",),
    "rephrase": ("rephrase_acc",),
    "locality": ("locality", "neighborhood_acc"),
}


def main() -> None:
    """Parses the options, edits and scores, writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--records", type=int, default=24)
    parser.add_argument(
        "--templates", type=Path, help="context templates; the model's own if left out"
    )
    parser.add_argument("--second-moment", type=Path, help="an .npz; C = I if left out")
    parser.add_argument("--layer", type=int, default=5)
    parser.add_argument("--model", default="demo")
    options = parser.parse_args()
    hparams: dict[str, Any] = {"layers": [options.layer]}
    if options.templates is not None:
        hparams["context_templates"] = str(options.templates)
    if options.second_moment is not None:
        hparams["second_moment"] = str(options.second_moment)
    editor = Editor.from_pretrained(options.model, hparams=hparams, device="cpu")
    result = editor.edit(read_requests(options.data, limit=options.records), isolated=True)
    rows = [
        row
        for name, path in _SCORES.items()
        for row in (
            _row(result.summary, f"{name}, teacher-forced", path),
            _row(result.summary, f"{name}, generated", ("generated", *path)),
        )
    ]
    phases = ", ".join(f"{phase} {seconds:.0f} s" for phase, seconds in result.timings.items())
    editing = sum(s for phase, s in result.timings.items() if not phase.startswith("evaluate"))
    report.write(
        f"rome_quality_{options.records}",
        f"ROME, {options.records} isolated edits of CounterFact",
        f"python benchmarks/rome_quality.py --data counterfact-edit.json --records "
        f"{options.records} --templates … --second-moment …",
        ["score", "before", "after", "95 % interval", "records"],
        rows,
        [
            (
                f"Layer {options.layer}, {'second moment' if options.second_moment else 'C = I'}, "
                f"consistent keys; {editing / options.records:.1f} s an edit without evaluation "
                f"({phases})."
            )
        ],
    )


def _row(summary: dict[str, Any], name: str, path: tuple[str, ...]) -> list[str]:
    before, after = (_leaf(summary[phase], path) for phase in ("pre", "post"))
    assert after is not None
    low, high = wilson_interval(after["mean"], after["count"])
    return [
        name,
        "" if before is None else f"{before['mean']:.3f}",
        f"{after['mean']:.3f}",
        f"{low:.3f} – {high:.3f}",
        str(after["count"]),
    ]


def _leaf(section: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any] | None:
    for part in path:
        section = section.get(part, {})
    return section or None


if __name__ == "__main__":
    main()
