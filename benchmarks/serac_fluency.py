r"""How SERAC answers at length: what follows its targets, and what it says to questions.

    python benchmarks/serac_fluency.py --data counterfact-edit.json --records 200

SERAC has all records in one memory; of ROME and MEND each record has a model of its own. Fluency is
the n-gram entropy of a text of 100 tokens that begins with the prompt, as the field measures it.
Beside it, how many greedy answers say the target over and over: more than twice in 30 tokens. Then
SERAC is asked questions in words of their own, and in chats: of those that go to their edit, how
many are answered by it, and how many of the answers end by themselves.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import report
from facts import known

from easyedit_fast import Editor, EditRequest, read_requests
from easyedit_fast.evaluation import Evaluator
from easyedit_fast.metrics import mean_interval

_TOKENS = 30
_OFTEN = 3
_AT_ONCE = 16
_EXAMPLES = 6


def main() -> None:
    """Parses the options, generates, writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--records", type=int, default=200)
    parser.add_argument("--archive", type=Path, help="a scope and adapter of ours")
    options = parser.parse_args()
    read = read_requests(options.data, limit=options.records)
    requests = list({request.prompt: request for request in read}.values())
    hparams = {} if options.archive is None else {"archive": str(options.archive)}
    editor = Editor.from_pretrained("demo", method="serac", hparams=hparams, device="cpu")
    rows, texts = serac_rows(editor, requests)
    command = (
        f"python benchmarks/serac_fluency.py --data {options.data.name} --records {options.records}"
    )
    report.write(
        "serac_questions",
        "SERAC: questions in words of their own, and chats",
        command,
        [
            "asked",
            "of them routed to their edit",
            "of these the target is said",
            f"the answer ends within {_TOKENS} tokens",
        ],
        question_rows(editor, requests),
        [f"{len(requests)} edits in the memory; greedy answers of {_TOKENS} tokens."],
    )
    editor.method.close()
    for method in ("rome", "mend"):
        own = Editor.from_pretrained("demo", method=method, device="cpu")
        metrics = own.edit(requests, isolated=True, generate=False, fluency=True).metrics
        rows.append([f"{own.method.name}, isolated", fluency([one["post"] for one in metrics]), ""])
    report.write(
        "serac_fluency",
        "SERAC: what follows an edited answer",
        command,
        ["model", "n-gram entropy, bits", f"target said {_OFTEN} times or more"],
        rows,
        [
            f"{len(requests)} records; means with 95 % intervals. SERAC's first answers:",
            "",
            *(f"- {one.prompt} **{text.strip()}**" for one, text in texts[:_EXAMPLES]),
        ],
    )


def serac_rows(
    editor: Editor, requests: Sequence[EditRequest]
) -> tuple[list[list[str]], list[tuple[EditRequest, str]]]:
    """The rows of the unedited model and of SERAC, and SERAC's answers."""
    prompts = [request.prompt for request in requests]
    told = [f"{request.prompt} {request.target_new}" for request in requests]
    evaluator = Evaluator(editor.method.base, editor.tokenizer)
    plain = evaluator.score(requests, generate=False, fluency=True)
    before, _ = answers(editor, told)  # the memory is empty
    editor.method.memory.add(requests)
    routing = editor.method.routing(None)
    edited = evaluator.score(requests, generate=False, fluency=True, routing=routing)
    after, _ = answers(editor, prompts)
    wanted = [request.target_new for request in requests]
    rows = [
        ["unedited", fluency(plain), ""],
        ["unedited, after the prompt with its target", "", often(before, wanted, 1)],
        [f"SERAC, {len(requests)} in the memory", fluency(edited), often(after, wanted)],
    ]
    return rows, list(zip(requests, after, strict=True))


def question_rows(editor: Editor, requests: Sequence[EditRequest]) -> list[list[str]]:
    """What is answered to questions, as plain texts and in chats; the memory holds the edits."""
    pairs = known(list(requests))
    owners = [request for request, _ in pairs]
    questions = [fact.about(request.subject) for request, fact in pairs]
    kinds = {
        "questions": (questions, owners),
        "questions, in a chat": ([in_chat(editor, text) for text in questions], owners),
        "rewrite prompts, in a chat": ([in_chat(editor, one.prompt) for one in requests], requests),
    }
    return [[name, *answered(editor, *asked)] for name, asked in kinds.items()]


def in_chat(editor: Editor, text: str) -> str:
    """A user's message as the chat template has it."""
    turns = [{"role": "user", "content": text}]
    tokenizer: Any = editor.tokenizer
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def answered(
    editor: Editor, prompts: Sequence[str], owners: Sequence[EditRequest]
) -> tuple[str, str, str]:
    """How many prompts go to their edit, and of these: answered by its target, and ended."""
    routes = editor.model.routes(list(prompts))
    own = [
        (prompt, request)
        for prompt, request, route in zip(prompts, owners, routes, strict=True)
        if route.edit is not None and route.edit.request.prompt == request.prompt
    ]
    texts, ended = answers(editor, [prompt for prompt, _ in own])
    said = [
        request.target_new.casefold() in text.casefold()
        for (_, request), text in zip(own, texts, strict=True)
    ]
    return (
        f"{len(own)} of {len(prompts)}",
        f"{sum(said)} of {len(own)}",
        f"{sum(ended)} of {len(own)}",
    )


def answers(editor: Editor, prompts: Sequence[str]) -> tuple[list[str], list[bool]]:
    """Greedy continuations, and which of them the model has ended."""
    found: list[str] = []
    ended: list[bool] = []
    for first in range(0, len(prompts), _AT_ONCE):
        batch = editor.tokenizer(
            list(prompts[first : first + _AT_ONCE]),
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=False,
        )
        whole = editor.model.generate(**batch, max_new_tokens=_TOKENS, do_sample=False)
        new = whole[:, batch["input_ids"].shape[1] :]
        found += editor.tokenizer.batch_decode(new, skip_special_tokens=True)
        ended += (new == editor.tokenizer.eos_token_id).any(dim=1).tolist()
    return found, ended


def fluency(scores: Sequence[dict[str, Any]]) -> str:
    """The mean n-gram entropy, and its interval."""
    mean = mean_interval([one["fluency"]["ngram_entropy"] for one in scores])
    return f"{mean.mean:.2f} ({mean.low:.2f} – {mean.high:.2f})"


def often(texts: Sequence[str], targets: Sequence[str], said: int = 0) -> str:
    """How many texts say their target over and over; it was said so many times before."""
    counts = [text.count(one) + said for text, one in zip(texts, targets, strict=True)]
    return f"{sum(count >= _OFTEN for count in counts)} of {len(texts)}"


if __name__ == "__main__":
    main()
