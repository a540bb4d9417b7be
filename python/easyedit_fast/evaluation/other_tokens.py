"""Rows that a model with another vocabulary answers: in its tokens, and back again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from easyedit_fast.data import RequestTokenizer
from easyedit_fast.evaluation.passages import RowTokens, tokens_of
from easyedit_fast.evaluation.routing import RoutedRows
from easyedit_fast.evaluation.rows import Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_TOKEN = -1
"""In the place of a token that a shorter prediction has not."""


def rows_in_other_tokens(
    routed: RoutedRows, rows: Sequence[Row], tokens: Sequence[RowTokens], *, generate: bool
) -> list[RowTokens]:
    """The rows, of which those that are routed are in the tokens of what answers them.

    Args:
        routed: Which they are.
        rows: The rows.
        tokens: Their tokens.
        generate: Whether their prompts are to be continued.
    """
    places = [place for place, on in enumerate(routed.routed) if on]
    if not places:
        return list(tokens)
    tokenizer = RequestTokenizer.from_transformers(routed.routing.tokenizer)
    others = tokens_of(tokenizer, [rows[place] for place in places], generate=generate)
    return list({**dict(enumerate(tokens)), **dict(zip(places, others, strict=True))}.values())


def prompts_in_other_tokens(
    routed: RoutedRows, texts: Sequence[str], prompts: Sequence[list[int]]
) -> list[list[int]]:
    """As `rows_in_other_tokens`, of prompts alone."""
    tokenizer = RequestTokenizer.from_transformers(routed.routing.tokenizer)
    others = tokenizer.encode_prompts(texts)
    return [
        other if on else own for own, other, on in zip(prompts, others, routed.routed, strict=True)
    ]


def predicted_in(tokenizer: PreTrainedTokenizerBase, row: Row, text: str) -> list[int]:
    """A predicted answer in the tokens that the row's answer has, so that the two can be compared.

    Args:
        tokenizer: Makes the tokens.
        row: The row.
        text: The predicted answer.

    Returns:
        As many tokens as the row's answer has, one where it has none; `NO_TOKEN` fills up.
    """
    known = tokens_of(RequestTokenizer.from_transformers(tokenizer), [row], generate=False)
    count = max(1, len(known[0].passages[0].answer))
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [*ids[:count], *[NO_TOKEN] * (count - len(ids))]
