"""Prompts as tokens, checked."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from easyedit_fast.data import RequestTokenizer
from easyedit_fast.models.limits import (
    context_length,
    embedding_rows,
    find_token,
    tokens_without_embedding,
)
from easyedit_fast.serac.chat import QueryReader
from easyedit_fast.serving.errors import ApiError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from typing_extensions import TypeIs

    from easyedit_fast.serving.limits import Limits

Prompt = str | Sequence[int]


def is_one_prompt(given: Any) -> TypeIs[str | list[int]]:
    """Whether a field holds a text or token ids, and not several of them or messages."""
    return isinstance(given, str) or isinstance(given[0], int)


class PromptReader:
    """Makes tokens of prompts and of conversations."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, limits: Limits
    ) -> None:
        """Takes the base model and its tokenizer."""
        self._tokenizer = tokenizer
        self._rows = embedding_rows(model)
        self._unknown = tokens_without_embedding(model, tokenizer)
        self._longest = context_length(model)
        self._limits = limits
        self._queries = QueryReader(tokenizer)
        self._native = RequestTokenizer.from_transformers(tokenizer)
        self._lock = threading.Lock()  # a fast tokenizer serves one thread at a time

    def tokens(self, prompt: Prompt, field: str = "prompt") -> list[int]:
        """The tokens of a text, or token ids that are checked.

        Args:
            prompt: The text, or the ids.
            field: The request's field that holds it.

        Raises:
            ApiError: It is empty, too long, or holds tokens that the model does not have.
        """
        if isinstance(prompt, str):
            return self._checked(self._prompt(prompt), field)
        wrong = [token for token in prompt if not 0 <= token < self._rows]
        if wrong:
            raise ApiError(
                400,
                f"field {field!r}: the model has no token {wrong[0]}; ids go from 0 to "
                f"{self._rows - 1}",
                param=field,
            )
        return self._checked(list(prompt), field)

    def conversation(self, messages: list[dict[str, str]], field: str = "messages") -> list[int]:
        """The tokens of a conversation, by the tokenizer's template, up to the answer.

        Args:
            messages: The messages.
            field: The request's field that holds them.

        Raises:
            ApiError: There is no template, or it refuses the messages; and as `tokens`.
        """
        template = getattr(self._tokenizer, "chat_template", None)
        if not template:
            raise ApiError(
                400,
                f"field {field!r}: the model's tokenizer has no chat template; use texts, and "
                "/v1/completions",
                param=field,
            )
        if "developer" not in str(template):
            messages = [_as_system(one) for one in messages]
        try:
            with self._lock:
                text = self._tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True
                )
        except Exception as error:  # noqa: BLE001  a template is a program, which may raise anything
            reason = " ".join(str(error).split())[:200]
            raise ApiError(
                400, f"field {field!r}: the chat template refuses them: {reason}", param=field
            ) from None
        return self._checked(self._rendered(str(text)), field)

    def query(self, tokens: Sequence[int]) -> str:
        """What is routed of a prompt: the user message that ends a conversation, or all of it."""
        return self._queries.read(tokens).text

    def text(self, tokens: Sequence[int]) -> str:
        """The text of token ids."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def room(self, tokens: Sequence[int], asked: int | None, default: int | None) -> int:
        """How many new tokens an answer may have.

        Args:
            tokens: The prompt's.
            asked: As the request says; None: it does not.
            default: Where it does not; None: as many as there is room for.

        Raises:
            ApiError: It is more than the model reads.
        """
        most = self._limits.max_tokens
        left = most if self._longest is None else min(most, self._longest - len(tokens))
        wanted = default if asked is None else asked
        if wanted is None:
            return left
        if asked is None:
            return min(wanted, left)
        if wanted > left:
            raise ApiError(
                400,
                f"field 'max_tokens': the prompt has {len(tokens)} tokens, which leaves room for "
                f"{left}; shorten it, or ask for fewer",
                param="max_tokens",
                code="context_length_exceeded",
            )
        return wanted

    def _prompt(self, text: str) -> list[int]:
        return self._native.encode_prompts([text])[0]

    def _rendered(self, text: str) -> list[int]:
        """Of a text in which the template has written all special tokens."""
        with self._lock:
            found: Any = self._tokenizer(text, add_special_tokens=False)
        ids: list[int] = found["input_ids"]
        return ids

    def _checked(self, tokens: list[int], field: str) -> list[int]:
        if not tokens:
            raise ApiError(
                400,
                f"field {field!r} is empty, and this model begins no text with a token of its "
                "own; give a text",
                param=field,
            )
        found = find_token(np.array([tokens]), self._unknown)
        if found is not None:
            raise ApiError(400, f"field {field!r} {found[2]}", param=field)
        limits = [
            limit
            for limit in (
                self._limits.prompt_tokens,
                None if self._longest is None else self._longest - 1,
            )
            if limit is not None
        ]
        if limits and len(tokens) > min(limits):
            raise ApiError(
                400,
                f"field {field!r} has {len(tokens)} tokens, and {min(limits)} are the most; "
                "shorten it",
                param=field,
                code="context_length_exceeded",
            )
        return tokens


def _as_system(message: dict[str, str]) -> dict[str, str]:
    """A developer's message as a system message, which it is under another name."""
    return {**message, "role": "system"} if message["role"] == "developer" else message
