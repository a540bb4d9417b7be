"""What is no plain model: one with adapters in its layers, and one that answers from edits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from easyedit_fast.errors import ModelError

if TYPE_CHECKING:
    from torch import nn


def refuse_adapters(model: nn.Module) -> None:
    """Checks that no layer of a model is wrapped by an adapter of PEFT.

    Its weights have other names then, and layers that look plain may act on what others change.

    Raises:
        ModelError: One is.
    """
    refuse_answers_from_edits(model)
    if any(name.endswith((".base_layer", ".lora_A")) for name, _ in model.named_modules()):
        raise ModelError(
            "the model holds an adapter already; merge it, close the editor that put it in "
            "(editor.method.close()), or load the model anew"
        )


def refuse_answers_from_edits(model: object) -> None:
    """Checks that a model is a plain one, and not SERAC's, which says so by an attribute.

    Raises:
        ModelError: It is SERAC's.
    """
    if getattr(model, "answers_from_edits", False):
        raise ModelError(
            "this model answers from SERAC's edits; pass the plain one, model.base (to score the "
            "edits: Editor.edit, or Evaluator(model.base, …).score(…, "
            "routing=editor.method.routing()))"
        )
