"""Second moments on disk: the .npz files of ROME and EasyEdit."""

from __future__ import annotations

import dataclasses
import json
import logging
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pydantic.dataclasses
import torch

from easyedit_fast.errors import DataFileError, MissingFileError
from easyedit_fast.files import replacing
from easyedit_fast.moments.second_moment import SecondMoment

logger = logging.getLogger(__name__)

_SUM_KEY = "mom2.mom2"
_COUNT_KEY = "mom2.count"
_ORIGIN_KEY = "easyedit_fast"
_ORIGIN_FORMAT = 1
# What zipfile and numpy raise over bytes that are not as written.
_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    SyntaxError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(strict=True))
class Origin:
    """Where statistics came from: all that they depend on.

    Attributes:
        model_fingerprint: Of the model (`models.fingerprint`).
        model_name: Its name or path, for people.
        module: The module whose input was looked at.
        corpus: Name and identity of the corpus.
        tokens: Tokens that were looked at.
        budget: Tokens that were asked for.
        block_length: Tokens that were read as one text.
        dtype: Of the model's weights.
        version: Of this package.
    """

    model_fingerprint: str
    model_name: str
    module: str
    corpus: dict[str, Any]
    tokens: int
    budget: int
    block_length: int
    dtype: str
    version: str


def statistics_path(
    root: str | Path, model_name: str, module_name: str, dataset: str, dtype: str, samples: int
) -> Path:
    """The place of a layer's statistics in EasyEdit's layout."""
    folder = Path(root) / model_name / f"{dataset}_stats"
    return folder / f"{module_name}_{dtype}_mom2_{samples}.npz"


def write_second_moment(path: Path, moment: SecondMoment, origin: Origin, samples: int) -> None:
    """Writes statistics as ROME and EasyEdit read them, whole or not at all.

    Beside their keys the file holds `origin` as JSON (bytes, under ``easyedit_fast``). The sum is
    float64, whatever the file's name says: that is EasyEdit's key.
    """
    header = json.dumps({"format": _ORIGIN_FORMAT, **dataclasses.asdict(origin)})
    arrays: dict[str, Any] = {
        "mom2.constructor": "util.runningstats.SecondMoment()",
        _COUNT_KEY: moment.count,
        _SUM_KEY: (moment.matrix * moment.count).numpy(),
        "sample_size": samples,
        _ORIGIN_KEY: np.frombuffer(header.encode(), dtype=np.uint8),
    }
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)


def read_origin(path: Path) -> Origin | None:
    """Where a file's statistics came from; None for a file of ROME or EasyEdit.

    Raises:
        DataFileError: The file is damaged.
    """
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            if _ORIGIN_KEY not in file.files:
                return None
            values = json.loads(bytes(file[_ORIGIN_KEY]))
        known = values.pop("format") == _ORIGIN_FORMAT
        origin = Origin(**values)
    except (*_DAMAGE, AttributeError, KeyError, TypeError) as error:
        raise _damaged(path, error) from None
    if not known:
        raise DataFileError(f"{path} was written by another version; update the package")
    return origin


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
        total, count = _arrays(path)
    except DataFileError:
        raise
    except _DAMAGE as error:
        raise _damaged(path, error) from None
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
        (``…_mom2_t*_N.npz``) is found too; of several, the one with the largest cap, and that is
        logged.
    """
    names = dict.fromkeys([model_name.rstrip("/").split("/")[-1], model_name.replace("/", "_")])
    for name in names:
        exact = statistics_path(stats_dir, name, module_name, dataset, dtype, samples)
        if exact.is_file():
            return exact
        capped = list(exact.parent.glob(f"{module_name}_{dtype}_mom2_t*_{samples}.npz"))
        if capped:
            return _largest_cap(capped)
    return None


def _largest_cap(paths: list[Path]) -> Path:
    """The last of file names that differ in a number alone, which is not padded."""
    chosen = max(paths, key=lambda path: (len(path.name), path.name))
    if len(paths) > 1:
        logger.warning(
            "%d second-moment files fit, with different token caps; %s is used. Name another with "
            "second_moment=FILE",
            len(paths),
            chosen,
        )
    return chosen


def _damaged(path: Path, error: Exception) -> DataFileError:
    reason = " ".join(str(error).split()) or type(error).__name__
    if "pickle" in reason:
        # numpy takes what it does not know for pickled objects, and tells how to run them.
        reason = "it is no .npz file, or holds other things than numbers"
    return DataFileError(f"{path} is damaged ({reason}); collect or copy it again")


def _arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Sum and count as they stand in the file; raises `DataFileError` or one of `_DAMAGE`."""
    # numpy leaves a damaged file open if it opens it itself.
    with path.open("rb") as raw:
        file = np.load(raw, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise DataFileError(
                f"{path} holds a single array (.npy), not an archive (.npz) of {_SUM_KEY!r} and "
                f"{_COUNT_KEY!r}; give the file that was collected"
            )
        with file:
            missing = [key for key in (_SUM_KEY, _COUNT_KEY) if key not in file.files]
            if missing:
                raise DataFileError(
                    f"{path} holds no {missing[0]!r}, so it is no second-moment file; give one, "
                    "or collect it again"
                )
            return file[_SUM_KEY], file[_COUNT_KEY]


def _checked(path: Path, total: np.ndarray, count: np.ndarray) -> SecondMoment:
    if total.ndim != 2 or total.shape[0] != total.shape[1] or total.dtype.kind != "f":
        raise DataFileError(
            f"{path}: {_SUM_KEY!r} is {list(total.shape)} {total.dtype}, not a square matrix of "
            "floating point; collect it again"
        )
    if (
        count.size != 1
        or count.dtype.kind not in "iuf"
        or not np.isfinite(count).all()
        or count.item() < 1
    ):
        raise DataFileError(f"{path}: {_COUNT_KEY!r} is not a positive count; collect it again")
    if not np.isfinite(total).all():
        raise DataFileError(f"{path}: {_SUM_KEY!r} holds NaN or infinity; collect it again")
    matrix = torch.from_numpy(total.astype(np.float64)) / float(count.item())
    return SecondMoment((matrix + matrix.T) / 2, int(count.item()), str(path))
