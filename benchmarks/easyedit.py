"""Runs EasyEdit's own ROME from a checkout of zjunlp/EasyEdit, without its whole dependency tree.

Only ``easyeditor.models.rome`` and ``easyeditor.util`` are imported: the packages above them get
empty stand-ins, for their own ``__init__`` imports every method and its requirements.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import tempfile
import types
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from easyedit_fast.moments.statistics_files import statistics_path

_EMPTY_PACKAGES = ("easyeditor", "easyeditor.models", "easyeditor.util")
# Keys of its hyperparameters that our rule has too.
_SHARED_KEYS = (
    "alg_name",
    "layers",
    "fact_token",
    "v_num_grad_steps",
    "v_lr",
    "v_loss_layer",
    "v_weight_decay",
    "clamp_norm_factor",
    "kl_factor",
    "context_template_length_params",
    "rewrite_module_tmp",
    "layer_module_tmp",
    "mlp_module_tmp",
    "attn_module_tmp",
    "ln_f_module",
    "lm_head_module",
    "mom2_dataset",
    "mom2_n_samples",
    "mom2_dtype",
)


class EasyEditRome:
    """EasyEdit's ``execute_rome`` on a loaded model.

    Attributes:
        steps: Gradient evaluations of the last edit.
    """

    def __init__(
        self,
        checkout: Path,
        model: Any,
        tokenizer: Any,
        hparams: Mapping[str, Any],
        templates: Sequence[str],
        *,
        second_moment: Path | None = None,
    ) -> None:
        """Imports the checkout's code; it computes with the same templates as ours.

        Args:
            checkout: The checkout's folder.
            model: The model; it is left as it was.
            tokenizer: Its tokenizer.
            hparams: Our hyperparameters, of which it takes the keys that it knows.
            templates: The context templates.
            second_moment: An .npz of statistics of the edited layer; None for C = I.
        """
        self.model, self.tokenizer = model, tokenizer
        self.steps = 0
        main = _module(checkout, "rome_main")
        main.CONTEXT_TEMPLATES_CACHE = list(templates)
        self._execute = main.execute_rome
        self._statistics = tempfile.TemporaryDirectory()  # lives as long as this object
        self.hparams = main.ROMEHyperParams(
            **{key: hparams[key] for key in _SHARED_KEYS},
            mom2_adjustment=second_moment is not None,
            stats_dir=self._statistics.name,
            device="cpu",
            model_name=str(model.name_or_path),
        )
        if second_moment is not None:
            self._place(second_moment)

    def update(self, prompt: str, subject: str, target: str) -> torch.Tensor:
        """One edit: the update [d_out, d_in] of the one edited weight."""
        request = {"prompt": prompt, "subject": subject, "target_new": target}
        with contextlib.redirect_stdout(io.StringIO()) as told:
            deltas = self._execute(self.model, self.tokenizer, request, self.hparams)
        self.steps = sum(line.startswith("loss ") for line in told.getvalue().splitlines())
        ((left, right),) = deltas.values()
        return torch.outer(right, left)

    def _place(self, second_moment: Path) -> None:
        """Copies statistics to where EasyEdit looks for them, under the sample size it asks for."""
        (layer,) = self.hparams.layers
        samples = self.hparams.mom2_n_samples
        path = statistics_path(
            self.hparams.stats_dir,
            self.hparams.model_name.rsplit("/", maxsplit=1)[-1],
            self.hparams.rewrite_module_tmp.format(layer),
            self.hparams.mom2_dataset,
            self.hparams.mom2_dtype,
            samples,
        )
        path.parent.mkdir(parents=True)
        with np.load(second_moment, allow_pickle=False) as file:
            np.savez(path, **{**file, "sample_size": np.asarray(samples)})


class EasyEditStatistics:
    """EasyEdit's ``layer_stats`` on a loaded model, fed with texts of ours."""

    def __init__(self, checkout: Path, model: Any, tokenizer: Any) -> None:
        """Imports the checkout's code."""
        self.model, self.tokenizer = model, tokenizer
        self._module = _module(checkout, "layer_stats")

    def moment(
        self, module_name: str, texts: Sequence[str], batch_tokens: int | None
    ) -> tuple[torch.Tensor, int]:
        """One pass for the second moment of one module's input, its file written as ever.

        Args:
            module_name: The module.
            texts: A row of the data set each. The one thing that is put in place of EasyEdit's
                own is what ``load_dataset`` gives.
            batch_tokens: Of ``layer_stats``: tokens of a text and of a forward pass at most; None
                is its default, the context and three times the context.

        Returns:
            C [d_in, d_in] and the number of tokens.
        """
        from datasets import Dataset

        rows = {"train": Dataset.from_dict({"text": list(texts)})}
        self._module.load_dataset = lambda *_: rows
        with (
            tempfile.TemporaryDirectory() as folder,
            contextlib.redirect_stdout(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", message=".*pin_memory")
            stat = self._module.layer_stats(
                self.model,
                self.tokenizer,
                module_name,
                folder,
                "wikitext2",
                ["mom2"],
                sample_size=len(texts),
                precision="float32",
                batch_tokens=batch_tokens,
                progress=lambda loader, total: loader,  # noqa: ARG005 - no bar
                hparams=types.SimpleNamespace(device="cpu"),
            )
        return stat.mom2.moment(), stat.mom2.count


def _module(checkout: Path, name: str) -> Any:
    """A module of the checkout's ROME; the packages above it are empty, their folders its own."""
    if not (checkout / "easyeditor" / "models" / "rome").is_dir():
        raise SystemExit(f"error: {checkout} is no checkout of zjunlp/EasyEdit")
    for package_name in _EMPTY_PACKAGES:
        package = types.ModuleType(package_name)
        package.__path__ = [str(checkout.resolve().joinpath(*package_name.split(".")))]
        sys.modules[package_name] = package
    return importlib.import_module(f"easyeditor.models.rome.{name}")
