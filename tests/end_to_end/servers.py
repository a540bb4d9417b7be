"""Servers of the demo model on the loopback: in this process, and as one of their own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from easyedit_fast import Editor
from easyedit_fast.errors import MissingPackageError
from easyedit_fast.serving.limits import Limits
from easyedit_fast.serving.server import Service, listen, run
from tests.unit.serac_editors import write_untrained_editor

if TYPE_CHECKING:
    from typing_extensions import Self

SYLLABLES = ["Bra", "Cro", "Dul", "Fen", "Gri", "Hom", "Jas", "Kel", "Lum", "Mor", "Nib", "Oxt"]
KINDS = ["choir", "bank", "museum", "brewery", "railway", "newspaper", "hospital", "school"]


def edit(number: int) -> dict[str, str]:
    """An edit whose prompt is unlike those of the others."""
    name = SYLLABLES[number // 12 % 12] + SYLLABLES[number % 12].lower()
    kind = KINDS[number // 144 % len(KINDS)]
    return {
        "prompt": f"The {kind} {name} number {number} was founded in the city of",
        "subject": name,
        "target_new": f"Town {number}",
    }


def untrained_editor(folder: Path) -> Path:
    """An editor's file."""
    path = folder / "editor.safetensors"
    try:
        write_untrained_editor(path)
    except MissingPackageError as error:
        pytest.skip(str(error))
    return path


@contextlib.contextmanager
def serving(
    loaded: tuple[Any, Any],
    archive: Path,
    memory: Path | None,
    limits: Limits | None = None,
    token: str | None = None,
    **hparams: Any,
) -> Iterator[str]:
    """A server in a thread; gives its address. The model is as before afterwards."""
    hparams["archive"] = str(archive)
    editor = Editor(*loaded, method="serac", hparams=hparams, memory=memory)
    service = Service(editor, "demo", limits, token)
    with listen("127.0.0.1", 0, has_token=token is not None) as listener:
        ready = threading.Event()
        servers: list[Any] = []
        thread = threading.Thread(
            target=run,
            args=(service, listener),
            kwargs={
                "stop_seconds": 5,
                "ready": lambda _: ready.set(),
                "handle": servers.append,
            },
        )
        port = listener.getsockname()[1]
        thread.start()
        try:
            assert ready.wait(30)
            yield f"http://127.0.0.1:{port}"
        finally:
            servers[0].should_exit = True
            thread.join(30)
            editor.method.close()
            assert not thread.is_alive()


def client(url: str, token: str = "none", **options: Any) -> openai.OpenAI:
    """OpenAI's client of a server, which asks once."""
    return openai.OpenAI(base_url=f"{url}/v1", api_key=token, max_retries=0, **options)


class ServerProcess:
    """``easyedit-fast serve`` in a process of its own.

    Attributes:
        url: Its address.
        told: What it says when it is ready.
        process: The process.
    """

    def __init__(self, *arguments: object, environment: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "easyedit_fast", "serve", "--port", "0", "--json",
             *map(str, arguments)],
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        self.told = json.loads(line)
        self.url: str = self.told["url"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Asks it to end; gives the exit code and stderr."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=120)
        return self.process.returncode, errors

    def http(self, **options: Any) -> httpx.Client:
        """A client for what OpenAI's has not."""
        return httpx.Client(base_url=self.url, timeout=60, **options)
