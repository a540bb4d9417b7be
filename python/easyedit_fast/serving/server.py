"""The server: a socket, uvicorn on it, and how both end."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from easyedit_fast.errors import DataFileError, HparamsError, MissingFileError
from easyedit_fast.serac.serac import Serac
from easyedit_fast.serving.app import make_app
from easyedit_fast.serving.completions import Completions
from easyedit_fast.serving.edits import EditRoutes
from easyedit_fast.serving.engine import Engine
from easyedit_fast.serving.limits import Limits
from easyedit_fast.serving.memory import SharedMemory
from easyedit_fast.serving.prompts import PromptReader

if TYPE_CHECKING:
    from easyedit_fast.editor import Editor

TOKEN_VARIABLE = "EASYEDIT_FAST_TOKEN"
_LAST_WORDS = 5
"""Seconds for the errors of what is cut off to reach the clients."""

_TICK = 0.05


class Service:
    """An editor, served.

    Attributes:
        app: The ASGI app.
        engine: What answers.
        memory: The edits.
    """

    def __init__(
        self, editor: Editor, name: str, limits: Limits | None = None, token: str | None = None
    ) -> None:
        """Starts the thread that runs the model.

        Args:
            editor: An editor whose method keeps its edits in a memory; its model is the service's
                alone from now on.
            name: The model's name, as clients ask for it.
            limits: The limits.
            token: The bearer token, or None.

        Raises:
            HparamsError: The method has no memory.
            MissingPackageError: FastAPI is not installed.
        """
        limits = limits or Limits()
        method: Any = editor.method
        if not isinstance(method, Serac):
            raise HparamsError(
                f"{method.name} changes the model's weights and has no memory of edits; serve with "
                "--method serac"
            )
        model: Any = editor.model
        self.memory = SharedMemory(model.router, model.adapter, limits.edit_tokens)
        self.engine = Engine(model, editor.tokenizer, self.memory, limits)
        prompts = PromptReader(model.base, editor.tokenizer, limits)
        completions = Completions(self.engine, prompts, limits, name)
        self.app = make_app(completions, EditRoutes(self.memory, prompts, limits), limits, token)

    def close(self) -> None:
        """Ends what runs, and the thread."""
        self.engine.close()


def read_token(file: Path | None) -> str | None:
    """The bearer token: of a file, or else of the environment; None where neither is given.

    Raises:
        MissingFileError: There is no such file.
        DataFileError: What is there is no token.
    """
    if file is None:
        place, token = TOKEN_VARIABLE, os.environ.get(TOKEN_VARIABLE, "")
        if not token:
            return None
    else:
        place, token = str(file), _text(file)
    token = token.strip()
    if not token.isascii() or len(token.split()) != 1:
        raise DataFileError(f"{place} must hold one token: ASCII characters without white space")
    return token


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise MissingFileError(f"there is no file {str(file)!r}; put the token there") from None
    except UnicodeDecodeError:
        return ""


def addresses(host: str, port: int) -> list[tuple[Any, str, bool]]:
    """What a host stands for: family, address, and whether only this machine reaches it.

    Raises:
        HparamsError: It stands for nothing.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise HparamsError(
            f"--host {host!r} cannot be resolved ({error}); give an address of this machine"
        ) from None
    return [
        (family, str(place[0]), ipaddress.ip_address(str(place[0]).partition("%")[0]).is_loopback)
        for family, _, _, _, place in found
    ]


def listen(host: str, port: int, *, has_token: bool) -> socket.socket:
    """Opens the socket.

    Args:
        host: A name or an address of this machine.
        port: The port; 0: any that is free.
        has_token: Whether clients need a token.

    Raises:
        HparamsError: Others could reach it without a token, or it cannot be opened.
    """
    found = addresses(host, port)
    if not has_token and not all(is_loopback for _, _, is_loopback in found):
        raise HparamsError(
            f"--host {host} lets other machines in, who may change the edits; give a token "
            f"(--token-file, or the environment variable {TOKEN_VARIABLE}), or leave --host out"
        )
    family, address, _ = found[0]
    try:
        return socket.create_server((address, port), family=family, backlog=256)
    except OSError as error:
        raise HparamsError(
            f"cannot listen on {address}, port {port}: {error.strerror or error}; give another "
            "--port or --host"
        ) from None


def run(
    service: Service,
    listener: socket.socket,
    *,
    stop_seconds: int,
    ready: Callable[[str], None],
    handle: Callable[[Any], None] = lambda _: None,
) -> int:
    """Serves until SIGINT or SIGTERM, after which it returns.

    Requests that run have `stop_seconds` to end then; what is left gets an error: with a second
    Ctrl-C at once. A third does not wait for that either.

    Args:
        service: What is served.
        listener: The socket.
        stop_seconds: Time that running requests have to end.
        ready: Called with the address when the first request can come.
        handle: Called with uvicorn's server before that; its ``should_exit`` ends it too.

    Returns:
        How many answers were cut off.
    """
    import uvicorn

    config = uvicorn.Config(
        service.app,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=stop_seconds + 2 * _LAST_WORDS,
    )
    server = _server_class()(config, service.engine, stop_seconds, lambda: ready(_url(listener)))
    handle(server)
    try:
        server.run(sockets=[listener])
    finally:
        service.close()
    return int(server.cut_off)


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _server_class() -> Any:
    """Uvicorn's server, with an end of our own."""
    import uvicorn

    class Server(uvicorn.Server):
        cut_off = 0
        _is_hurried = False

        def __init__(
            self, config: uvicorn.Config, engine: Engine, seconds: int, ready: Callable[[], None]
        ) -> None:
            super().__init__(config)
            self._engine, self._seconds, self._ready = engine, seconds, ready

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            self._ready()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            ending = asyncio.create_task(self._cut_in_time())
            await super().shutdown(sockets)
            ending.cancel()

        async def _cut_in_time(self) -> None:
            end = time.monotonic() + self._seconds
            while time.monotonic() < end and not self._is_hurried:
                await asyncio.sleep(_TICK)
            self.cut_off = self._engine.stop()
            await asyncio.sleep(_LAST_WORDS)
            for connection in list(self.server_state.connections):  # of clients that do not read
                connection.transport.abort()

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if self.should_exit and sig == signal.SIGINT and not self._is_hurried:
                self._is_hurried = True
            else:
                super().handle_exit(sig, frame)

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            # uvicorn would raise the signal once more at the end, and the exit code with it.
            with super().capture_signals():
                yield
                self._captured_signals.clear()

    return Server
