"""Statistics as files: collected once, kept under the model's fingerprint, found again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from easyedit_fast.data import Corpus
from easyedit_fast.errors import DataFileError
from easyedit_fast.models.architectures import Architecture, architecture_of, key_size
from easyedit_fast.models.cache import cache_folder
from easyedit_fast.models.fingerprint import model_fingerprint
from easyedit_fast.models.limits import context_length
from easyedit_fast.moments.checkpoint import Checkpoint
from easyedit_fast.moments.collect import (
    TOKENS_PER_DIMENSION,
    Pass,
    moments_of,
    summed_over_ranks,
)
from easyedit_fast.moments.statistics_files import (
    Origin,
    read_origin,
    statistics_path,
    write_second_moment,
)
from easyedit_fast.processes import first_tells, rank_and_ranks, wait_for_all
from easyedit_fast.version import __version__

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_BLOCK_LENGTH = 512
_BATCH_TOKENS = {"cpu": 2048}
_OTHER_BATCH_TOKENS = 16384


def collect_statistics(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
    layers: Sequence[int],
    *,
    tokens: int | None = None,
    block_length: int | None = None,
    batch_size: int | None = None,
    folder: str | Path | None = None,
    name: str | None = None,
    samples: int = 100_000,
    overwrite: bool = False,
    architecture: Architecture | None = None,
    progress: Callable[[int, int], None] | None = None,
    checkpoint_seconds: float = 60.0,
) -> dict[int, Path]:
    """Collects the second moments of some layers' keys, in one pass, and writes a file a layer.

    A run that was ended goes on from its last checkpoint when it is called again with the same
    arguments, and gives the same sums. Layers whose files are there already, from the same
    corpus and model, are not collected again. Under ``accelerate launch`` or ``torchrun`` every
    process takes its part, and the first one writes.

    Args:
        model: The model, in float32, bfloat16 or float16.
        tokenizer: Its (fast) tokenizer.
        corpus: The texts: `TextFiles` or `HubDataset`.
        layers: The layers, from 0.
        tokens: Tokens to look at, the corpus ending before or not; None: 10 for each dimension of
            the keys (arXiv 2506.04226).
        block_length: Tokens that are read as one text; None: 512, or what the model reads at most.
        batch_size: Blocks in a forward pass; None: by the device.
        folder: Where to write, in EasyEdit's layout below it (its ``stats_dir``); None: into the
            user's cache, where `Editor` finds statistics by the model itself.
        name: Name of the corpus in the path of the files (EasyEdit's ``mom2_dataset``); None: the
            corpus' own.
        samples: EasyEdit's ``mom2_n_samples``. It names the file and nothing else, so that
            EasyEdit finds it; what was looked at is counted in tokens.
        overwrite: Replace files from another corpus or model.
        architecture: Description of a model family that the package does not know.
        progress: Called with the tokens looked at and the tokens to look at.
        checkpoint_seconds: Time between two checkpoints at least.

    Returns:
        The file of each layer.

    Raises:
        DataFileError: The corpus is damaged or empty, or there are files from elsewhere.
        ModelError: A layer is not in the model.
        NonFiniteError: A key is not finite.
    """
    places = architecture or architecture_of(model)
    wanted = sorted(set(layers))
    length = block_length or _block_length(model)
    budget = tokens or TOKENS_PER_DIMENSION * max(key_size(model, places, k) for k in wanted)
    origin = Origin(
        model_fingerprint=model_fingerprint(model, places),
        model_name=str(getattr(model, "name_or_path", "")),
        module="",
        corpus={"name": corpus.name, **corpus.identity()},
        tokens=0,
        budget=budget,
        block_length=length,
        dtype=str(model.dtype).removeprefix("torch."),
        version=__version__,
    )
    own = cache_folder() / "statistics"
    root = own if folder is None else Path(folder)
    model_name = origin.model_fingerprint[:16] if folder is None else _short(origin.model_name)
    files = {
        layer: statistics_path(
            root, model_name, places.projection_name(layer), name or corpus.name, "float32", samples
        )
        for layer in wanted
    }
    checkpoint = _checkpoint(files, origin, checkpoint_seconds)
    # On another machine the first one's files need not be there.
    needed = first_tells([overwrite or not _is_there(files[k], origin, places, k) for k in wanted])
    missing = [layer for layer, is_needed in zip(wanted, needed, strict=True) if is_needed]
    if missing:
        job = Pass(model, places, missing, budget, length, batch_size or _batch(model, length))
        _collect(job, tokenizer, corpus, origin, files, samples, progress, checkpoint)
    checkpoint.remove()
    return files


def find_collected(fingerprint: str, module_name: str) -> Path | None:
    """Statistics in the user's cache for a module of a model; of several those of most tokens."""
    folder = cache_folder() / "statistics" / fingerprint[:16]
    found = []
    for path in sorted(folder.glob(f"*_stats/{module_name}_*.npz")):
        origin = read_origin(path)
        if origin is not None and origin.model_fingerprint == fingerprint:
            found.append((origin.tokens, path))
    return max(found)[1] if found else None


def _collect(
    job: Pass,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
    origin: Origin,
    files: dict[int, Path],
    samples: int,
    progress: Callable[[int, int], None] | None,
    checkpoint: Checkpoint,
) -> None:
    checkpoint.path.parent.mkdir(parents=True, exist_ok=True)
    sums = checkpoint.read(job.start())

    def tell(seen: int) -> None:
        if progress is not None:
            progress(min(seen, job.tokens), job.tokens)

    job.run(corpus, tokenizer, sums, checkpoint.write_sometimes, tell)
    whole = summed_over_ranks(sums)
    if rank_and_ranks()[0] == 0:
        if whole.tokens < job.tokens:
            logger.warning(
                "the corpus %r has %d tokens, fewer than the %d asked for; all of them were used",
                corpus.name,
                whole.tokens,
                job.tokens,
            )
        for layer, moment in moments_of(whole, corpus.name):
            known = dataclasses.replace(
                origin, tokens=whole.tokens, module=job.architecture.projection_name(layer)
            )
            write_second_moment(files[layer], moment, known, samples)
    wait_for_all()  # the others read the files too, and need their checkpoints until then


def _checkpoint(files: dict[int, Path], origin: Origin, seconds: float) -> Checkpoint:
    """The checkpoint of this process.

    It belongs to all the layers that were asked for: those that are missing become fewer while
    files are written, and a run that ends then goes on from it all the same.
    """
    description = {
        **dataclasses.asdict(origin),
        "layers": list(files),
        "process": rank_and_ranks(),
    }
    key = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]
    folder = next(iter(files.values())).parent
    return Checkpoint(folder / f".{key}.checkpoint", description, seconds=seconds)


def _is_there(path: Path, origin: Origin, places: Architecture, layer: int) -> bool:
    """Whether the file is what a new pass would give.

    Raises:
        DataFileError: It is something else.
    """
    if not path.is_file():
        return False
    there = read_origin(path)
    same = there is not None and there == dataclasses.replace(
        origin,
        module=places.projection_name(layer),
        tokens=there.tokens,
        version=there.version,
        model_name=there.model_name,
    )
    if not same:
        raise DataFileError(
            f"{path} is there, from another corpus, model or budget; overwrite it (--overwrite), "
            "or give the corpus another name (--name)"
        )
    return True


def _short(model_name: str) -> str:
    """The last part of a model's name, as EasyEdit has it in its paths."""
    return model_name.rstrip("/").split("/")[-1] or "model"


def _block_length(model: PreTrainedModel) -> int:
    return min(_BLOCK_LENGTH, context_length(model) or _BLOCK_LENGTH)


def _batch(model: PreTrainedModel, block_length: int) -> int:
    tokens = _BATCH_TOKENS.get(model.device.type, _OTHER_BATCH_TOKENS)
    return max(1, tokens // block_length)
