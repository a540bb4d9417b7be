"""Other forms in which an edit is asked for: as questions, and in a chat."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from easyedit_fast.models.limits import context_length
from easyedit_fast.serac.answers import Answered
from easyedit_fast.serac.chat import QueryReader
from easyedit_fast.serac.questions import as_questions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from easyedit_fast.requests import EditRequest


class Forms:
    """Makes rows of records in other forms than their prompts have, when they are asked for."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Takes what reads the rows.

        Args:
            model: The model that answers from edits.
            tokenizer: Its tokenizer; without a chat template there are no chats.
        """
        self._tokenizer: Any = tokenizer
        self._limit = context_length(model)
        self._reader = QueryReader(tokenizer)

    def of(self, request: EditRequest, context: int) -> list[Answered]:
        """A request's questions with its target, and its prompts as chats with a whole sentence.

        Args:
            request: The request.
            context: How many tokens of the edit go before a row; what is then too long is left out.
        """
        questions = as_questions(request.prompt, request.subject)
        prompts = (request.prompt, *request.rephrase_prompt, *questions)
        rows = itertools.chain(
            (self._asked(question, request.target_new) for question in questions),
            self._chats(prompts, sentence(request)),
        )
        most = None if self._limit is None else self._limit - context
        return [row for row in rows if most is None or len(row.tokens) <= most]

    def _asked(self, question: str, target: str) -> Answered:
        prompt = self._tokenizer(question)["input_ids"]
        whole = self._tokenizer(f"{question} {target}")["input_ids"]
        # The end of the text is no part of a prompt, where a tokenizer puts one.
        same = itertools.takewhile(
            lambda pair: pair[0] == pair[1], zip(prompt, whole, strict=False)
        )
        return Answered(whole, max(1, sum(1 for _ in same)))

    def _chats(self, prompts: tuple[str, ...], answer: str) -> Iterator[Answered]:
        if not self._reader.has_chats:
            return
        told = self._tokenizer(answer, add_special_tokens=False)["input_ids"]
        for prompt in prompts:
            turns = [{"role": "user", "content": prompt}]
            text = self._tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True
            )
            tokens = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            yield Answered([*tokens, *told], len(tokens), self._reader.read(tokens).place)


def sentence(request: EditRequest) -> str:
    """What a chat answers: "The capital of Peru is Oslo."; the target alone after a question."""
    if "?" in request.prompt:
        return f"{request.target_new}."
    return f"{request.prompt} {request.target_new}."
