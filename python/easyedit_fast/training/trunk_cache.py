"""What enters the first edited block, computed once a text and kept on disk.

Training runs the same texts epoch after epoch, and nothing below the first edited block changes.
The hidden states that enter it (in bfloat16), and those that leave the last one while nothing is
edited, are kept, each in one file that is mapped into memory. A cache is found again by all that it
depends on, and made again where anything of it is not so.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import mmap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from easyedit_fast.errors import NonFiniteError
from easyedit_fast.files import digest, replacing, write_whole
from easyedit_fast.models.architectures import Architecture, block, number_of_layers
from easyedit_fast.models.cache import cache_folder
from easyedit_fast.models.checksums import weight_checksum
from easyedit_fast.models.passes import block_outputs, padded_rows
from easyedit_fast.models.tail import Tail
from easyedit_fast.models.tracing import frozen, stop_after, watch_block
from easyedit_fast.processes import is_first_of_machine, together

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_FORMAT = "easyedit-fast.trunk-cache.1"
_STATES, _HEADER = "states.bin", "header.json"
_TOKENS_AT_ONCE = 2048


class TrunkCache:
    """Hidden states of rows of tokens, at one place of the model.

    Attributes:
        lengths: ``[rows]`` int64, tokens of each row.
        key: What the states depend on, as plain JSON values.
    """

    def __init__(
        self,
        file: Path,
        dtype: torch.dtype,
        lengths: Sequence[int],
        width: int,
        key: Mapping[str, Any],
    ) -> None:
        """Maps the file of the values of all rows, ``[tokens, width]``, one row after another."""
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.key = key
        self._dtype = dtype
        self._ends = np.cumsum(self.lengths)
        with file.open("rb") as opened:
            self._mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        self._states = np.frombuffer(self._mapped, dtype=_bits(dtype)).reshape(-1, width)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, row: int) -> Tensor:
        """The hidden states ``[tokens, d_model]`` of a row."""
        start, end = self._tokens_of(row)
        return torch.from_numpy(np.array(self._states[start:end])).view(self._dtype)

    def read_ahead(self, rows: Sequence[int]) -> None:
        """Has the system begin to read rows from the disk, and waits for none."""
        if hasattr(self._mapped, "madvise"):  # not on Windows
            for row in rows:
                first, last = (place * self._states[0].nbytes for place in self._tokens_of(row))
                first -= first % mmap.PAGESIZE
                with contextlib.suppress(OSError):  # it is no more than a hint
                    self._mapped.madvise(mmap.MADV_WILLNEED, first, last - first)

    def _tokens_of(self, row: int) -> tuple[int, int]:
        end = int(self._ends[row])
        return end - int(self.lengths[row]), end


def open_trunk_cache(
    model: PreTrainedModel,
    architecture: Architecture,
    layer: int,
    rows: Sequence[Sequence[int]],
    *,
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TrunkCache:
    """Finds the cache of what enters a block, or makes it.

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

    def compute(places: Sequence[int]) -> Tensor:
        return _entering(model, architecture, layer, [rows[place] for place in places])

    key = _key(model, architecture, layer, rows)
    lengths = [len(row) for row in rows]
    return _opened(key, torch.bfloat16, lengths, _width(model), compute, folder, progress)


def open_final_cache(
    model: PreTrainedModel,
    architecture: Architecture,
    layer: int,
    trunk: TrunkCache,
    *,
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> TrunkCache:
    """Finds the cache of what leaves the last block, or makes it from what enters another one.

    So a model that is not edited gives it back, where it is run from the same trunk; it is kept
    in the model's dtype.

    Args:
        model: The model.
        architecture: Where its parts are.
        layer: The block that the trunk ends before.
        trunk: What enters that block.
        folder: As for `open_trunk_cache`, like the rest.
        progress: As there.

    Raises:
        NonFiniteError: As there.
    """
    outputs = block_outputs(model, architecture, layer)

    def compute(places: Sequence[int]) -> Tensor:
        entering, mask = padded_states([trunk[place] for place in places], model)
        tail = Tail.of_entering(model, architecture, layer, entering, mask, outputs)
        row, column = mask.nonzero().unbind(1)
        left = torch.zeros_like(entering)
        left[row, column] = tail.hidden_states(None, row, column)
        return left

    depth = number_of_layers(model, architecture)
    key = {**_key(model, architecture, depth, []), "from": dict(trunk.key)}
    lengths = trunk.lengths.tolist()
    return _opened(key, model.dtype, lengths, _width(model), compute, folder, progress)


def padded_states(rows: Sequence[Tensor], model: PreTrainedModel) -> tuple[Tensor, Tensor]:
    """Rows of states ``[n, t, d_model]`` in the model's dtype, padded on the right, and their mask.

    Args:
        rows: ``[tokens, d_model]`` of each row.
        model: Its device is theirs.
    """
    states = pad_sequence(list(rows), batch_first=True).to(model.device, model.dtype)
    lengths = torch.tensor([[len(row)] for row in rows])
    return states, (torch.arange(states.shape[1]) < lengths).long().to(model.device)


def _opened(
    key: dict[str, Any],
    dtype: torch.dtype,
    lengths: list[int],
    width: int,
    compute: Callable[[Sequence[int]], Tensor],
    folder: Path | None,
    progress: Callable[[int, int], None] | None,
) -> TrunkCache:
    """The cache of a key; made by `compute`, states of the rows at some places, if need be."""
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    place = (folder or cache_folder() / "trunks") / name[:32]

    def make() -> None:
        place.mkdir(parents=True, exist_ok=True)
        with replacing(place / _STATES) as partial:
            shape = (sum(lengths), width)
            states = np.memmap(partial, dtype=_bits(dtype), mode="w+", shape=shape)
            for done in _fill(torch.from_numpy(states).view(dtype), lengths, compute):
                if progress is not None:
                    progress(done, len(lengths))
            states.flush()
        # Last, so that a run that ends before leaves no cache.
        header = {"key": key, "sha256": digest(place / _STATES)}
        write_whole(place / _HEADER, json.dumps(header).encode())

    together(lambda: None if not is_first_of_machine() or _is_whole(place, key) else make())
    return TrunkCache(place / _STATES, dtype, lengths, width, key)


def _bits(dtype: torch.dtype) -> type[np.generic]:
    """As what numpy, which knows no bfloat16, reads values."""
    return np.int16 if dtype.itemsize == 2 else np.int32


def _fill(
    states: Tensor, lengths: Sequence[int], compute: Callable[[Sequence[int]], Tensor]
) -> Iterator[int]:
    """Writes the states of all rows; yields how many are done."""
    ends = np.cumsum(lengths)
    done = 0
    for places in _batches(lengths):
        for place, own in zip(places, compute(places), strict=True):
            kept = own[: lengths[place]].to("cpu", states.dtype)
            if not bool(kept.isfinite().all()):
                raise NonFiniteError(
                    "its hidden states hold NaN or infinity; leave it out", record=place
                )
            end = int(ends[place])
            states[end - len(kept) : end] = kept
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
