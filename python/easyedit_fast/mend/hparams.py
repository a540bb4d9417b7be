"""MEND's hyperparameters, with EasyEdit's keys."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from easyedit_fast.hparams import (
    Float,
    Hparams,
    PathText,
    PositiveFloat,
    PositiveInt,
)
from easyedit_fast.training.hparams import TrainingHparams

_OF_TRAINING = frozenset(
    {
        "lr",
        "lr_lr",
        "lr_decay",
        "n_edits",
        "vary_n_edits",
        "outer_prompts",
        "loc_tokens",
        "cedit",
        "cloc",
        "cbase",
        "dropout",
        "train_base",
        "no_grad_layers",
        "batch_size",
        "max_iters",
        "max_epochs",
        "model_save_pt",
        "silent",
        "log_interval",
        "eval_log_interval",
        "final_eval",
        "val_interval",
        "early_stop_patience",
        "early_stop_key",
        "eval_only",
        "half",
        "debug",
        "save",
        "verbose",
        "val_batch_size",
        "accumulate_bs",
        "val_steps",
        "opt",
        "grad_clip",
        "results_dir",
        "max_length",
        "max_output_length",
        "model_class",
        "tokenizer_class",
        "tokenizer_name",
        "alg",
    }
)
"""Keys of training, EasyEdit's and ours, which have no meaning for an edit."""


HOW_EDITS_SHARE = frozenset({"together", "ridge"})
"""Keys of the use of an editor, which its file and its training have no say in."""


class MENDHyperParams(Hparams):
    """What MEND's editor network is made of, and which weights it edits.

    Attributes:
        alg_name: ``MEND``.
        model_name: Name or path of the model.
        archive: The trained editor: a file of ours, or a checkpoint of EasyEdit's or MEND's.
        inner_params: Names of the edited weights, e.g. ``model.layers.27.mlp.up_proj.weight``.
        edit_lr: What the learned step size of each weight starts from.
        lr_scale: Factor of every step size, as in the code of ROME's baselines.
        together: How edits share a model: their ``sum``, as in EasyEdit; MALMEN's
            ``least_squares``; ``corrected``: the sum, mended by least squares.
        ridge: λ of these two, in units of the mean squared norm of the tokens' inputs.
        n_hidden: Hidden layers of the network.
        rank: Of the network's weights, at most.
        init: ``id``: each layer adds to what it gets, and adds nothing at first; ``xavier``.
        act: Kept for EasyEdit's files; an `IDMLP` knows no other than ``relu``.
        mlp_class: Kept for them too; ``IDMLP``.
        norm: Whether inputs are normalised by their running mean and deviation.
        combine: One network for x and δ together.
        one_sided: Only the smaller of x and δ is transformed.
        x_only: Only x is transformed.
        delta_only: Only δ is transformed.
        shared: Weights of one shape share a network, with a scale and a shift of their own.
        hidden_dim: Kept for them too; no meaning with an `IDMLP`.
        seed: Of the network's first weights.
        device: Where the model is loaded; None leaves it to the editor.
        model_parallel: Whether the model is spread over all devices.
        fp16: Whether the model is loaded in half precision.
    """

    alg_name: Literal["MEND"] = "MEND"
    model_name: str = ""
    archive: PathText | None = None
    inner_params: list[str] = pydantic.Field(min_length=1)
    edit_lr: Float = 1e-4
    lr_scale: Float = 1.0
    together: Literal["corrected", "least_squares", "sum"] = "corrected"
    ridge: PositiveFloat = 0.01
    n_hidden: Annotated[int, pydantic.Field(ge=0, le=64)] = 1
    rank: PositiveInt = 1920
    init: Literal["id", "xavier"] = "id"
    act: Literal["relu"] = "relu"
    mlp_class: Literal["IDMLP"] = "IDMLP"
    norm: bool = True
    combine: bool = True
    one_sided: bool = False
    x_only: bool = False
    delta_only: bool = False
    shared: bool = True
    hidden_dim: PositiveInt | None = None
    seed: Annotated[int, pydantic.Field(ge=0, lt=1 << 63)] = 0
    device: int | str | None = None
    model_parallel: bool = False
    fp16: bool = False

    @classmethod
    def _warn_unknown(cls, name: str) -> None:
        if name not in _OF_TRAINING:
            super()._warn_unknown(name)

    @pydantic.model_validator(mode="after")
    def _one_form(self) -> MENDHyperParams:
        chosen = [
            name for name in ("combine", "one_sided", "x_only", "delta_only") if getattr(self, name)
        ]
        if len(chosen) > 1:
            raise ValueError(f"{' and '.join(chosen)} exclude each other; switch on one of them")
        if len(set(self.inner_params)) < len(self.inner_params):
            raise ValueError("inner_params names a weight twice; name each once")
        return self


class MENDTrainingHparams(TrainingHparams, MENDHyperParams):
    """How a MEND editor is made and trained; see `MENDHyperParams` and `TrainingHparams`.

    Attributes:
        lr_lr: Adam's learning rate for the step sizes of the weights, which begin as `edit_lr`.
        n_edits: Edits in one model at most; None: `batch_size`.
        vary_n_edits: Whether each batch draws how many edits a model gets, 1 to `n_edits`, half
            of the time few of them; else always `n_edits`, as in EasyEdit.
        outer_prompts: ``alternate``: the edited model is asked the rewrite prompts in one batch
            and the rephrase prompts in the next; ``rewrite``: always the former, as in EasyEdit.
        loc_tokens: ``all``: locality is the KL divergence over all tokens of its prompts and
            answers, as in EasyEdit; ``answer``: over those that predict the answers.
    """

    lr_lr: PositiveFloat = 1e-4
    n_edits: PositiveInt | None = None
    vary_n_edits: bool = True
    outer_prompts: Literal["alternate", "rewrite"] = "alternate"
    loc_tokens: Literal["all", "answer"] = "all"

    @property
    def edits_at_most(self) -> int:
        """Edits in one model at most."""
        return self.n_edits or self.batch_size

    @pydantic.model_validator(mode="after")
    def _edits_of_a_batch(self) -> MENDTrainingHparams:
        if self.edits_at_most > self.batch_size:
            raise ValueError(
                f"n_edits ({self.n_edits}) is more than the batch has ({self.batch_size}); raise "
                "batch_size"
            )
        return self

    def for_edits(self) -> dict[str, object]:
        """Those that the editor was made with, as `MENDHyperParams` takes them."""
        wanted = set(MENDHyperParams.model_fields) - {"archive"} - HOW_EDITS_SHARE
        return {name: value for name, value in self.to_dict().items() if name in wanted}
