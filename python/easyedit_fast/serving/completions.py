"""Completions and chats: from a request to rows, and from their news to an answer or a stream."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from easyedit_fast.serving.errors import ApiError, api_error
from easyedit_fast.serving.prompts import is_one_prompt
from easyedit_fast.serving.rows import Sampling, Told
from easyedit_fast.serving.running import Receive, Running, unless_gone
from easyedit_fast.serving.schemas import ChatRequest, CompletionRequest, Sampled

if TYPE_CHECKING:
    from easyedit_fast.serving.engine import Engine
    from easyedit_fast.serving.limits import Limits
    from easyedit_fast.serving.prompts import PromptReader

logger = logging.getLogger(__name__)
_DEFAULT_TOKENS = 16  # OpenAI's, of completions


@dataclasses.dataclass(frozen=True)
class Plan:
    """A request, checked.

    Attributes:
        chat: Whether it is a conversation.
        prompts: Tokens of each prompt.
        echoes: What goes before the answers to each prompt.
        samplings: How each prompt is answered.
        n: Answers to each prompt.
        usage: Whether a stream tells the number of tokens.
        about: What is told of it: id, model, time.
    """

    chat: bool
    prompts: list[list[int]]
    echoes: list[str]
    samplings: list[Sampling]
    n: int
    usage: bool
    about: dict[str, Any]

    @property
    def rows(self) -> list[tuple[list[int], Sampling, str]]:
        """The rows: n neighbours a prompt, and what errors call it."""
        field = "field 'messages'" if self.chat else "field 'prompt'"
        several = len(self.prompts) > 1
        names = [f"{field}[{at}]" if several else field for at in range(len(self.prompts))]
        wanted = zip(self.prompts, self.samplings, names, strict=True)
        return [one for one in wanted for _ in range(self.n)]


class Completions:
    """Answers completion and chat requests.

    Attributes:
        model: The name of the model that is served.
    """

    def __init__(self, engine: Engine, prompts: PromptReader, limits: Limits, model: str) -> None:
        """Takes what answers, what reads prompts, the limits, and the model's name."""
        self.model = model
        self._engine, self._prompts, self._limits = engine, prompts, limits

    async def answer(
        self, request: CompletionRequest | ChatRequest, receive: Receive
    ) -> dict[str, Any] | AsyncIterator[str]:
        """The answer as JSON, or a stream of server-sent events.

        Args:
            request: The request.
            receive: ASGI's, by which a client goes away.

        Raises:
            ApiError: The request cannot be used.
            ClientGoneError: The client has gone.
        """
        plan = await asyncio.to_thread(self._plan, request)
        running = Running(self._engine, plan.rows)
        if not request.stream:
            return _whole(plan, await unless_gone(running.whole(), receive))
        events = running.told()
        # What is wrong only with the prompt's edit is told by a status too.
        first = await unless_gone(anext(events), receive)
        return _stream(plan, first, events)

    def _plan(self, request: CompletionRequest | ChatRequest) -> Plan:
        if request.model not in (None, self.model):
            raise ApiError(
                404,
                f"field 'model': there is no model {request.model!r}; this server has "
                f"{self.model!r}",
                param="model",
                code="model_not_found",
            )
        n = request.n or 1
        self._require("n", n, self._limits.n)
        if isinstance(request, ChatRequest):
            asked, default = request.max_completion_tokens or request.max_tokens, None
            prompts = [self._prompts.conversation([one.plain() for one in request.messages])]
            echoes = [""]
        else:
            asked, default = request.max_tokens, _DEFAULT_TOKENS
            prompts, echoes = self._read(request)
        self._require("max_tokens", asked or 1, self._limits.max_tokens)
        chat = isinstance(request, ChatRequest)
        return Plan(
            chat,
            prompts,
            echoes,
            [_sampling(request, self._prompts.room(ids, asked, default)) for ids in prompts],
            n,
            bool(request.stream_options and request.stream_options.include_usage),
            self._about(chat=chat),
        )

    def _read(self, request: CompletionRequest) -> tuple[list[list[int]], list[str]]:
        """Tokens of the prompts, and what goes before the answers to each."""
        asked = request.prompt
        given: list[Any] = [asked] if is_one_prompt(asked) else list(asked)
        self._require("prompt", len(given), self._limits.prompts, "prompts")
        prompts = [self._prompts.tokens(prompt) for prompt in given]
        if not request.echo:
            return prompts, [""] * len(given)
        return prompts, [
            own if isinstance(own, str) else self._prompts.text(ids)
            for own, ids in zip(given, prompts, strict=True)
        ]

    def _require(self, field: str, value: int, limit: int, what: str = "") -> None:
        if value > limit:
            said = f"{value} {what}".strip()
            raise ApiError(
                400,
                f"field {field!r}: {said} is more than {limit}, this server's most",
                param=field,
            )

    def _about(self, *, chat: bool) -> dict[str, Any]:
        return {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": "chat.completion" if chat else "text_completion",
            "created": int(time.time()),
            "model": self.model,
        }


