"""What a model whose edits lie in a memory cannot do, each with what to do instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from transformers import PreTrainedModel

from easyedit_fast.errors import EditStateError, ModelError

_STATES = ("output_hidden_states", "output_attentions")


class NotSaved(PreTrainedModel):
    """A model that is neither saved nor copied: that would leave its edits, or share them."""

    answers_from_edits = True  # see `models.adapters`

    def save_pretrained(self, *_: Any, **__: Any) -> NoReturn:
        """Refuses: a folder of weights would hold no edits.

        Raises:
            EditStateError: Always.
        """
        raise EditStateError(
            "a folder of weights cannot hold SERAC's edits; save the memory to a file, and load it "
            'with Editor.from_pretrained(…, method="serac", memory=…); model.base.save_pretrained '
            "saves the model without them"
        )

    def push_to_hub(self, *_: Any, **__: Any) -> NoReturn:  # type: ignore[override]
        """Refuses, as `save_pretrained` does, before anything is made on the hub.

        Raises:
            EditStateError: Always.
        """
        self.save_pretrained()

    def __reduce_ex__(self, _: object) -> NoReturn:
        """Refuses copies and pickles.

        Raises:
            EditStateError: Always.
        """
        raise EditStateError(
            "SERAC's model cannot be copied or pickled: its memory and its adapter's switch are "
            "its own; name a file as memory=, and make another editor with it on another copy of "
            "the base model"
        )


def refuse_states(given: Mapping[str, Any], *configs: object) -> None:
    """Refuses hidden states and attentions of prompts that are run with an edit before them.

    Args:
        given: Arguments of a call.
        configs: What says the rest.

    Raises:
        ModelError: They are asked for.
    """
    for name in _STATES:
        asked = given.get(name)
        if asked is None:
            asked = any(getattr(config, name, None) for config in configs)
        if asked:
            raise ModelError(
                "hidden states and attentions of a prompt in an edit's scope are those of a longer "
                f"one; leave {name} out, or ask model.base for them"
            )
