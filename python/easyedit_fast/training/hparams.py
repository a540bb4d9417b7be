"""Hyperparameters of training, with EasyEdit's keys, whatever the method."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic

from easyedit_fast.errors import HparamsError
from easyedit_fast.hparams import (
    Float,
    Hparams,
    NonNegativeFloat,
    PathText,
    PositiveFloat,
    PositiveInt,
    find_hparams_file,
    named,
    read_yaml,
)

if TYPE_CHECKING:
    from typing_extensions import Self

WITHOUT_MEANING = frozenset(
    {
        "alg",
        "cbase",
        "debug",
        "eval_log_interval",
        "eval_only",
        "final_eval",
        "log_errors",
        "max_length",
        "max_output_length",
        "model_class",
        "no_grad_layers",
        "save",
        "silent",
        "tokenizer_class",
        "tokenizer_name",
        "verbose",
    }
)
"""Keys of EasyEdit's files that change nothing here."""
_CONSTANT = 1 / 3  # of the time, before the learning rate falls
_LAST = 0.05  # of it, at the end


class TrainingHparams(Hparams):
    """How an editor is trained.

    An iteration is a batch, as in EasyEdit; the optimiser takes a step every `accumulate_bs` of
    them. All intervals and the patience are in iterations.

    Attributes:
        lr: Adam's learning rate.
        lr_decay: ``cosine``: from `lr` down to a twentieth of it over the last two thirds of
            `max_iters`; ``none``: `lr` throughout, as in EasyEdit.
        batch_size: Records of a batch.
        accumulate_bs: Batches whose gradients make an optimiser step.
        max_iters: Iterations at most.
        max_epochs: Passes over the records at most.
        grad_clip: The gradient is cut to this norm.
        opt: The optimiser.
        cedit: Weight of the loss on the edits.
        cloc: Weight of the loss on locality.
        half: Whether the model is run in bfloat16. What is trained stays in float32.
        seed: Of the order of records and all else that is drawn.
        log_interval: Iterations between two lines of the log.
        val_interval: Iterations between two validations.
        val_steps: Edited models of a validation at most; None: all that its records give.
        val_batch_size: Edits in each of these models.
        model_save_pt: Iterations between two checkpoints; of a run that is no longer than that, a
            tenth of it. There is one at each validation too.
        early_stop_patience: Training ends after so many iterations without a better value.
        early_stop_key: Name of that value; the checkpoint where it is best is kept.
        results_dir: Where the run's folder is, unless it is named.
        archive: A trained editor to begin with.
        train_base: False: the model itself is not trained.
        dropout: 0: the model runs as it does in use.
    """

    lr: PositiveFloat = 1e-5
    lr_decay: Literal["none", "cosine"] = "none"
    batch_size: PositiveInt = 10
    accumulate_bs: PositiveInt = 1
    max_iters: PositiveInt = 100_000
    max_epochs: PositiveInt | None = None
    grad_clip: PositiveFloat = 100.0
    opt: Literal["Adam"] = "Adam"
    cedit: NonNegativeFloat = 0.1
    cloc: NonNegativeFloat = 1.0
    half: bool = False
    seed: Annotated[int, pydantic.Field(ge=0, lt=1 << 63)] = 0
    log_interval: PositiveInt = 100
    val_interval: PositiveInt = 500
    val_steps: PositiveInt | None = None
    val_batch_size: PositiveInt = 1
    model_save_pt: PositiveInt = 500
    early_stop_patience: PositiveInt = 20_000
    early_stop_key: str = "loss/total_edit_val"
    results_dir: PathText = "./results"
    archive: PathText | None = None
    train_base: Literal[False] = False
    dropout: Annotated[Float, pydantic.Field(ge=0, le=0)] = 0.0

    @classmethod
    def _warn_unknown(cls, name: str) -> None:
        if name not in WITHOUT_MEANING:
            super()._warn_unknown(name)

    @classmethod
    def checked_keys(cls, given: Mapping[str, Any], **of_the_model: Any) -> dict[str, Any]:
        """Keys as they are given, checked before there is a model.

        Keys without a meaning are left out, so that they are told of once.

        Args:
            given: The keys.
            of_the_model: Values that stand for what will follow from the model.

        Raises:
            HparamsError: A value cannot be used.
        """
        cls(**{**of_the_model, **given})
        return {name: value for name, value in given.items() if name in cls.model_fields}

    @classmethod
    def resolved(
        cls,
        hparams: str | os.PathLike[str] | Mapping[str, Any] | Hparams | None,
        **of_the_model: Any,
    ) -> Self:
        """From whatever the user gave.

        Args:
            hparams: Keys, the path of a YAML file or a shipped name such as
                ``TRAINING/MEND/llama-7b``, or hyperparameters ready made.
            of_the_model: What follows from the model where it is not given.

        Raises:
            HparamsError: A value cannot be used.
            MissingFileError: There is no such file.
        """
        method = cls.model_fields["alg_name"].default
        if isinstance(hparams, Hparams):
            if not isinstance(hparams, cls):
                raise HparamsError(
                    f"{type(hparams).__name__} is not for training {method}; give {cls.__name__}"
                )
            return hparams.model_copy(deep=True)
        if hparams is None or isinstance(hparams, Mapping):
            return cls(**{**of_the_model, **(hparams or {})})
        given = read_yaml(find_hparams_file(hparams, f"TRAINING/{method}"))
        with named(os.fspath(hparams)):
            return cls(**{**of_the_model, **given})

    def learning_rate(self, iteration: int, iterations: int) -> float:
        """The learning rate as a share of `lr`, at an iteration of so many."""
        if self.lr_decay == "none":
            return 1.0
        done = max(0.0, (iteration / iterations - _CONSTANT) / (1 - _CONSTANT))
        return _LAST + (1 - _LAST) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    @pydantic.model_validator(mode="after")
    def _at_steps(self) -> TrainingHparams:
        for name in ("val_interval", "model_save_pt"):
            if getattr(self, name) % self.accumulate_bs:
                raise ValueError(
                    f"{name} must be a multiple of accumulate_bs ({self.accumulate_bs}): between "
                    "two optimiser steps there is nothing to look at"
                )
        return self
