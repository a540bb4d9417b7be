"""Where the time and the memory of an edit go, phase by phase and step by step."""

from easyedit_fast.profiling.measure import profile_edits
from easyedit_fast.profiling.results import Profile

__all__ = ["Profile", "profile_edits"]
