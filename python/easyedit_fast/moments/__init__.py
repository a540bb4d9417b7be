"""Second moments C = E[k kᵀ] of the keys: collecting them, their files, the solves with them."""

from easyedit_fast.moments.second_moment import SecondMoment, SecondMomentFactor
from easyedit_fast.moments.statistics import collect_statistics, find_collected
from easyedit_fast.moments.statistics_files import (
    find_statistics,
    read_origin,
    read_second_moment,
)

__all__ = [
    "SecondMoment",
    "SecondMomentFactor",
    "collect_statistics",
    "find_collected",
    "find_statistics",
    "read_origin",
    "read_second_moment",
]
