"""MEND: a trained editor network turns the gradient of an edit into a low-rank update."""

from easyedit_fast.mend.hparams import MENDHyperParams
from easyedit_fast.mend.mend import Mend

__all__ = ["MENDHyperParams", "Mend"]
