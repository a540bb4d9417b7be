"""Tokens that come one by one, as pieces of text."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_LEAD = 6
"""Tokens before a new one that settle how it reads, such as whether a space goes before it."""

_LONGEST_LEAD = 16
"""Tokens among which a character begins, so that a lead can."""

_WINDOW = 32
_CUT = "�"
"""What a cut character reads as; a text may hold it too."""

_LATER = (("<0x80>", "Ģ"), ("<0xA0>", "ł"))
"""Bytes of which one may follow any beginning of a character, as vocabularies name them."""

_MOST_MISSING = 3
"""Bytes that complete a character of which there is one."""


class TextPieces:
    """The text of an answer, up to the first of some stop texts.

    A piece never ends inside a character, nor with what may begin a stop text. Joined,
    the pieces are the answer.

    Attributes:
        stopped: Whether a stop text was met.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], stops: Sequence[str]
    ) -> None:
        """Begins after a prompt.

        Args:
            tokenizer: The tokenizer.
            prompt: The prompt's tokens.
            stops: The stop texts.
        """
        self.stopped = False
        self._tokenizer = tokenizer
        self._stops = stops
        self._window = self._lead(prompt) or list(prompt[-_LEAD:])
        self._read = len(self._whole(self._decoded(self._window)))
        self._held = ""

    def add(self, token: int) -> str:
        """Takes a token; gives the text that is sure by now, which may be empty."""
        self._window.append(token)
        text = self._decoded(self._window)
        whole = self._whole(text)
        self._held += whole[self._read :]
        self._read = max(self._read, len(whole))
        if len(self._window) > _WINDOW and whole == text:
            self._window = self._lead(self._window) or self._window
            self._read = len(self._decoded(self._window))
        return self._sure()

    def rest(self) -> str:
        """What is left at the end of the answer; a character that has not come whole is not."""
        held, self._held = self._held, ""
        return held

    def _sure(self) -> str:
        places = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            self.stopped = True
            sure, self._held = self._held[: min(places)], ""
            return sure
        keep = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        end = len(self._held) - keep
        sure, self._held = self._held[:end], self._held[end:]
        return sure

    def _lead(self, tokens: Sequence[int]) -> list[int] | None:
        """The last tokens, from one on that begins a character; None where none of them does.

        Where tokens are bytes, one that is cut off spoils all that follow it in a row.
        """
        for size in range(_LEAD, _LONGEST_LEAD + 1):
            lead = list(tokens[-size:])
            if not self._decoded(lead).startswith(_CUT):
                return lead
        return None

    def _whole(self, text: str) -> str:
        """The window's text without a character at its end that more tokens would complete."""
        if not text.endswith(_CUT):
            return text
        if not self._completions:
            return text.rstrip(_CUT)
        completed = (self._decoded([*self._window, *ids]) for ids in self._completions)
        # Where tokens are bytes, the cut character has spoiled those before it in a row.
        return next((one[:-1] for one in completed if not one.endswith(_CUT)), text)

    @functools.cached_property
    def _completions(self) -> list[list[int]]:
        """Tokens of bytes of which some complete any character; none where they are not known."""
        ids = [id_ for names in _LATER for id_ in self._bytes(names)]
        if len(ids) < len(_LATER):
            return []
        return [[id_, *ids[:1] * more] for more in range(_MOST_MISSING) for id_ in ids]

    def _bytes(self, names: Sequence[str]) -> list[int]:
        """The token of a byte, which alone reads as a cut character; a letter may have its name."""
        ids = [self._tokenizer.convert_tokens_to_ids(name) for name in names]
        known = [id_ for id_ in ids if isinstance(id_, int)]
        return [id_ for id_ in known if self._decoded([id_]) == _CUT][:1]

    def _decoded(self, tokens: list[int]) -> str:
        text = self._tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text)


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text begin a stop text."""
    sizes = range(min(len(text), len(stop) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)
