"""Runs over the records of a data file: their results as they come, and going on with a run."""

from easyedit_fast.runs.jobs import EditJob, ScoreJob
from easyedit_fast.runs.perplexity_text import MEASURED_MODELS, PerplexityText
from easyedit_fast.runs.records import Records
from easyedit_fast.runs.run import Job, Run, run_records
from easyedit_fast.runs.saved_edits import SavedEdits
from easyedit_fast.runs.scores import Scores, saved_scores, scores_of
from easyedit_fast.runs.scoring import score_apart, score_in_one_model

__all__ = [
    "MEASURED_MODELS",
    "EditJob",
    "Job",
    "PerplexityText",
    "Records",
    "Run",
    "SavedEdits",
    "ScoreJob",
    "Scores",
    "run_records",
    "saved_scores",
    "score_apart",
    "score_in_one_model",
    "scores_of",
]
