"""The query inside a prompt's tokens: its text, and where an edit's context goes.

A plain prompt is the query. A prompt that the tokenizer's chat template has made holds turns, of
which the last user message is the query; the rest of it says nothing of the edit's scope.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FIRST, _ANSWER, _SECOND = "firstquestion", "firstanswer", "secondquestion"
_SYSTEM, _FOUND = "systemwords", "foundbytool"
_CALL = {"type": "function", "id": "call00001", "function": {"name": "look", "arguments": {}}}
_VARIANTS: tuple[Mapping[str, bool], ...] = (
    {},
    *({name: on} for name in ("enable_thinking", "thinking") for on in (False, True)),
)
"""What users tell templates that begin the answer with thoughts, or with an empty block of them."""

_Render = Callable[..., "str | None"]


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
        closings: What may go after the last one, the longest first: the end of the turn, and the
            beginning of the answer with and without thoughts, or neither.
        later: What is in no user message, so that another turn is the last where it comes after an
            opening.
        after_answer: What goes between an answer and the next user message.
        system: What goes around a system message that is written into a user's turn, or None.
        tool: What begins a tool's message that is written as a user's turn, or None.
    """

    opening: str
    closings: tuple[str, ...]
    later: tuple[str, ...]
    after_answer: str
    system: tuple[str, str] | None = None
    tool: str | None = None

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, *, decoded: bool = False) -> ChatFormat | None:
        """The format of a tokenizer's template; None without one, or where it cannot be told.

        It is read off conversations of known messages. What goes before both user messages opens
        one; a template that writes the second in another way than the first has no format.

        Args:
            tokenizer: The tokenizer.
            decoded: Whether of conversations that were tokenised and decoded again: some
                tokenizers have other spaces then.
        """
        if not getattr(tokenizer, "chat_template", None):
            return None
        render = _renderer(tokenizer, decoded=decoded)
        asked = [_said("user", _FIRST), _said("assistant", _ANSWER), _said("user", _SECOND)]
        text = render(asked)
        if text is None or any(text.count(one) != 1 for one in (_FIRST, _ANSWER, _SECOND)):
            return None
        first, answer, second = (text.index(one) for one in (_FIRST, _ANSWER, _SECOND))
        if not first < answer < second:
            return None
        after_answer = text[answer + len(_ANSWER) : second]
        opening = _common_end(text[:first], after_answer)
        closings = _closings(text, (render(asked, **own) for own in _ways()))
        if not opening or not closings:
            return None
        reply = text[first + len(_FIRST) : answer]
        later = tuple(mark for mark in (reply, _common_start(closings).strip()) if mark.strip())
        around = (_system(render, opening), _tool(render, opening))
        return cls(opening, closings, later, after_answer, *around)

    def message(self, prompt: str) -> tuple[int, int] | None:
        """The characters [start, end) of the last user message; None where it is no chat prompt.

        None too where another message is the last: an answer, or what a tool has found.

        Args:
            prompt: The prompt, special tokens included.
        """
        closing = next((one for one in self.closings if prompt.endswith(one)), None)
        if closing is None:
            return None
        end = len(prompt) - len(closing)
        start = prompt.rfind(self.opening, 0, end)
        if start < 0:
            return None
        start += len(self.opening)
        if self.system is not None and prompt.startswith(self.system[0], start):
            separator = prompt.find(self.system[1], start, end)
            start = start if separator < 0 else separator + len(self.system[1])
        is_tools = self.tool is not None and prompt.startswith(self.tool, start)
        if is_tools or any(mark in prompt[start:end] for mark in self.later):
            return None
        return start, end


