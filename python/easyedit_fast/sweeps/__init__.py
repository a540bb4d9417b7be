"""The same records edited at several layers and in both second-moment modes, and compared."""

from easyedit_fast.sweeps.rows import MODES, Mode, Score, SweepRow
from easyedit_fast.sweeps.sweep import SweepResult, sweep

__all__ = ["MODES", "Mode", "Score", "SweepResult", "SweepRow", "sweep"]
