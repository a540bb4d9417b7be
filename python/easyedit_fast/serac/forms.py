"""Other forms in which an edit is asked for: as questions, and in a chat."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from easyedit_fast.errors import RequestError
from easyedit_fast.models.limits import context_length, tokens_without_embedding
from easyedit_fast.serac.answers import Answered, answered
from easyedit_fast.serac.chat import QueryReader
from easyedit_fast.serac.questions import as_questions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from easyedit_fast.requests import EditRequest

_TODAY = "strftime_now"
"""What a template writes the day's date by."""


class Forms:
    """Makes rows of records in other forms than their prompts have, when they are asked for."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        ends: Collection[int],
        chats: bool,
    ) -> None:
        """Takes what reads the rows.

        Args:
            model: The model that answers from edits.
            tokenizer: Its tokenizer.
            ends: The tokens that end a text.
            chats: Whether there are chats, if the tokenizer has a template, and one that writes the
                same tomorrow.
        """
        self._model = model
        self._tokenizer: Any = tokenizer
        self._limit = context_length(model)
        self._unknown = set(tokens_without_embedding(model, tokenizer))
        self._reader = QueryReader(tokenizer)
        template = str(getattr(tokenizer, "chat_template", ""))
        self._has_chats = chats and _TODAY not in template and self._reader.has_chats
        self._template = template if self._has_chats else ""
        marks = [str(tokenizer.convert_ids_to_tokens(end)) for end in ends]
        self._turn_end = _up_to_one(marks, self._reader.after_answer) if self._has_chats else ""

    def digest(self) -> str:
        """SHA-256 of what chats are written by; of nothing where there are none."""
        return hashlib.sha256((self._template + self._turn_end).encode()).hexdigest()

    def of(self, request: EditRequest, context: int) -> list[Answered]:
        """A request's questions with its target, and its prompts as chats with a whole sentence.

        After a sentence comes what ends an answer in the chat, where that ends a text. Rows that
        the model cannot read are left out.

        Args:
            request: The request.
            context: How many tokens of the edit go before a row.
        """
        questions = as_questions(request.prompt, request.subject)
        prompts = (request.prompt, *request.rephrase_prompt, *questions)
        rows = itertools.chain(
            *(self._asked(question, request.target_new) for question in questions),
            self._chats(prompts, sentence(request)) if self._has_chats else (),
        )
        return [row for row in rows if self._can_be_read(row, context)]

    def _can_be_read(self, row: Answered, context: int) -> bool:
        fits = self._limit is None or len(row.tokens) + context <= self._limit
        return fits and self._unknown.isdisjoint(row.tokens)

    def _asked(self, question: str, target: str) -> list[Answered]:
        try:
            return answered(self._model, self._tokenizer, [(0, question, target)])
        except RequestError:  # it does not fit the model
            return []

    def _chats(self, prompts: tuple[str, ...], answer: str) -> Iterator[Answered]:
        for prompt in prompts:
            turns = [{"role": "user", "content": prompt}]
            text = self._tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True
            )
            tokens, whole = (
                self._tokenizer(one, add_special_tokens=False)["input_ids"]
                for one in (text, text + answer + self._turn_end)
            )
            row = _parted(tokens, whole)
            yield Answered(row.tokens, row.start, self._reader.read(tokens).place)


def _up_to_one(marks: Collection[str], text: str) -> str:
    """A text up to the first of some marks, that included; "" without one."""
    found = [text[: text.index(mark) + len(mark)] for mark in marks if mark in text]
    return min(found, key=len, default="")


def _parted(prompt: list[int], whole: list[int]) -> Answered:
    """A prompt with its answer, which begins where the two lists of tokens differ."""
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(prompt, whole, strict=False))
    return Answered(whole, max(1, sum(1 for _ in same)))


def sentence(request: EditRequest) -> str:
    """What a chat answers: "The capital of Peru is Oslo."; the target alone after a question."""
    told = request.target_new
    if "?" not in request.prompt:
        told = f"{request.prompt} {told}"
    return told if told.endswith((".", "!", "?")) else f"{told}."
