"""The query inside a prompt's tokens: its text, and where an edit's context goes.

A plain prompt is the query. A prompt that the tokenizer's chat template has made holds turns, of
which the last user message is the query; the rest of it says nothing of the edit's scope.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MESSAGES = ("firstquestion", "firstanswer", "secondquestion")


@dataclasses.dataclass(frozen=True)
class Query:
    """What a prompt asks.

    Attributes:
        text: The text that is routed; empty where the prompt is.
        place: Tokens of the prompt that go before a context: a BOS, or all up to the user message.
    """

    text: str
    place: int


@dataclasses.dataclass(frozen=True)
class ChatFormat:
    """How a chat template writes a user's turn.

    Attributes:
        opening: What goes before each user message.
        closing: What goes after the last one, up to where the answer starts.
    """

    opening: str
    closing: str

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> ChatFormat | None:
        """The format of a tokenizer's template; None without one, or where it cannot be told.

        It is read off a conversation of known messages. What goes before both user messages opens
        one; a template that writes the second in another way than the first has no format.
        """
        if not getattr(tokenizer, "chat_template", None):
            return None
        roles = ("user", "assistant", "user")
        messages = [
            {"role": role, "content": text} for role, text in zip(roles, _MESSAGES, strict=True)
        ]
        try:
            text = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except Exception:  # noqa: BLE001  a template is a program, which may raise anything
            return None
        if not isinstance(text, str) or any(text.count(message) != 1 for message in _MESSAGES):
            return None
        first, answer, second = (text.index(message) for message in _MESSAGES)
        opening = _common_end(text[:first], text[answer + len(_MESSAGES[1]) : second])
        closing = text[second + len(_MESSAGES[2]) :]
        return cls(opening, closing) if opening and closing and first < answer < second else None

    def message(self, prompt: str) -> tuple[int, int] | None:
        """The characters [start, end) of the last user message; None where it is no chat prompt.

        Args:
            prompt: The prompt, special tokens included.
        """
        if not prompt.endswith(self.closing):
            return None
        end = len(prompt) - len(self.closing)
        start = prompt.rfind(self.opening, 0, end)
        if start < 0:
            return None
        start += len(self.opening)
        # A closing inside: another turn than the user's is the last.
        return None if self.closing in prompt[start:end] else (start, end)


def _common_end(one: str, other: str) -> str:
    pairs = zip(reversed(one), reversed(other), strict=False)
    common = itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
    return "".join(character for character, _ in common)[::-1]


class QueryReader:
    """Finds the query in prompts of one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Takes the tokenizer; its template is read when the first prompt is."""
        self._tokenizer = tokenizer
        self._known: tuple[object, ChatFormat | None] = (None, None)

    def text(self, prompt: str) -> str:
        """The query of a text."""
        chat = self._format()
        span = chat.message(prompt) if chat else None
        return (prompt[slice(*span)] if span else prompt).strip()

    def read(self, tokens: Sequence[int]) -> Query:
        """The query of a prompt's tokens, pads left out.

        In a chat prompt the context opens the user message, so that it belongs to the user's turn.
        Where no token starts with the message, it goes before the whole prompt.
        """
        chat = self._format()
        if chat:
            prompt = self._decoded(tokens)
            span = chat.message(prompt)
            if span:
                place = self._place(tokens, prompt[: span[0]])
                place = self._after_bos(tokens) if place is None else place
                return Query(prompt[slice(*span)].strip(), place)
        text = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return Query(str(text).strip(), self._after_bos(tokens))

    def _after_bos(self, tokens: Sequence[int]) -> int:
        bos, chat = self._tokenizer.bos_token_id, self._format()
        if bos is None or (chat and str(self._tokenizer.bos_token) in chat.opening):
            return 0  # it opens every turn, and no context may part it from its turn
        return int(list(tokens[:1]) == [bos])

    def _place(self, tokens: Sequence[int], before: str) -> int | None:
        """How many tokens make up the text `before`; None where one of them goes on beyond it."""
        low, high = 0, len(tokens)
        while low < high:
            middle = (low + high) // 2
            if len(self._decoded(tokens[:middle])) < len(before):
                low = middle + 1
            else:
                high = middle
        return low if self._decoded(tokens[:low]) == before else None

    def _decoded(self, tokens: Sequence[int]) -> str:
        text = self._tokenizer.decode(
            list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return str(text)

    def _format(self) -> ChatFormat | None:
        template = getattr(self._tokenizer, "chat_template", None)
        if template != self._known[0]:
            self._known = (template, ChatFormat.of(self._tokenizer))
        return self._known[1]
