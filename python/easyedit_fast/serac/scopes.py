"""What a scope is to those who use it, and which kind there is to be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from easyedit_fast.serac.cross_encoder import CrossEncoder
from easyedit_fast.serac.hparams import SERACHparams
from easyedit_fast.serac.memory import Nearest, PromptEncoder
from easyedit_fast.serac.scope import Scope


class AnyScope(PromptEncoder, Protocol):
    """Says whether a prompt is in the scope of an edit, by the edit's prompt.

    Attributes:
        candidates: Of the edits that are nearest by their embeddings it looks at so many.
        origin: Tells its encoder, before it is changed, from every other one.
    """

    candidates: int
    origin: str

    def looked_at(
        self, queries: Sequence[str], edits: Sequence[str], allowed: Tensor, count: int
    ) -> Tensor:
        """Which edits a query is compared with: ``[q, n]`` bool, among those that are allowed.

        Args:
            queries: q prompts.
            edits: The prompts of n edits.
            allowed: ``[q, n]`` bool.
            count: So many, where it does not look at all of them.
        """
        ...

    def answers(self, queries: Sequence[str], edits: Sequence[str], looked_at: Tensor) -> Tensor:
        """How likely queries are in the scope of edits, and of none of them, but for a constant.

        Args:
            queries: q prompts.
            edits: The prompts of n edits.
            looked_at: ``[q, n]`` bool.

        Returns:
            ``[q, n + 1]``, the last for "none of these"; minus infinity where it does not look.
            Gradients flow through it.
        """
        ...

    def similarities(
        self, queries: Sequence[str], found: Sequence[Sequence[Nearest]]
    ) -> list[list[float]]:
        """How likely each query is in the scope of each edit found for it, rather than of none.

        Args:
            queries: The prompts.
            found: What the memory found for each.
        """
        ...

    def pair_similarities(self, edits: Sequence[str], queries: Sequence[str]) -> list[float]:
        """The same for pairs: of the edit's prompt and the query at its place."""
        ...

    def parameter_groups(self, rate: float) -> list[dict[str, Any]]:
        """What is trained, as an optimiser takes it, at a learning rate."""
        ...

    def trained_state(self) -> dict[str, Tensor]:
        """All that is trained, by name."""
        ...

    def load_trained_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts such a state in.

        Raises:
            DataFileError: It is not of this scope.
        """
        ...


def make_scope(hparams: SERACHparams, device: torch.device) -> AnyScope:
    """A scope that is not trained yet, of the kind that the hyperparameters name.

    Raises:
        HparamsError: The encoder has no such layers, or no whole parts.
        MissingPackageError: A package is missing.
        ModelError: There is no such encoder.
    """
    kind = CrossEncoder if hparams.cross_attend else Scope
    return kind(hparams).to(device)
