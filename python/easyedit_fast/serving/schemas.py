"""What requests and answers look like.

Fields and their bounds are what `/openapi.json` shows; the limits of a server are checked later.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError


def _whole(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PydanticCustomError(
            "surrogate", "holds half of a surrogate pair; send whole characters"
        ) from None
    return text


_Item = TypeVar("_Item")
# Of a list's faults the first is told: the event loop waits for the search, and a list may be long.
Items = Annotated[list[_Item], Field(fail_fast=True)]
Several = Annotated[list[_Item], Field(min_length=1, fail_fast=True)]
AnyText = Annotated[str, AfterValidator(_whole)]
Text = Annotated[str, Field(min_length=1), AfterValidator(_whole)]
Count = Annotated[int, Field(ge=1)]
Token = Annotated[int, Field(ge=0)]
Zero = Annotated[float, Field(ge=0, le=0)]
One = Annotated[int, Field(ge=1, le=1)]
EditId = Annotated[int, Field(ge=1, lt=1 << 63)]
PlainText = Annotated[dict[Literal["type"], Literal["text"]], Field(min_length=1)]

ADVICE = {
    "prompt": "must be a text, texts, token ids, or lists of token ids, and not empty",
    "prompts": "must be a list of texts, token ids or conversations, and not empty",
    "stop": "must be a text, or at most 4 texts, none of them empty",
    "presence_penalty": "is not supported; leave it out",
    "frequency_penalty": "is not supported; leave it out",
    "best_of": "is not supported; ask for n answers, and choose among them",
    "suffix": "is not supported; leave it out",
    "logprobs": "is not supported; leave it out",
    "top_logprobs": "is not supported; leave it out",
    "logit_bias": "is not supported; leave it out",
    "response_format": "must be {'type': 'text'}, or left out",
}
"""What is said of a field that cannot be used, of all requests but edits."""


class Strict(BaseModel):
    """A request's object: unknown fields are refused, and a text is no number."""

    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(Strict):
    """How a stream is told.

    Attributes:
        include_usage: Whether its last piece counts the tokens.
    """

    include_usage: bool = False


class Sampled(Strict):
    """What completions and chats have in common; as OpenAI has it."""

    model: str | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Count | None = None
    stop: Text | Annotated[Items[Text], Field(max_length=4)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)] | None = None
    user: str | None = None
    presence_penalty: Zero | None = None
    frequency_penalty: Zero | None = None
    logit_bias: None = None


class CompletionRequest(Sampled):
    """``POST /v1/completions``."""

    prompt: AnyText | Several[AnyText] | Several[Token] | Several[Several[Token]]
    max_tokens: Count | None = None
    echo: bool | None = None
    suffix: None = None
    best_of: One | None = None
    logprobs: None = None


class TextPart(Strict):
    """A part of a message."""

    type: Literal["text"]
    text: AnyText


class Message(Strict):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: AnyText | Items[TextPart]
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        """Leaves out what says nothing, such as the `tool_calls` of an answer that made none."""
        if not isinstance(given, dict):
            return given
        known = cls.model_fields
        return {name: own for name, own in given.items() if own is not None or name in known}

    def plain(self) -> dict[str, str]:
        """As chat templates take it."""
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {"role": self.role, "content": text}


class ChatRequest(Sampled):
    """``POST /v1/chat/completions``."""

    messages: Several[Message]
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: None = None
    response_format: PlainText | None = None


class Probes(BaseModel):
    """Prompts beside an edit."""

    model_config = ConfigDict(extra="ignore", strict=True)
    prompt: AnyText | Items[AnyText | None]
    ground_truth: AnyText | Items[AnyText | None] | None = None


class NewEdit(BaseModel):
    """An edit request; other fields, such as a record's number, are passed over."""

    model_config = ConfigDict(extra="ignore", strict=True)
    prompt: Text
    subject: Text
    target_new: Text
    ground_truth: AnyText | None = None
    rephrase_prompt: AnyText | Items[AnyText | None] | None = None
    locality: dict[AnyText, Probes] | None = None
    portability: dict[AnyText, Probes] | None = None


def _form(body: Any) -> str:
    return "several" if isinstance(body, list) else "one"


NewEdits = Annotated[
    Annotated[NewEdit, Tag("one")] | Annotated[Several[NewEdit], Tag("several")],
    Discriminator(_form),
]
"""``POST /v1/edits``."""


class SearchRequest(Strict):
    """``POST /v1/edits/search``."""

    prompt: Text
    limit: Count = 10


RoutedPrompt = AnyText | Several[Token] | Several[Message]


class RoutePrompts(Strict):
    """Prompts: texts and tokens as completions take them, conversations as chats do."""

    prompts: Several[RoutedPrompt]


class RouteConversation(Strict):
    """One conversation, as chats take it."""

    messages: Several[Message]


def _what_is_routed(body: Any) -> str:
    return "one" if isinstance(body, dict) and "messages" in body else "several"


RouteRequest = Annotated[
    Annotated[RouteConversation, Tag("one")] | Annotated[RoutePrompts, Tag("several")],
    Discriminator(_what_is_routed),
]
"""``POST /v1/route``."""


class Edit(BaseModel):
    """An edit of the memory; of several for the same prompt the newest holds."""

    id: int
    object: Literal["edit"]
    added: str
    prompt: str
    subject: str
    target_new: str
    ground_truth: str | None
    rephrase_prompt: list[str]
    locality: dict[str, Probes]
    portability: dict[str, Probes]
    superseded_by: int | None
    similarity: float | None = None


class EditList(BaseModel):
    """Edits, by rising ids or by falling similarity."""

    object: Literal["list"]
    data: list[Edit]
    has_more: bool


class RemovedEdit(BaseModel):
    """An edit that is not there any more."""

    id: int
    object: Literal["edit"]
    deleted: Literal[True]


class PromptRoute(BaseModel):
    """Which edit answers a prompt; null: the base model does."""

    edit: int | None
    similarity: float


class Routes(BaseModel):
    """The routes of prompts, in their order."""

    object: Literal["list"]
    data: list[PromptRoute]


class Usage(BaseModel):
    """Tokens of prompts and answers; those of edits are not counted."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Choice(PromptRoute):
    """An answer, and which edit it comes from."""

    index: int
    text: str
    logprobs: None
    finish_reason: Literal["stop", "length"]


class Completion(BaseModel):
    """Answers to prompts."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Reply(BaseModel):
    """The model's turn."""

    role: Literal["assistant"]
    content: str


class ChatChoice(PromptRoute):
    """A turn, and which edit it comes from."""

    index: int
    message: Reply
    logprobs: None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    """Answers to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Model(BaseModel):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Models(BaseModel):
    """All models that are served."""

    object: Literal["list"]
    data: list[Model]


class Health(BaseModel):
    """Whether the server answers."""

    status: Literal["ok"]


class ErrorDetail(BaseModel):
    """What is wrong, where, and what to do about it."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """An error, in OpenAI's shape."""

    error: ErrorDetail
