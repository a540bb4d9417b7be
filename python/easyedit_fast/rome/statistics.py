"""Which second moment each edited layer has, and whether it is used."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from easyedit_fast.errors import DataFileError, HparamsError
from easyedit_fast.moments import (
    SecondMoment,
    SecondMomentFactor,
    find_collected,
    find_statistics,
    read_origin,
    read_second_moment,
)
from easyedit_fast.rome.hparams import ROMEHyperParams

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class LayerStatistics:
    """The second moments of the edited layers; each is factorised once, at its first use.

    Attributes:
        moments: By layer; empty where C = I.
    """

    moments: dict[int, SecondMoment]
    _factors: dict[int, SecondMomentFactor] = dataclasses.field(default_factory=dict)

    @classmethod
    def resolve(
        cls,
        hparams: ROMEHyperParams,
        model_name: str,
        fingerprint: str,
        modules: Sequence[tuple[int, str, int]],
    ) -> LayerStatistics:
        """Reads the statistics that the hyperparameters ask for, or that are at hand.

        Args:
            hparams: ``mom2_adjustment`` (None: where statistics of every layer are at hand),
                ``second_moment`` and EasyEdit's ``stats_dir`` and ``mom2_*``.
            model_name: Name or path of the model.
            fingerprint: Of the model.
            modules: Layer, name and d_in of each edited module.

        Raises:
            HparamsError: ``mom2_adjustment`` is true and a layer has no statistics, or one
                ``second_moment`` is given for several layers.
            DataFileError: A file is damaged, of another size than the layer, or tells that it
                belongs to another model or layer.
        """
        if hparams.mom2_adjustment is False:
            if hparams.second_moment is not None:
                logger.warning(
                    "second_moment %r is not used, for mom2_adjustment is false; leave that out "
                    "to use it",
                    hparams.second_moment,
                )
            return cls({})
        paths = statistics_files(hparams, model_name, fingerprint, modules)
        missing = [layer for layer, path in paths.items() if path is None]
        if missing and hparams.mom2_adjustment:
            raise HparamsError(
                f"mom2_adjustment is true, but layer {missing[0]} has no statistics in "
                f"{hparams.stats_dir!r}; collect them (easyedit-fast stats), give "
                "second_moment=FILE.npz, or set mom2_adjustment to false"
            )
        if missing:
            if len(missing) < len(paths):
                logger.warning(
                    "C = I is used for all layers, since layer %d has no statistics in %r",
                    missing[0],
                    hparams.stats_dir,
                )
            return cls({})
        return cls(
            {
                layer: read_fitting(str(paths[layer]), fingerprint, name, size)
                for layer, name, size in modules
            }
        )

    def factor(self, layer: int, device: torch.device) -> SecondMomentFactor | None:
        """The Cholesky factor of a layer's second moment, or None for C = I."""
        if layer not in self.moments:
            return None
        if layer not in self._factors:
            self._factors[layer] = self.moments[layer].factorise()
        return SecondMomentFactor(self._factors[layer].lower.to(device))


def statistics_files(
    hparams: ROMEHyperParams,
    model_name: str,
    fingerprint: str,
    modules: Sequence[tuple[int, str, int]],
) -> dict[int, str | None]:
    """The statistics file of each layer: the one given or found; None where there is none.

    Args:
        hparams: As `LayerStatistics.resolve` takes them, like the rest.
        model_name: Name or path of the model.
        fingerprint: Of the model.
        modules: Layer, name and d_in of each edited module.

    Raises:
        HparamsError: One ``second_moment`` is given for several layers.
    """
    given = hparams.second_moment
    if given is not None and "{}" not in given and len(modules) > 1:
        raise HparamsError(
            f"second_moment {given!r} is one file for {len(modules)} layers, and each has its own; "
            "write '{}' in it for the layer"
        )
    return {
        layer: _path(hparams, model_name, fingerprint, layer, name) for layer, name, _ in modules
    }


def _path(
    hparams: ROMEHyperParams, model_name: str, fingerprint: str, layer: int, module_name: str
) -> str | None:
    if hparams.second_moment is not None:
        return hparams.second_moment.replace("{}", str(layer))
    found = find_statistics(
        hparams.stats_dir,
        model_name,
        module_name,
        hparams.mom2_dataset,
        hparams.mom2_dtype,
        hparams.mom2_n_samples,
    )
    found = found or find_collected(fingerprint, module_name)
    return None if found is None else str(found)


def read_fitting(path: str, fingerprint: str, module_name: str, size: int) -> SecondMoment:
    """The second moment in a file, if it is that of the model's module.

    Args:
        path: The file.
        fingerprint: Of the model.
        module_name: Name of the edited module.
        size: Its d_in.

    Raises:
        MissingFileError: There is no such file.
        DataFileError: It is damaged, or belongs to another model or layer.
    """
    moment = read_second_moment(path)
    origin = read_origin(Path(path))
    if origin is not None and origin.model_fingerprint != fingerprint:
        raise DataFileError(
            f"{path} was collected on another model ({origin.model_name}); collect it on this one"
        )
    if origin is not None and origin.module != module_name:
        raise DataFileError(
            f"{path} was collected for {origin.module}, not for {module_name}; give that one's"
        )
    if len(moment.matrix) != size:
        raise DataFileError(
            f"{moment.source} is {len(moment.matrix)} × {len(moment.matrix)}, and the keys of "
            f"{module_name} have {size} dimensions; it belongs to another model or layer"
        )
    return moment