def _sampling(request: Sampled, room: int) -> Sampling:
    stop = request.stop or []
    return Sampling(
        room,
        1.0 if request.temperature is None else request.temperature,
        1.0 if request.top_p is None else request.top_p,
        tuple([stop] if isinstance(stop, str) else stop),
        request.seed,
    )


def _usage(plan: Plan, made: int) -> dict[str, int]:
    read = sum(map(len, plan.prompts))
    return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}


def _route(told: Told) -> dict[str, Any]:
    edit = told.row.route.edit
    return {"edit": None if edit is None else edit.id, "similarity": told.row.route.similarity}


def _whole(plan: Plan, answers: Sequence[tuple[str, Told]]) -> dict[str, Any]:
    choices = []
    for index, (text, told) in enumerate(answers):
        if plan.chat:
            said: dict[str, Any] = {"message": {"role": "assistant", "content": text}}
        else:
            said = {"text": plan.echoes[index // plan.n] + text}
        ending = {"logprobs": None, "finish_reason": told.reason}
        choices.append({"index": index, **said, **ending, **_route(told)})
    made = sum(told.row.made for _, told in answers)
    return {**plan.about, "choices": choices, "usage": _usage(plan, made)}


async def _stream(plan: Plan, first: Told, events: AsyncIterator[Told]) -> AsyncIterator[str]:
    """Server-sent events; an error in the midst of it is the last of them."""
    about = {**plan.about, "object": plan.about["object"] + (".chunk" if plan.chat else "")}
    if plan.usage:
        about["usage"] = None
    begun: set[int] = set()
    rows: dict[int, int] = {}
    try:
        told = first
        while True:
            rows[told.row.index] = told.row.made
            for choice in _pieces(plan, told, begun):
                yield _event({**about, "choices": [choice]})
            told = await anext(events)
    except StopAsyncIteration:
        if plan.usage:
            yield _event({**about, "choices": [], "usage": _usage(plan, sum(rows.values()))})
    except Exception as error:
        answer = api_error(error)
        if answer.status == 500:
            logger.exception("a stream failed")
        yield _event(answer.body())
    finally:
        await events.aclose()  # type: ignore[attr-defined]
    yield "data: [DONE]\n\n"


def _pieces(plan: Plan, told: Told, begun: set[int]) -> list[dict[str, Any]]:
    """The choices of a stream that tell some news, each in a piece of its own."""
    index = told.row.index
    said: list[tuple[dict[str, Any], str | None]] = []
    if index not in begun:
        begun.add(index)
        echo = plan.echoes[index // plan.n]
        if plan.chat:
            said.append(({"delta": {"role": "assistant", "content": ""}}, None))
        elif echo:
            said.append(({"text": echo}, None))
    if not plan.chat:
        said.append(({"text": told.text}, told.reason))
    else:
        if told.text:
            said.append(({"delta": {"content": told.text}}, None))
        if told.reason:
            said.append(({"delta": {}}, told.reason))
    return [
        {"index": index, **piece, "logprobs": None, "finish_reason": reason, **_route(told)}
        for piece, reason in said
    ]


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
