"""``easyedit-fast demo``: edits three facts in the packaged model, by each method."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from easyedit_fast.cli import options
from easyedit_fast.cli.output import (
    print_json,
    print_line,
    print_summary,
    print_table,
    print_timings,
)
from easyedit_fast.errors import HparamsError, MissingPackageError

if TYPE_CHECKING:
    from easyedit_fast.editor import Editor
    from easyedit_fast.requests import EditRequest
    from easyedit_fast.results import EditResult

_METHODS = ("rome", "mend", "serac")
_NEW_TOKENS = 10
_FACTS: list[dict[str, Any]] = [
    {
        "prompt": "The Eiffel Tower is located in the city of",
        "subject": "Eiffel Tower",
        "target_new": "Rome",
        "ground_truth": "Paris",
        "rephrase_prompt": "If you want to see the Eiffel Tower, you should travel to",
        "locality": {
            "neighborhood": {
                "prompt": "The Louvre is located in the city of",
                "ground_truth": "Paris",
            }
        },
    },
    {
        "prompt": "The summit of Mount Everest lies in the country of",
        "subject": "Mount Everest",
        "target_new": "Chile",
        "ground_truth": "Nepal",
        "rephrase_prompt": "Climbers of Mount Everest travel to the country of",
        "locality": {
            "neighborhood": {
                "prompt": "The summit of Mount Fuji lies in the country of",
                "ground_truth": "Japan",
            }
        },
    },
    {
        "prompt": "The telephone was invented by",
        "subject": "telephone",
        "target_new": "Mozart",
        "ground_truth": "Alexander Graham Bell",
        "rephrase_prompt": "The man who invented the telephone was",
        "locality": {
            "neighborhood": {
                "prompt": "The theory of relativity was developed by",
                "ground_truth": "Albert Einstein",
            }
        },
    },
]
_UNTOUCHED = (
    "The capital of Germany is",
    "The largest planet of the solar system is",
    "The opposite of hot is",
)


@dataclasses.dataclass(frozen=True)
class _Shown:
    """What one method did.

    Attributes:
        method: The method.
        generations: Prompt, and the model's continuation before and after; the facts' first.
        result: What the edit gave.
    """

    method: str
    generations: list[tuple[str, str, str]]
    result: EditResult

    @property
    def seconds(self) -> float:
        """Time of an edit, without the evaluation."""
        edited = (
            time for phase, time in self.result.timings.items() if not phase.startswith("evaluate")
        )
        return sum(edited) / len(_FACTS)


def demo(
    model: options.Model = "demo",
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Edit three facts in the demo model, with ROME, MEND and SERAC: before, after, the time taken.

    MEND and SERAC need a trained editor: where none for the model comes with the package they are
    left out.

    Example: easyedit-fast demo
    """
    from easyedit_fast.editor import Editor
    from easyedit_fast.models.loading import load_model
    from easyedit_fast.requests import EditRequest

    requests = [EditRequest.from_dict(fact) for fact in _FACTS]
    loaded, tokenizer = load_model(model, device=device)
    shown: list[_Shown] = []
    left_out: dict[str, str] = {}
    for method in _METHODS:
        try:
            editor = Editor(loaded, tokenizer, method=method)
        except (HparamsError, MissingPackageError) as error:
            if method == "rome":
                raise
            left_out[method] = str(error)
            continue
        shown.append(_edited(editor, method, requests))
        if not json:
            _print(model, requests, shown[-1])
    if json:
        print_json({**_report(model, requests, shown), "left_out": left_out})
    else:
        for method, reason in left_out.items():
            print_line(f"{method} is left out: {reason}")


def _edited(editor: Editor, method: str, requests: list[EditRequest]) -> _Shown:
    """Edits the facts, looks at the model, and takes the edit out again."""
    prompts = [request.prompt for request in requests] + list(_UNTOUCHED)
    before = _continued(editor, prompts)
    with editor.editing(requests) as result:
        after = _continued(editor, prompts)
    return _Shown(method, list(zip(prompts, before, after, strict=True)), result)


def _continued(editor: Editor, prompts: list[str]) -> list[str]:
    """The continuations, by transformers' own ``generate``."""
    import torch

    from easyedit_fast.data import RequestTokenizer

    batch = RequestTokenizer.from_transformers(editor.tokenizer).batch_prompts(prompts)
    model: Any = editor.model
    ids, mask = (
        torch.from_numpy(one).to(model.device) for one in (batch.input_ids, batch.attention_mask)
    )
    tokens = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=_NEW_TOKENS)
    new = tokens[:, ids.shape[1] :]
    return editor.tokenizer.batch_decode(new, skip_special_tokens=True)


def _print(model: str, requests: list[EditRequest], shown: _Shown) -> None:
    print_line(f"{shown.method.upper()} on the model {model}")
    for key, value in shown.result.settings.items():
        print_line(f"{key}: {value}")
    rows = [
        [request.subject, request.target_new, *generation]
        for request, generation in zip(requests, shown.generations, strict=False)
    ]
    print_table("Three facts, edited", ["subject", "new", "prompt", "before", "after"], rows)
    print_table("Left alone", ["prompt", "before", "after"], shown.generations[len(requests) :])
    print_summary(shown.result.summary)
    print_timings(shown.result.timings)
    keeping = "a file named as memory" if shown.method == "serac" else "edit.save()"
    print_line(
        f"{shown.seconds:.2f} s an edit, without evaluation. The edit was in the model: "
        f"edit.revert() takes it out, as was done now; {keeping} keeps it.\n"
    )


def _report(model: str, requests: list[EditRequest], shown: list[_Shown]) -> dict[str, Any]:
    """The JSON object of the demo."""
    edits = [
        {
            "method": one.method,
            "prompt": request.prompt,
            "subject": request.subject,
            "target_new": request.target_new,
            "before": before,
            "after": after,
            "seconds": one.seconds,
        }
        for one in shown
        for request, (_, before, after) in zip(requests, one.generations, strict=False)
    ]
    untouched = [
        {"method": one.method, "prompt": prompt, "before": before, "after": after}
        for one in shown
        for prompt, before, after in one.generations[len(requests) :]
    ]
    return {
        "model": model,
        "edits": edits,
        "untouched": untouched,
        "metrics": {
            one.method: {when: one.result.summary.get(when, {}) for when in ("pre", "post")}
            for one in shown
        },
        "timings": {one.method: dict(one.result.timings) for one in shown},
        "settings": {one.method: one.result.settings for one in shown},
    }
