"""Training an editor for a model, from Python."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easyedit_fast.methods import trainee_factory
from easyedit_fast.models.loading import check_tokenizer
from easyedit_fast.requests import Requests, request_list
from easyedit_fast.training.loop import TrainingProgress, TrainingResult, train
from easyedit_fast.version import installed_versions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from easyedit_fast.hparams import Hparams
    from easyedit_fast.models.architectures import Architecture


def train_editor(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Requests,
    validation: Requests,
    folder: str | os.PathLike[str],
    *,
    method: str = "mend",
    hparams: str | os.PathLike[str] | Mapping[str, Any] | Hparams | None = None,
    architecture: Architecture | None = None,
    cache_folder: str | os.PathLike[str] | None = None,
    about: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    name_of: Callable[[int], str] = str,
    progress: TrainingProgress | None = None,
    cache_progress: Callable[[str, int, int], None] | None = None,
) -> TrainingResult:
    """Trains an editor; the model stays as it is.

    The same call goes on where one was ended; with a larger `max_iters` a run becomes longer,
    unless its learning rate decays (`lr_decay`).

    Args:
        model: The model.
        tokenizer: Its (fast) tokenizer.
        requests: Records to learn from, as `Editor.edit` takes them. Each needs a locality prompt.
        validation: Other records, which say when the editor is best.
        folder: The run's folder; ``editor.safetensors`` in it is the best editor so far.
        method: ``mend`` or ``serac``.
        hparams: Keys of `MENDTrainingHparams` or `SERACTrainingHparams`, the path of a YAML file,
            a shipped name such as ``TRAINING/MEND/llama-7b``, or hyperparameters ready made.
        architecture: Description of a model family that the package does not know.
        cache_folder: Where the trunk of the prompts is kept; None: in the user's cache.
        about: What the editor's card shall say beside the rest, e.g. the names of the data.
        overwrite: Begin anew where the folder holds another run.
        name_of: Names a record by its place, for messages that name several.
        progress: Told after each iteration.
        cache_progress: Told while the trunk is made.

    Raises:
        RequestError: A record has no locality prompt or does not fit the model, or there is none.
        HparamsError: The method or a hyperparameter cannot be used.
        ModelError: The model cannot be trained on.
        NonFiniteError: A loss or a gradient is NaN or infinite; the last checkpoint is kept.
        DataFileError: The folder holds another run, is in use, or holds a damaged file.
    """
    learned, checked = request_list(requests), request_list(validation)
    check_tokenizer(model, tokenizer)
    trainee, resolved = trainee_factory(method)(
        model,
        tokenizer,
        learned,
        checked,
        hparams=hparams,
        architecture=architecture,
        cache_folder=None if cache_folder is None else Path(cache_folder),
        progress=cache_progress,
    )
    card = {
        "model": str(getattr(model, "name_or_path", "")),
        "records": len(learned),
        "validation_records": len(checked),
        "versions": installed_versions(),
        **(about or {}),
    }
    try:
        return train(
            trainee,
            resolved,
            Path(folder),
            about=card,
            overwrite=overwrite,
            name_of=name_of,
            progress=progress,
        )
    finally:
        trainee.close()
