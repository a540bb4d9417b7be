"""Second moments C = E[k kᵀ] of the keys: their files, and the solves that need them."""

from easyedit_fast.moments.second_moment import SecondMoment, SecondMomentFactor
from easyedit_fast.moments.statistics_files import find_statistics, read_second_moment

__all__ = ["SecondMoment", "SecondMomentFactor", "find_statistics", "read_second_moment"]
