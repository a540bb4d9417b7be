"""SERAC's hyperparameters, with EasyEdit's keys."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic

from easyedit_fast.hparams import (
    Hparams,
    NonNegativeFloat,
    NonNegativeInt,
    PathText,
    PositiveFloat,
    PositiveInt,
)
from easyedit_fast.models.sentence_encoders import PACKAGED_ENCODER
from easyedit_fast.training.hparams import WITHOUT_MEANING, TrainingHparams

_WITHOUT_MEANING = frozenset(
    {
        "checkpoint_grad",
        "edit_bs",
        "edit_lr",
        "exact_match",
        "inner_params",
        "lora",
        "lr_lr",
        "unlikelihood",
    }
)
"""Keys of EasyEdit's SERAC files that change nothing here, nor there."""

SEARCH_KEYS = ("memory_index", "memory_precision", "threshold")
"""Keys of whoever searches memories, without meaning for training and its editors."""


class SERACHparams(Hparams):
    """What SERAC's scope and counterfactual model are made of.

    Attributes:
        alg_name: ``SERAC``.
        model_name: Name or path of the model.
        archive: The trained scope and adapter.
        cls_name: The scope's sentence encoder: ``minilm`` for the packaged one, a folder or a name
            on the hub.
        cls_class: The class of transformers that loads it.
        pooling: Its ``mean`` or first (``cls``) hidden state is the embedding; None: as its folder
            says.
        cls_rank: Rank of the encoder's trained change (LoRA); None: its own weights are trained.
        freeze: Train its last so many layers alone; None: all of them.
        cos: Distances are cosines: 1 - cos.
        square: Distances are squared; without meaning with `cos`.
        bound_embeds: Embeddings go through tanh.
        dist_heads: Parts of an embedding; two are as near as the nearest of their parts.
        memory_index: The memory is searched by one product with all embeddings (``exact``), or,
            from 20,000 edits on, by a graph that may miss one (``approximate``).
        memory_precision: Of the embeddings that are searched; ``int8`` takes a quarter of the
            bytes.
        threshold: A prompt is in the scope of its nearest edit where its similarity, the
            probability that it belongs there, is above this.
        soft_weighting: Answers are mixed by similarity in ``forward``, not switched.
        freeze_cntr: The counterfactual model has no adapter, and answers from the edit untrained.
        cntr_rank: Rank of the adapter (LoRA) on the base model, or on that of `small_name`.
        cntr_alpha: Its output is scaled by ``cntr_alpha / cntr_rank``.
        cntr_modules: Ends of the names of the linear layers it is on; None: those of attention.
        small_name: Another causal language model that answers from the edits, with the adapter on
            it: a folder, a name on the hub or ``demo``; None: the base model.
        supervised: False: the scope is not told whose prompt is whose: both parts learn from what
            the mixture of the two models answers, and ``forward`` mixes, as by `soft_weighting`.
        cross_attend: The scope is a cross-encoder: it reads the prompt of an edit and the query
            together. `cos`, `square`, `bound_embeds` and `dist_heads` then say which edits are
            near alone.
        cross_candidates: So many of the nearest edits a cross-encoder reads a query with.
        seed: Of all that is drawn.
        device: Where the model is loaded; None leaves it to the editor.
        model_parallel: Whether the model is spread over all devices.
        fp16: Whether the model is loaded in half precision.
    """

    alg_name: Literal["SERAC"] = "SERAC"
    model_name: str = ""
    archive: PathText | None = None
    cls_name: str = PACKAGED_ENCODER
    cls_class: str = "AutoModel"
    pooling: Literal["mean", "cls"] | None = None
    cls_rank: PositiveInt | None = 16
    freeze: PositiveInt | None = None
    cos: bool = True
    square: bool = True
    bound_embeds: bool = False
    dist_heads: PositiveInt = 1
    memory_index: Literal["exact", "approximate"] = "exact"
    memory_precision: Literal["float32", "int8"] = "float32"
    threshold: Annotated[float, pydantic.Field(ge=0, le=1)] = 0.5
    soft_weighting: bool = False
    freeze_cntr: bool = False
    cntr_rank: PositiveInt = 16
    cntr_alpha: PositiveFloat = 32.0
    cntr_modules: list[str] | None = None
    small_name: PathText | None = None
    supervised: bool = True
    cross_attend: bool = False
    cross_candidates: PositiveInt = 8
    seed: Annotated[int, pydantic.Field(ge=0, lt=1 << 63)] = 0
    device: int | str | None = None
    model_parallel: bool = False
    fp16: bool = False

    @pydantic.model_validator(mode="after")
    def _graph_of_one_head(self) -> SERACHparams:
        if self.memory_index == "approximate" and self.dist_heads > 1:
            raise ValueError(
                "memory_index 'approximate' compares whole embeddings, and dist_heads "
                f"({self.dist_heads}) parts of them; leave memory_index 'exact'"
            )
        return self

    @classmethod
    def _warn_unknown(cls, name: str) -> None:
        known = {*_WITHOUT_MEANING, *WITHOUT_MEANING, *SERACTrainingHparams.model_fields}
        if name not in known:
            super()._warn_unknown(name)


class SERACTrainingHparams(TrainingHparams, SERACHparams):
    """How SERAC's two parts are trained; see `SERACHparams` and `TrainingHparams`.

    Attributes:
        parts: ``both``, the ``scope`` alone, or the ``counterfactual`` adapter alone.
        cls_lr: Adam's learning rate for the scope; None: `lr`.
        cntr_batch_size: Records of a batch that the adapter learns from; None: all of it.
        cntr_continuation: Where `supervised`: after a target the adapter learns to go on as the
            base model does, over so many tokens; 0: what follows is not learned.
        use_all_negatives: Where `supervised`: the other edits of a batch are wrong answers for a
            rephrased prompt; else only "none of these" is.
        hard_negatives: Edits beside each of a batch, among those that are nearest to it before
            training, which its prompts are told apart from. With `cross_attend` each prompt is
            read with its own edit and so many of the batch's that are nearest to it.
        subject_negatives: Where `supervised`: prompts about each edit's subject that ask other
            facts, in the wording of other records; they are in the scope of none.
    """

    parts: Literal["both", "scope", "counterfactual"] = "both"
    cls_lr: PositiveFloat | None = None
    cntr_batch_size: PositiveInt | None = None
    cntr_continuation: NonNegativeInt = 12
    use_all_negatives: bool = True
    hard_negatives: NonNegativeInt = 3
    subject_negatives: NonNegativeInt = 2
    cedit: NonNegativeFloat = 1.0
    early_stop_key: str = "loss/total_val"

    @pydantic.model_validator(mode="after")
    def _something_learns(self) -> SERACTrainingHparams:
        if self.freeze_cntr and self.parts == "counterfactual":
            raise ValueError("freeze_cntr leaves parts 'counterfactual' nothing to learn")
        return self

    def for_edits(self) -> dict[str, Any]:
        """Those that the parts were made with, as `SERACHparams` takes them."""
        wanted = set(SERACHparams.model_fields) - {"archive", *SEARCH_KEYS}
        return {name: value for name, value in self.to_dict().items() if name in wanted}
