"""Runs over the records of a data file, which go on where they were ended."""

from easyedit_fast.runs.jobs import EditJob, ScoreJob
from easyedit_fast.runs.records import Records
from easyedit_fast.runs.run import Job, Run, run_records

__all__ = ["EditJob", "Job", "Records", "Run", "ScoreJob", "run_records"]
