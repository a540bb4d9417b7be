"""Which model answers from edits: the base model itself, or another causal language model."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from easyedit_fast.errors import EasyEditFastError, ModelError
from easyedit_fast.models.architectures import Architecture, architecture_of
from easyedit_fast.models.fingerprint import model_fingerprint
from easyedit_fast.models.limits import embedding_rows
from easyedit_fast.models.loading import load_model
from easyedit_fast.serac.counterfactual import CounterfactualAdapter, attention_modules

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from easyedit_fast.serac.hparams import SERACHparams
    from easyedit_fast.training.editors import EditorFile

_REMEDY = "name another as small_name, or set small_name: null for the adapter on the base model"


@dataclasses.dataclass(frozen=True, eq=False)
class Counterfactual:
    """The counterfactual model, before it gets its adapter.

    Attributes:
        model: The model.
        tokenizer: Its tokenizer; the base model's where their vocabularies are the same.
        architecture: Where its parts are.
        fingerprint: Of the small model; None: it is the base model.
        same_vocabulary: Whether its tokens are the base model's.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    architecture: Architecture
    fingerprint: str | None = None
    same_vocabulary: bool = True

    @property
    def told(self) -> str:
        """How it shares the answers with the base model, in a user's words."""
        if self.fingerprint is None:
            return "an adapter on the base model"
        if self.same_vocabulary:
            return "same vocabulary: logits are switched or mixed"
        return "another vocabulary: whole answers are switched"

    @property
    def card(self) -> dict[str, str]:
        """What files tell of a small model; nothing of the base model."""
        return {} if self.fingerprint is None else {"small_fingerprint": self.fingerprint}

    def is_strange_to(self, card: Mapping[str, Any], base: str) -> bool:
        """Whether an editor's adapter was trained on another model, as far as small models go.

        Args:
            card: What is told of the editor.
            base: Fingerprint of the base model.
        """
        small = card.get("small_fingerprint")
        if small is None and self.fingerprint is None:
            return False
        trained_on = small or card.get("model_fingerprint")
        return trained_on not in (None, self.fingerprint or base)

    def own_parts(
        self, editor: EditorFile, fresh: Mapping[str, Tensor], base: str
    ) -> dict[str, Tensor]:
        """What training begins with: an editor's parts; the scope's alone where it is strange.

        Args:
            editor: The editor.
            fresh: The parts as they are without it.
            base: Fingerprint of the base model.
        """
        if not self.is_strange_to(editor.card, base):
            return editor.tensors
        warnings.warn(
            "the archive was trained with another counterfactual model; its scope alone is taken",
            stacklevel=4,
        )
        scope = {key: one for key, one in editor.tensors.items() if key.startswith("scope.")}
        return {**fresh, **scope}

    def adapter(self, hparams: SERACHparams) -> CounterfactualAdapter:
        """Puts a new adapter into the model.

        Raises:
            MissingPackageError: The ``peft`` package is not installed.
            HparamsError: The model has no such layers.
        """
        return CounterfactualAdapter(
            self.model,
            self.tokenizer,
            rank=0 if hparams.freeze_cntr else hparams.cntr_rank,
            alpha=hparams.cntr_alpha,
            modules=hparams.cntr_modules or attention_modules(self.model, self.architecture),
            seed=hparams.seed,
        )


def counterfactual_of(
    small_name: str | None,
    base: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    architecture: Architecture,
) -> Counterfactual:
    """The model that ``small_name`` names, in the base model's dtype and on its device.

    Vocabularies are the same where both tokenizers give the same ids to the same tokens, added ones
    too. Rows of the logits beyond them, which only round their number up, may differ: where the
    small model has more, they are cut off.

    Args:
        small_name: A folder, a name on the hub or ``demo``; None: the base model itself.
        base: The base model.
        tokenizer: Its (fast) tokenizer.
        architecture: Where its parts are.

    Raises:
        ModelError: There is no such model, or none that can answer.
    """
    if small_name is None:
        return Counterfactual(base, tokenizer, architecture)
    try:
        model, own = load_model(
            small_name, device=base.device, dtype=base.dtype, safetensors_only=True
        )
        known = architecture_of(model)
        fingerprint = model_fingerprint(model, known)
        same = own.get_vocab() == tokenizer.get_vocab()
        if same:
            _require_embeddings(model, base, tokenizer)
            if embedding_rows(model) > embedding_rows(base):  # of no token
                model.resize_token_embeddings(embedding_rows(base), mean_resizing=False)
    except EasyEditFastError as error:
        raise ModelError(f"small_name ({small_name}): {error}; {_REMEDY}") from error
    return Counterfactual(model, tokenizer if same else own, known, fingerprint, same)


def _require_embeddings(
    model: PreTrainedModel, base: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Any text that the base model can read, the small one must be able to."""
    rows, limit = embedding_rows(model), embedding_rows(base)
    used = [number for number in tokenizer.get_vocab().values() if number < limit]
    if max(used) >= rows:
        raise ModelError(
            f"its vocabulary is the base model's, which has token {max(used)}, but it has {rows} "
            "embeddings"
        )