def _said(role: str, text: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": text, **more}


def _renderer(tokenizer: PreTrainedTokenizerBase, *, decoded: bool) -> _Render:
    """Writes a conversation by a template, with a beginning of the answer unless told otherwise."""

    def render(messages: Sequence[Mapping[str, Any]], **options: Any) -> str | None:
        options = {"add_generation_prompt": True, "tokenize": False, **options}
        try:
            text = tokenizer.apply_chat_template([dict(one) for one in messages], **options)
        except Exception:  # noqa: BLE001  a template is a program, which may raise anything
            return None
        if not isinstance(text, str):
            return None
        if not decoded:
            return text
        return _decode(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"])

    return render


def _ways() -> list[dict[str, bool]]:
    """The ways in which users have a template end a prompt."""
    return [
        {"add_generation_prompt": answer, **variant}
        for answer in (True, False)
        for variant in _VARIANTS
    ]


def _closings(text: str, others: Iterable[str | None]) -> tuple[str, ...]:
    """What goes after the last message in the ways to write a conversation, the longest first.

    Empty where the template does not tell where an answer begins.
    """
    ends = [
        one.rpartition(_SECOND)[2]
        for one in (text, *others)
        if one is not None and one.count(_SECOND) == 1
    ]
    return tuple(sorted({*ends} - {""}, key=len, reverse=True)) if ends[0] else ()


def _system(render: _Render, opening: str) -> tuple[str, str] | None:
    """What goes around a system message inside a user's turn, where it is marked on both sides."""
    text = render([_said("system", _SYSTEM), _said("user", _FIRST)]) or ""
    before, found, after = text.partition(_SYSTEM)
    _, opened, mark = before.rpartition(opening)
    separator = after.partition(_FIRST)[0]
    if not found or not opened or opening in separator:
        return None
    return (mark, separator) if mark.strip() and separator.strip() else None


def _tool(render: _Render, opening: str) -> str | None:
    """What begins a tool's message, where it is written as a user's turn."""
    for answer in (_said("assistant", "", tool_calls=[_CALL]), _said("assistant", _ANSWER)):
        found = _said("tool", _FOUND, name="look", tool_call_id=_CALL["id"])
        text = render([_said("user", _FIRST), answer, found])
        if text is not None and text.count(_FOUND) == 1:
            mark = text.partition(_FOUND)[0].rpartition(opening)[2]
            return mark if mark and _FIRST not in mark else None
    return None


def _common_end(one: str, other: str) -> str:
    return _common_start([one[::-1], other[::-1]])[::-1]


def _common_start(texts: Sequence[str]) -> str:
    same = itertools.takewhile(lambda own: len(set(own)) == 1, zip(*texts, strict=False))
    return "".join(own[0] for own in same)


def _decode(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int]) -> str:
    text = tokenizer.decode(
        list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False
    )
    return str(text)


class QueryReader:
    """Finds the query in prompts of one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Takes the tokenizer; its template is read when the first prompt is."""
        self._tokenizer = tokenizer
        self._known: tuple[object, list[ChatFormat]] = (None, [])

    @property
    def has_chats(self) -> bool:
        """Whether prompts may be of a chat template that is understood."""
        return bool(self._formats())

    @property
    def after_answer(self) -> str:
        """What the template writes between an answer and the next user message; "" without one."""
        return self._formats()[0].after_answer if self.has_chats else ""

    def text(self, prompt: str) -> str:
        """The query of a text."""
        span = self._span(prompt)
        return (prompt[slice(*span)] if span else prompt).strip()

    def read(self, tokens: Sequence[int]) -> Query:
        """The query of a prompt's tokens, pads left out.

        In a chat prompt the context opens the user message, so that it belongs to the user's turn.
        Where no token starts with the message, it goes before the whole prompt.
        """
        if self._formats():
            prompt = _decode(self._tokenizer, tokens)
            span = self._span(prompt)
            if span:
                place = self._place(tokens, prompt[: span[0]])
                place = self._after_bos(tokens) if place is None else place
                return Query(prompt[slice(*span)].strip(), place)
        text = self._tokenizer.decode(list(tokens), skip_special_tokens=True)
        return Query(str(text).strip(), self._after_bos(tokens))

    def _span(self, prompt: str) -> tuple[int, int] | None:
        spans = (chat.message(prompt) for chat in self._formats())
        return next((span for span in spans if span), None)

    def _after_bos(self, tokens: Sequence[int]) -> int:
        bos = self._tokenizer.bos_token_id
        opens = any(str(self._tokenizer.bos_token) in chat.opening for chat in self._formats())
        if bos is None or opens:
            return 0  # it opens every turn, and no context may part it from its turn
        return int(list(tokens[:1]) == [bos])

    def _place(self, tokens: Sequence[int], before: str) -> int | None:
        """How many tokens make up the text `before`; None where one of them goes on beyond it.

        The space that ends the text may be the beginning of the next token.
        """
        low, high = 0, len(tokens)
        while low < high:
            middle = (low + high) // 2
            if len(_decode(self._tokenizer, tokens[:middle])) < len(before):
                low = middle + 1
            else:
                high = middle
        if _decode(self._tokenizer, tokens[:low]) == before:
            return low
        shorter = _decode(self._tokenizer, tokens[: low - 1]) if low else ""
        return low - 1 if shorter and shorter.rstrip(" ") == before.rstrip(" ") else None

    def _formats(self) -> list[ChatFormat]:
        """How the template's prompts read, and how they do where they were tokens meanwhile."""
        template = getattr(self._tokenizer, "chat_template", None)
        if template != self._known[0]:
            found = [ChatFormat.of(self._tokenizer, decoded=decoded) for decoded in (False, True)]
            self._known = (template, list(dict.fromkeys(filter(None, found))))
        return self._known[1]
