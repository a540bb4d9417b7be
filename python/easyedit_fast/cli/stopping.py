"""What Ctrl-C and SIGTERM do to a command that can go on later."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_GOES_ON = (
    "stopped; the same command goes on from the last checkpoint, or begins anew where there is none"
)


class _Stopped(KeyboardInterrupt):
    """Raised by a signal; whoever knows where the work stands gives it a text."""

    number: int = signal.SIGINT


@contextlib.contextmanager
def told_where_stopped(*, tell: bool) -> Iterator[None]:
    """SIGINT and SIGTERM end a ``with`` block, and the process, with one line on stderr.

    The line is the text of the `KeyboardInterrupt` that comes out of the block, and the exit code
    is that of shells: 130 or 143.

    Args:
        tell: Whether the line is printed; one of several processes is enough.
    """

    def stop(number: int, _: Any) -> None:
        stopped = _Stopped()
        stopped.number = number
        raise stopped

    # A signal that whoever started us had ignored (nohup) stays so.
    heeded = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heeded}
    try:
        yield
    except KeyboardInterrupt as stopped:
        for number in heeded:  # it is ending already
            signal.signal(number, signal.SIG_IGN)
        if tell:
            print(str(stopped) or _GOES_ON, file=sys.stderr)
        sys.exit(128 + getattr(stopped, "number", signal.SIGINT))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
