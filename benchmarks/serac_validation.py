r"""What a validation says of the SERAC parts that come with the package, by its logged names.

    python benchmarks/serac_validation.py counterfact-edit.json:0:500 counterfact-edit.json:0:2000 \
        zsre_mend_train.json:600:800 --data DIR

Each argument is a file and the records of it that are in one memory; all of them are asked. The
perplexities are of the locality prompts' true answers, before the edits and after.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import report

from easyedit_fast import Editor, read_requests
from easyedit_fast.serac.training import serac_trainee

_NAMES = (
    "loss/total_val",
    "loss/scope_val",
    "loss/edit_val",
    "loss/loc_val",
    "perplexity/pre_val",
    "perplexity/post_val",
    "acc/pre_val",
    "acc/post_val",
    "n_tokens/pre_val",
    "n_tokens/post_val",
    "edit/acc_val",
    "rephrase/acc_val",
    "locality/acc_val",
    "time/edit_val",
)


def main() -> None:
    """Parses the options, validates, writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("records", nargs="+", metavar="FILE:FIRST:LAST")
    parser.add_argument("--data", type=Path, required=True, help="folder of the files")
    options = parser.parse_args()
    found = {given: validated(options.data, given) for given in options.records}
    report.write(
        "serac_validation",
        "SERAC: the values of a validation",
        f"python benchmarks/serac_validation.py {' '.join(options.records)} --data DIR",
        ["value", *(f"{given}, {len_} records" for given, (len_, _) in found.items())],
        [[name, *(f"{values[name]:.4g}" for _, values in found.values())] for name in _NAMES],
        ["docs/serac.md says what each value is. The model is float32."],
    )


def validated(folder: Path, given: str) -> tuple[int, dict[str, float]]:
    """How many records a memory holds, and the values with these."""
    name, first, last = given.rsplit(":", 2)
    editor = Editor.from_pretrained("demo", method="serac", device="cpu")
    hparams = {"parts": "counterfactual", "archive": editor.method.hparams.archive}
    editor.method.close()
    read = read_requests(
        folder / name, offset=int(first), limit=int(last) - int(first), on_error="skip"
    )
    requests = list({request.prompt: request for request in read}.values())
    trainee, _ = serac_trainee(
        editor.method.base,
        editor.tokenizer,
        requests[:1],
        requests,
        hparams={**hparams, "val_steps": None},
    )
    values = trainee.validate()
    print(given, values, flush=True)
    return len(requests), values


if __name__ == "__main__":
    main()
