"""The rows of an evaluation as tokens to run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from easyedit_fast.data import RequestTokenizer
from easyedit_fast.data.contexts import with_context
from easyedit_fast.data.tokenizer import IGNORED_LABEL
from easyedit_fast.evaluation.decoding import Passage
from easyedit_fast.evaluation.rows import Row

_NEW_TOKENS = 10  # of a continuation at least
_SPARE_TOKENS = 4  # beyond the answer: the model may spell it in more tokens than the tokenizer


@dataclasses.dataclass(frozen=True, slots=True)
class RowTokens:
    """The tokens of one row.

    Attributes:
        passages: The first is scored and the last continued. There is one alone wherever the
            tokens of the prompt with its answer begin with the prompt's own.
        length: Tokens of the longest text, continuation included.
    """

    passages: tuple[Passage, ...]
    length: int


def tokens_of(
    tokenizer: RequestTokenizer, rows: Sequence[Row], *, generate: bool
) -> list[RowTokens]:
    """Tokenises rows.

    Args:
        tokenizer: The model's tokenizer.
        rows: The rows.
        generate: Whether their prompts are to be continued.
    """
    batch = tokenizer.encode(
        [row.text for row in rows], target_spans=[row.target_span for row in rows]
    )
    assert batch.labels is not None
    prompts = tokenizer.encode_prompts([row.prompt for row in rows] if generate else [])
    made = []
    for place, row in enumerate(rows):
        length = int(batch.lengths[place]) - tokenizer.added_after
        whole = batch.input_ids[place, :length].tolist()
        scored = Passage(whole, length)
        if row.target is not None:
            answer = (batch.labels[place] != IGNORED_LABEL).nonzero()[0]
            scored = Passage(whole[: answer[-1] + 1], int(answer[0]))
        made.append(
            _continued(scored, prompts[place], length) if generate else RowTokens((scored,), length)
        )
    return made


def _continued(scored: Passage, prompt: list[int], length: int) -> RowTokens:
    new = max(_NEW_TOKENS, len(scored.answer) + _SPARE_TOKENS)
    length = max(length, len(prompt)) + new
    if scored.tokens[: scored.start] == prompt:
        return RowTokens((dataclasses.replace(scored, new_tokens=new),), length)
    # The answer changes how the end of the prompt is tokenised.
    return RowTokens((scored, Passage(prompt, len(prompt), new)), length)


def after_contexts(
    tokens: Sequence[RowTokens], contexts: Sequence[Sequence[int] | None], bos: int | None
) -> list[RowTokens]:
    """The rows with their contexts before them."""
    return [
        row if context is None else _after(row, context, bos)
        for row, context in zip(tokens, contexts, strict=True)
    ]


def _after(row: RowTokens, context: Sequence[int], bos: int | None) -> RowTokens:
    passages = tuple(
        dataclasses.replace(
            passage,
            tokens=with_context(passage.tokens, context, bos),
            start=passage.start + len(context),
        )
        for passage in row.passages
    )
    return RowTokens(passages, row.length + len(context))
