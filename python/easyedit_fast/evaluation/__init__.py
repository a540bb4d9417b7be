"""Scores a model on edit requests: before and after an edit, together or isolated."""

from easyedit_fast.evaluation.evaluator import Evaluator, compare, merge
from easyedit_fast.evaluation.generation import continue_greedily

__all__ = ["Evaluator", "compare", "continue_greedily", "merge"]
