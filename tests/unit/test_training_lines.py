"""Progress of a training run where there is no terminal."""

from __future__ import annotations

import pytest

from easyedit_fast.cli import output

VALUES = {"loss/total_train": 0.25, "time/step_train": 2.0}


class Clock:
    """Seconds that pass when they are told to."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize("quiet", [True, False])
def test_a_line_at_once_and_every_30_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], quiet: bool
) -> None:
    clock = Clock()
    monkeypatch.setattr(output, "time", clock)
    with output.training_bar(quiet=quiet) as (iterated, making):
        for done in range(1, 5):
            clock.now += 12
            making("prompts", done * 1000, 4000)
        for done in range(1201, 1246):  # a run that goes on
            clock.now += 2
            iterated(done, 3000, VALUES)
    text = capsys.readouterr()
    assert text.out == ""
    wanted = [
        "prompts: 3,000 of 4,000",
        "iteration 1,201 of 3,000, loss 0.250, 0:59:58 left",
        "iteration 1,216 of 3,000, loss 0.250, 0:59:28 left",
        "iteration 1,231 of 3,000, loss 0.250, 0:58:58 left",
    ]
    assert text.err.splitlines() == ([] if quiet else wanted)
