"""ROME: rank-one model editing (Meng et al. 2022, arXiv 2202.05262), for one request and many."""

from easyedit_fast.rome.hparams import ROMEHyperParams, resolve_rome_hparams, rome_rule
from easyedit_fast.rome.rome import Rome

__all__ = ["ROMEHyperParams", "Rome", "resolve_rome_hparams", "rome_rule"]
