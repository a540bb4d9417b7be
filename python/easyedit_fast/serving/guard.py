"""What a request passes before it is looked at: token, host, size, type, and how many there are."""

from __future__ import annotations

import asyncio
import hmac
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from easyedit_fast.serving.errors import ApiError

if TYPE_CHECKING:
    from easyedit_fast.serving.limits import Limits

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_OPEN = "/health"
_LOCAL = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d+)?")


class Guard:
    """ASGI middleware: refuses with an error in OpenAI's shape, or lets a request in."""

    def __init__(self, app: App, *, limits: Limits, token: str | None) -> None:
        """Wraps an app.

        Args:
            app: The app.
            limits: The limits.
            token: The bearer token; None: none is asked for, and only clients that name this
                machine by a loopback name are let in, so that no web page can reach it by a name
                of its own.
        """
        self._app, self._limits = app, limits
        self._token = None if token is None else token.encode()
        self._inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's interface."""
        if scope["type"] != "http" or scope["path"] == _OPEN:
            await self._app(scope, receive, send)
            return
        counted = False
        try:
            self._admit(scope)
            self._require_room()
            self._inside += 1
            counted = True
            body = await self._whole(scope, receive)
            _require_json(scope, body)
            receive = _anew(body, receive)
        except ApiError as error:
            await _refuse(error, send)
        else:
            await self._app(scope, receive, send)
        finally:
            self._inside -= counted

    def _admit(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        if self._token is None:
            host = headers.get(b"host", b"").decode("latin-1").lower()
            if _LOCAL.fullmatch(host) is None:
                raise ApiError(
                    403,
                    f"header 'Host' is {host!r}; without a token this server answers to "
                    "localhost and 127.0.0.1 alone",
                )
            return
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        right = hmac.compare_digest(given.strip(), self._token)
        if scheme.lower() != b"bearer" or not right:
            raise ApiError(
                401,
                "the bearer token is missing or wrong; send the header 'Authorization: Bearer …'",
                code="invalid_api_key",
            )

    def _require_room(self) -> None:
        if self._inside >= self._limits.requests:
            raise ApiError(
                429,
                f"{self._inside} requests are being answered, which is this server's most; ask "
                "again in a moment",
                code="too_many_requests",
            )

    async def _whole(self, scope: Scope, receive: Receive) -> bytes:
        """Reads the body."""
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self._limits.body_bytes:
            raise self._too_large()
        try:
            return await asyncio.wait_for(self._body(receive), self._limits.body_seconds)
        except asyncio.TimeoutError:
            raise ApiError(
                408,
                f"the body has not come within {self._limits.body_seconds:g} seconds; send it "
                "again",
            ) from None

    async def _body(self, receive: Receive) -> bytes:
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] != "http.request":
                break
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._limits.body_bytes:
                raise self._too_large()
            more = message.get("more_body", False)
        return b"".join(parts)

    def _too_large(self) -> ApiError:
        return ApiError(
            413,
            f"the body is larger than {self._limits.body_bytes} bytes, this server's most; send "
            "less at a time",
            code="body_too_large",
        )


def _require_json(scope: Scope, body: bytes) -> None:
    """A web page can send a body of another type, or of none, without asking the server first."""
    kind = dict(scope["headers"]).get(b"content-type", b"").partition(b";")[0]
    if body and kind.strip().lower() != b"application/json":
        raise ApiError(
            400,
            "the body: must be a JSON object, sent with the header 'content-type: "
            "application/json'",
        )


def _anew(body: bytes, receive: Receive) -> Receive:
    """A `receive` that tells a body which was read."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> MutableMapping[str, Any]:
        return waiting.pop() if waiting else await receive()

    return again


async def _refuse(error: ApiError, send: Send) -> None:
    body = json.dumps(error.body(), ensure_ascii=False).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if error.status == 429:
        headers.append((b"retry-after", b"1"))
    if error.status in (408, 413):  # what else the client sends is not read
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
