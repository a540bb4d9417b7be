"""Second moments on disk: the .npz files of ROME and EasyEdit."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch

from easyedit_fast.errors import DataFileError, MissingFileError
from easyedit_fast.moments.second_moment import SecondMoment

_SUM_KEY = "mom2.mom2"
_COUNT_KEY = "mom2.count"


def read_second_moment(path: str | Path) -> SecondMoment:
    """Reads a statistics file of ROME or EasyEdit.

    Such a file holds ``mom2.mom2`` [d_in, d_in], the sum of k kᵀ, and ``mom2.count``.
    Nothing in it is run (pickled arrays are refused).

    Raises:
        MissingFileError: There is no such file.
        DataFileError: The file is damaged, or holds no second moment.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"there is no second-moment file {str(path)!r}; check the path")
    try:
        # numpy leaves a damaged file open if it opens it itself.
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            missing = [key for key in (_SUM_KEY, _COUNT_KEY) if key not in file.files]
            if missing:
                raise DataFileError(f"{path} holds no {missing[0]!r}; it is no second-moment file")
            total, count = file[_SUM_KEY], file[_COUNT_KEY]
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        if isinstance(error, DataFileError):
            raise
        raise DataFileError(f"{path} is damaged ({error}); collect or copy it again") from None
    return _checked(path, total, count)


def find_statistics(
    stats_dir: str | Path, model_name: str, module_name: str, dataset: str, dtype: str, samples: int
) -> Path | None:
    """Looks for EasyEdit's cache file of a layer's second moment.

    Args:
        stats_dir: Root folder of the cache.
        model_name: Name or path of the model; its last part, or all of it with ``_`` for ``/``.
        module_name: The down projection, e.g. ``model.layers.5.mlp.down_proj``.
        dataset: E.g. ``wikipedia``.
        dtype: E.g. ``float32``.
        samples: Number of samples in the file's name.

    Returns:
        The path, or None where there is none. A name with another token cap than EasyEdit's own
        (``…_mom2_t*_N.npz``) is found too.
    """
    names = dict.fromkeys([model_name.rstrip("/").split("/")[-1], model_name.replace("/", "_")])
    for name in names:
        folder = Path(stats_dir) / name / f"{dataset}_stats"
        exact = folder / f"{module_name}_{dtype}_mom2_{samples}.npz"
        if exact.is_file():
            return exact
        others = sorted(folder.glob(f"{module_name}_{dtype}_mom2*_{samples}.npz"))
        if others:
            return others[0]
    return None


def _checked(path: Path, total: np.ndarray, count: np.ndarray) -> SecondMoment:
    if total.ndim != 2 or total.shape[0] != total.shape[1] or total.dtype.kind != "f":
        raise DataFileError(
            f"{path}: {_SUM_KEY!r} is {list(total.shape)} {total.dtype}, not a square matrix of "
            "floating point; collect it again"
        )
    if count.size != 1 or not np.isfinite(count).all() or count.item() < 1:
        raise DataFileError(f"{path}: {_COUNT_KEY!r} is not a positive count; collect it again")
    if not np.isfinite(total).all():
        raise DataFileError(f"{path}: {_SUM_KEY!r} holds NaN or infinity; collect it again")
    matrix = torch.from_numpy(total.astype(np.float64)) / float(count.item())
    return SecondMoment((matrix + matrix.T) / 2, int(count.item()), str(path))
