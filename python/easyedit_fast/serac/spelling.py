"""Words that an encoder does not know, spelled in letters that it does."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

import anyascii

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOO_LONG = re.compile(r"(\S{50})(?=\S)")
"""BERT's tokenizers read no word of more than 100 characters."""


def spelled(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[str]:
    """The texts, with what the tokenizer takes for one unknown word in Latin letters.

    An encoder that sees the same token for every word of another script, or every emoji, cannot
    tell one subject from another.
    """
    unknown = tokenizer.unk_token_id
    if unknown is None or not tokenizer.is_fast:
        return list(texts)
    # Not through the tokenizer itself: its padding would be switched off while others use it.
    read = tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [
        _replaced(
            text,
            [place for id_, place in zip(own.ids, own.offsets, strict=True) if id_ == unknown],
        )
        for text, own in zip(texts, read, strict=True)
    ]


def _replaced(text: str, places: Sequence[tuple[int, int]]) -> str:
    """A text with the words at some places, from first to last, spelled."""
    parts, last = [], 0
    for start, end in places:
        while end < len(text) and unicodedata.category(text[end]).startswith("M"):
            end += 1  # a mark that the tokenizer strips, which tells this word from another
        parts += [text[last:start], _spelling(text[start:end])]
        last = end
    return "".join([*parts, text[last:]])


def _spelling(word: str) -> str:
    """A word in ASCII; one that has no such form is told by its characters' names."""
    letters = anyascii.anyascii(word) or " ".join(
        unicodedata.name(one, f"{ord(one):x}").lower() for one in word
    )
    return _TOO_LONG.sub(r"\1 ", letters)
