"""Which second moments a sweep has, and which modes follow from them."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from easyedit_fast.errors import HparamsError
from easyedit_fast.files import digest
from easyedit_fast.models.architectures import key_size
from easyedit_fast.models.fingerprint import model_fingerprint
from easyedit_fast.moments import SecondMomentFactor, collect_statistics, read_origin
from easyedit_fast.rome.statistics import read_fitting, statistics_files
from easyedit_fast.sweeps.rows import MODES, Mode

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from easyedit_fast.data import Corpus
    from easyedit_fast.models.architectures import Architecture
    from easyedit_fast.rome import ROMEHyperParams

logger = logging.getLogger(__name__)


class SecondMoments:
    """The statistics files of the swept layers; one matrix is in memory at a time.

    Attributes:
        files: The file of each layer that has one.
        digests: SHA-256 of these files, once they are checked.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        architecture: Architecture,
        hparams: ROMEHyperParams,
        layers: Sequence[int],
    ) -> None:
        """Looks for the files that the hyperparameters name, or that were collected.

        Args:
            model: The model.
            architecture: Where its parts are.
            hparams: ``second_moment``, ``stats_dir`` and ``mom2_*`` are read.
            layers: The layers, from 0.

        Raises:
            HparamsError: One ``second_moment`` is given for several layers.
            ModelError: A layer is not in the model.
        """
        self._model = model
        self._architecture = architecture
        self._fingerprint = model_fingerprint(model, architecture)
        self._modules = {
            layer: (architecture.projection_name(layer), key_size(model, architecture, layer))
            for layer in layers
        }
        modules = [(layer, *module) for layer, module in self._modules.items()]
        name = str(getattr(model, "name_or_path", ""))
        found = statistics_files(hparams, name, self._fingerprint, modules)
        self.files = {layer: path for layer, path in found.items() if path is not None}
        self.digests: dict[int, str] = {}

    @property
    def missing(self) -> list[int]:
        """The layers without statistics."""
        return [layer for layer in self._modules if layer not in self.files]

    def collect(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text: Corpus,
        progress: Callable[[int, int], None],
    ) -> None:
        """Collects what is missing in one pass over a text, and keeps it in the user's cache."""
        found = collect_statistics(
            self._model,
            tokenizer,
            text,
            self.missing,
            architecture=self._architecture,
            progress=progress,
        )
        self.files.update({layer: str(path) for layer, path in found.items()})

    def check(self) -> None:
        """Reads every file once, so that a bad one is not met after hours.

        Raises:
            MissingFileError: There is no such file.
            DataFileError: A file is damaged, or belongs to another model or layer.
        """
        for layer, path in self.files.items():
            read_fitting(path, self._fingerprint, *self._modules[layer])
            self.digests[layer] = digest(Path(path))
        origins = [read_origin(Path(path)) for path in self.files.values()]
        texts = {json.dumps(None if one is None else [one.corpus, one.tokens]) for one in origins}
        if len(texts) > 1:
            logger.warning(
                "the layers' second moments come from %d different texts, so that layers differ by "
                "more than themselves; collect all of them from one (easyedit-fast stats)",
                len(texts),
            )

    def factor(self, layer: int, device: torch.device) -> SecondMomentFactor:
        """The Cholesky factor of a layer's second moment."""
        moment = read_fitting(self.files[layer], self._fingerprint, *self._modules[layer])
        return SecondMomentFactor(moment.factorise().lower.to(device))


def settle_modes(modes: Sequence[str] | None, missing: Sequence[int]) -> list[Mode]:
    """The modes to sweep; by default both, if the statistics allow it.

    Args:
        modes: What was asked for; None leaves ``full`` out where statistics are missing.
        missing: Layers without statistics.

    Raises:
        HparamsError: An unknown mode, none at all, or ``full`` without statistics.
    """
    unknown = [mode for mode in modes or () if mode not in MODES]
    if unknown or (modes is not None and not modes):
        given = repr(unknown[0]) if unknown else "an empty list"
        raise HparamsError(f"modes: {given} is no mode; use {' or '.join(map(repr, MODES))}")
    if missing and (modes is None or "full" in modes):
        numbers = ",".join(map(str, missing))
        remedy = (
            "give texts to collect them from (text=…, --text FILE), or collect them before "
            f"(easyedit-fast stats --layers {numbers})"
        )
        if modes is not None:
            raise HparamsError(
                f"mode 'full' needs second moments, and layers {numbers} have none; {remedy}"
            )
        logger.warning(
            "mode 'full' is left out, for layers %s have no second moments; %s", numbers, remedy
        )
        return ["simplified"]
    return [mode for mode in MODES if modes is None or mode in modes]
