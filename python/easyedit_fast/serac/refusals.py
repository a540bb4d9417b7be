"""What a model whose edits lie in a memory cannot do, each with what to do instead."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from torch import Tensor
from transformers import PreTrainedModel, StaticCache

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


def refuse_fixed_cache(cache: Any) -> None:
    """Refuses a cache of fixed size: a prompt with its edit takes more of it than the user sees.

    Raises:
        ModelError: It is one.
    """
    if isinstance(cache, StaticCache) or getattr(cache, "is_compileable", False):
        raise ModelError(
            "a cache of fixed size leaves out the edits that are read before prompts; pass a "
            "DynamicCache, or none"
        )


def refuse_lengths(lengths: Tensor, tokens: Tensor) -> None:
    """Refuses lengths of prompts that the rows have not.

    Args:
        lengths: ``[1]`` or ``[rows]``, as the user gave them.
        tokens: ``[rows]``, of each row, pads left out.

    Raises:
        ModelError: They are no whole numbers, of other rows, negative, or more than there are.
    """
    if lengths.is_floating_point() or len(lengths) not in (1, len(tokens)):
        raise ModelError(
            f"prompt_length is {lengths.tolist()}; give a whole number, or one for each of the "
            f"{len(tokens)} rows"
        )
    for row, (length, most) in enumerate(
        zip(lengths.expand(len(tokens)).tolist(), tokens.tolist(), strict=True)
    ):
        if not 0 <= length <= most:
            raise ModelError(
                f"prompt_length is {length}, and row {row} has {most} tokens, pads left out; give "
                "how many of them are the prompt"
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
