"""Signals that end a command which can go on later."""

from __future__ import annotations

import os
import signal

import pytest

from easyedit_fast.cli.stopping import told_where_stopped


@pytest.mark.usefixtures("heeded_signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("text", ["", "stopped at iteration 3"])
@pytest.mark.parametrize("tell", [True, False])
def test_a_signal_is_one_line_and_the_exit_code_of_shells(
    capsys: pytest.CaptureFixture[str], number: int, code: int, text: str, tell: bool
) -> None:
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SystemExit) as stop, told_where_stopped(tell=tell):
        try:
            os.kill(os.getpid(), number)
            pytest.fail("it goes on")
        except KeyboardInterrupt as stopped:
            stopped.args = (text,) if text else ()
            raise
    assert stop.value.code == code
    told = text or (
        "stopped; the same command goes on from the last checkpoint, or begins anew where there "
        "is none"
    )
    assert capsys.readouterr().err == (f"{told}\n" if tell else "")
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_that_was_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with told_where_stopped(tell=True):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_error_comes_out_as_it_is() -> None:
    with pytest.raises(ValueError, match="other"), told_where_stopped(tell=True):
        raise ValueError("other")
