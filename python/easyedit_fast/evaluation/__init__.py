"""Scores a model on edit requests: before and after an edit, together or isolated."""

from easyedit_fast.evaluation.evaluator import Evaluator, compare, merge
from easyedit_fast.evaluation.generation import continue_greedily
from easyedit_fast.evaluation.joined import join
from easyedit_fast.evaluation.perplexity import Perplexity, perplexity
from easyedit_fast.evaluation.retention import add_batch_scores

__all__ = [
    "Evaluator",
    "Perplexity",
    "add_batch_scores",
    "compare",
    "continue_greedily",
    "join",
    "merge",
    "perplexity",
]
