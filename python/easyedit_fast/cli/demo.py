"""``easyedit-fast demo``: edits three facts in the packaged model, before everybody's eyes."""

from __future__ import annotations

from typing import Any

from easyedit_fast.cli import options
from easyedit_fast.cli.output import (
    print_json,
    print_line,
    print_summary,
    print_table,
    print_timings,
)

_METHOD = "rome"
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


def demo(
    model: options.Model = "demo",
    device: options.Device = None,
    json: options.Json = False,
) -> None:
    """Edit three facts in the demo model with ROME, and show before, after and the time taken.

    Example: easyedit-fast demo
    """
    from easyedit_fast.editor import Editor
    from easyedit_fast.evaluation import continue_greedily
    from easyedit_fast.requests import EditRequest

    requests = [EditRequest.from_dict(fact) for fact in _FACTS]
    prompts = [request.prompt for request in requests] + list(_UNTOUCHED)
    editor = Editor.from_pretrained(model, method=_METHOD, device=device)
    lengths = [_NEW_TOKENS] * len(prompts)
    before = continue_greedily(editor.model, editor.tokenizer, prompts, lengths)
    result = editor.edit(requests)
    after = continue_greedily(editor.model, editor.tokenizer, prompts, lengths)
    seconds = sum(
        time for phase, time in result.timings.items() if not phase.startswith("evaluate")
    )
    generations = list(zip(prompts, before, after, strict=True))
    if json:
        print_json(_report(model, requests, generations, seconds, result))
        return
    print_line(f"model: {model}")
    for key, value in result.settings.items():
        print_line(f"{key}: {value}")
    rows = [
        [request.subject, request.target_new, *generation]
        for request, generation in zip(requests, generations, strict=False)
    ]
    print_table("Three facts, edited", ["subject", "new", "prompt", "before", "after"], rows)
    print_table("Left alone", ["prompt", "before", "after"], generations[len(requests) :])
    print_summary(result.summary)
    print_timings(result.timings)
    print_line(
        f"{seconds / len(requests):.2f} s an edit, without evaluation; the edit is in the model: "
        "edit.revert() takes it out, edit.save() keeps it."
    )


def _report(
    model: str,
    requests: list[Any],
    generations: list[tuple[str, str, str]],
    seconds: float,
    result: Any,
) -> dict[str, Any]:
    """The JSON object of the demo."""
    edits = [
        {
            "method": _METHOD,
            "prompt": request.prompt,
            "subject": request.subject,
            "target_new": request.target_new,
            "before": before,
            "after": after,
            "seconds": seconds / len(requests),
        }
        for request, (_, before, after) in zip(requests, generations, strict=False)
    ]
    untouched = [
        {"prompt": prompt, "before": before, "after": after}
        for prompt, before, after in generations[len(requests) :]
    ]
    return {
        "model": model,
        "edits": edits,
        "untouched": untouched,
        "metrics": {when: result.summary.get(when, {}) for when in ("pre", "post")},
        "timings": dict(result.timings),
        "settings": result.settings,
    }
