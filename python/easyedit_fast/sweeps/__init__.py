"""The same records edited at several layers and in both second-moment modes, and compared."""

from easyedit_fast.sweeps.rows import MODES, Mode, SweepRow, difference
from easyedit_fast.sweeps.run import SweepResult, sweep

__all__ = ["MODES", "Mode", "SweepResult", "SweepRow", "difference", "sweep"]
