"""What enters the first edited block, computed once a text and kept on disk.

Training runs the same texts epoch after epoch, and nothing below the first edited block changes.
The hidden states that enter it are kept in bfloat16 in one file, which is mapped into memory. A
cache is found again by all that it depends on, and made again where anything of it is not so.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from easyedit_fast.errors import NonFiniteError
from easyedit_fast.files import digest, replacing, write_whole
from easyedit_fast.models.architectures import Architecture, block, number_of_layers
from easyedit_fast.models.cache import cache_folder
from easyedit_fast.models.checksums import weight_checksum
from easyedit_fast.models.passes import padded_rows
from easyedit_fast.models.tracing import frozen, stop_after, watch_block

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_FORMAT = "easyedit-fast.trunk-cache.1"
_STATES, _HEADER = "states.bin", "header.json"
_TOKENS_AT_ONCE = 2048


class TrunkCache:
    """The hidden states of rows of tokens that enter a block.

    Attributes:
        lengths: ``[rows]`` int64, tokens of each row.
    """

    def __init__(self, states: NDArray[np.int16], lengths: Sequence[int]) -> None:
        """Takes the bit patterns of all rows, ``[tokens, d_model]``, one row after another."""
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self._ends = np.cumsum(self.lengths)
        self._states = states

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> Tensor:
        """The hidden states ``[tokens, d_model]`` bfloat16 of a row."""
        end = int(self._ends[row])
        own = np.array(self._states[end - int(self.lengths[row]) : end])
        return torch.from_numpy(own).view(torch.bfloat16)


def open_trunk_cache(
    model: PreTrainedModel,
    architecture: Architecture,
    layer: int,
    rows: Sequence[Sequence[int]],
    *,
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TrunkCache:
    """Finds the cache of some rows, or makes it.

    Args:
        model: The model.
        architecture: Where its parts are.
        layer: The block, from 0.
        rows: Token ids of each row, with those that the tokenizer adds, without pads.
        folder: Where caches are kept; None: in the user's cache.
        progress: Called with the rows done and of all, where the cache is made.

    Raises:
        NonFiniteError: A hidden state is NaN or infinite; the row is named.
    """
    key = _key(model, architecture, layer, rows)
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    place = (folder or cache_folder() / "trunks") / name[:32]
    lengths = [len(row) for row in rows]
    width = _width(model)
    if not _is_whole(place, key):
        place.mkdir(parents=True, exist_ok=True)
        with replacing(place / _STATES) as partial:
            shape = (sum(lengths), width)
            states = np.memmap(partial, dtype=np.int16, mode="w+", shape=shape)
            for done in _fill(states, model, architecture, layer, rows):
                if progress is not None:
                    progress(done, len(rows))
            states.flush()
        # Last, so that a run that ends before leaves no cache.
        header = {"key": key, "sha256": digest(place / _STATES)}
        write_whole(place / _HEADER, json.dumps(header).encode())
    kept = np.memmap(place / _STATES, dtype=np.int16, mode="r", shape=(sum(lengths), width))
    return TrunkCache(kept, lengths)


def _fill(
    states: NDArray[np.int16],
    model: PreTrainedModel,
    architecture: Architecture,
    layer: int,
    rows: Sequence[Sequence[int]],
) -> Iterator[int]:
    """Writes the states of all rows; yields how many are done."""
    ends = np.cumsum([len(row) for row in rows])
    done = 0
    for places in _batches([len(row) for row in rows]):
        entering = _entering(model, architecture, layer, [rows[place] for place in places])
        for place, own in zip(places, entering, strict=True):
            kept = own[: len(rows[place])].to("cpu", torch.bfloat16)
            if not bool(kept.isfinite().all()):
                raise NonFiniteError(
                    f"its hidden states at layer {layer} hold NaN or infinity; leave it out",
                    record=place,
                )
            end = int(ends[place])
            states[end - len(kept) : end] = kept.view(torch.int16).numpy()
        done += len(places)
        yield done


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places of rows of about the same length."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[place] > _TOKENS_AT_ONCE:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


@torch.no_grad()
def _entering(
    model: PreTrainedModel, architecture: Architecture, layer: int, rows: Sequence[Sequence[int]]
) -> Tensor:
    """What enters a block, ``[rows, tokens, d_model]``, of rows padded on the right."""
    ids, mask = (part.to(model.device) for part in padded_rows(rows))
    seen: list[Tensor] = []
    part = block(model, architecture, layer)
    with (
        frozen(model),
        watch_block(part, lambda states: seen.append(states.clone()), lambda _: None),
        stop_after(part),
    ):
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    return seen[0]


def _key(
    model: PreTrainedModel, architecture: Architecture, layer: int, rows: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """All that the states depend on, as plain JSON values."""
    upper = tuple(
        f"{architecture.block_name(number)}."
        for number in range(layer, number_of_layers(model, architecture))
    )
    weights = {
        name: weight_checksum(parameter)
        for name, parameter in model.named_parameters()
        if not name.startswith(upper)
    }
    tokens = hashlib.sha256()
    for row in rows:
        tokens.update(np.asarray([len(row), *row], dtype=np.int64).tobytes())
    config = model.config.to_dict()
    config.pop("transformers_version", None)
    return {
        "format": _FORMAT,
        "config": _sha256(config),
        "weights": _sha256(weights),
        "dtype": str(model.dtype),
        "device": model.device.type,
        "layer": layer,
        "rows": len(rows),
        "tokens": tokens.hexdigest(),
    }


def _is_whole(place: Path, key: dict[str, Any]) -> bool:
    """Whether a whole cache is there; one that is damaged is told of."""
    try:
        header = json.loads((place / _HEADER).read_text())
        if header["key"] == key and header["sha256"] == digest(place / _STATES):
            return True
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError):
        pass
    logger.warning("the trunk cache in %s is damaged or of another model; making it again", place)
    return False


def _sha256(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()


def _width(model: PreTrainedModel) -> int:
    size: int = model.config.get_text_config().hidden_size
    return size
