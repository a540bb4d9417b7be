"""Runs that are killed at random moments until they were killed often enough."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

Start = Callable[[Path], AbstractContextManager["subprocess.Popen[bytes]"]]


def killed_and_compared(
    start: Start,
    whole: Path,
    killed: Path,
    *,
    kills: int,
    earliest: float,
    compare: Callable[[], None],
    remove: Callable[[], None],
    after_each: Callable[[], None] = lambda: None,
) -> None:
    """Runs once undisturbed, then again and again where it is killed and goes on.

    Args:
        start: Runs the job that writes to a path; on leaving, it has ended.
        whole: Where the undisturbed run writes.
        killed: Where the killed ones do.
        kills: How often it is killed.
        earliest: Share of the undisturbed run's time after which that may be.
        compare: Holds what is at `killed` to what is at `whole`, when a run came to its end.
        remove: Takes away what is at `killed` then.
        after_each: Looks at what every run has left.
    """
    began = time.monotonic()
    with start(whole) as run:
        pass
    assert run.returncode == 0
    seconds = time.monotonic() - began
    rng = random.Random(0)
    done = runs = 0
    while done < kills:
        runs += 1
        assert runs <= 5 * kills, "most runs end before they are killed"
        with start(killed) as run:
            try:
                run.wait(rng.uniform(earliest, 1) * seconds)
            except subprocess.TimeoutExpired:
                run.kill()
        assert run.returncode in (0, -signal.SIGKILL)
        done += run.returncode != 0
        after_each()
        if run.returncode == 0:
            compare()
            remove()
    with start(killed) as run:
        pass
    assert run.returncode == 0
    compare()
