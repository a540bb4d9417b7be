"""A request's rows, as the event loop hears of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from easyedit_fast.serving.rows import Row, Sampling, Told

if TYPE_CHECKING:
    from easyedit_fast.serving.engine import Engine

Receive = Callable[[], Awaitable[Any]]


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


class Running:
    """Rows that are being answered.

    Attributes:
        rows: The rows, by their index.
    """

    def __init__(self, engine: Engine, wanted: Sequence[tuple[list[int], Sampling, str]]) -> None:
        """Submits rows: their tokens, how they are answered, and what errors call them.

        Raises:
            StoppingError: The engine is closed.
        """
        loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[Told] = asyncio.Queue()

        def tell(told: Told) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._news.put_nowait, told)

        self.rows = [
            Row(tokens, sampling, tell, index, name)
            for index, (tokens, sampling, name) in enumerate(wanted)
        ]
        engine.submit(self.rows)

    async def told(self) -> AsyncIterator[Told]:
        """All news, as they come, up to the end of the last row; an error is raised."""
        try:
            left = len(self.rows)
            while left:
                told = await self._news.get()
                if told.error is not None:
                    raise told.error
                left -= told.reason is not None
                yield told
        finally:
            self.cancel()

    async def whole(self) -> list[tuple[str, Told]]:
        """The text of each row, and its last news."""
        texts = ["" for _ in self.rows]
        last: dict[int, Told] = {}
        async for told in self.told():
            texts[told.row.index] += told.text
            last[told.row.index] = told
        return [(text, last[index]) for index, text in enumerate(texts)]

    def cancel(self) -> None:
        """Ends the rows that are not over."""
        for row in self.rows:
            row.cancel()


async def unless_gone(work: Awaitable[Any], receive: Receive) -> Any:
    """The result of some work, which is cancelled where the client goes away.

    Raises:
        ClientGoneError: It has.
    """

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(one) for one in (work, gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientGoneError
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
