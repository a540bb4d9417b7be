"""The table of editing methods, and what each of them offers to the editor."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from easyedit_fast.errors import HparamsError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from easyedit_fast.failures import Failures
    from easyedit_fast.hparams import Hparams
    from easyedit_fast.models.architectures import Architecture
    from easyedit_fast.models.memory import BatchSize
    from easyedit_fast.requests import EditRequest
    from easyedit_fast.timings import Timings
    from easyedit_fast.training.hparams import TrainingHparams
    from easyedit_fast.training.loop import Trainee
    from easyedit_fast.updates import ComputedUpdates


Progress: TypeAlias = Callable[[int, int], None]
"""Called with the number of requests that are done, and of all."""


class EditingMethod(Protocol):
    """One method, made for one model.

    Attributes:
        name: Its name, e.g. ``rome``.
        architecture: Where the model's parts are.
    """

    name: str
    architecture: Architecture

    @property
    def hparams(self) -> Hparams:
        """Its hyperparameters."""
        ...

    def compute(
        self,
        requests: Sequence[EditRequest],
        *,
        isolated: bool,
        timings: Timings,
        batch_size: BatchSize = "auto",
        failures: Failures | None = None,
        progress: Progress | None = None,
    ) -> ComputedUpdates:
        """Computes the updates and leaves the model as it was.

        Requests that are among the `failures` are left out; those that fail are added to them.
        """
        ...

    def requests_at_once(self, requests: Sequence[EditRequest]) -> int:
        """How many of these are computed together, when no batch size is given."""
        ...

    def used_hparams(self) -> dict[str, Any]:
        """The hyperparameters with what they leave open filled in, as plain JSON values."""
        ...

    def settings(self) -> dict[str, Any]:
        """What the result depends on, as plain JSON values."""
        ...


MethodFactory = Callable[..., EditingMethod]
"""Takes a model and its tokenizer, and by name ``architecture``, ``hparams`` and ``preset``."""

TraineeFactory = Callable[..., "tuple[Trainee, TrainingHparams]"]
"""Takes a model, its tokenizer, records and validation records, and options by name."""


def _make_rome(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **options: Any
) -> EditingMethod:
    from easyedit_fast.rome import Rome

    return Rome(model, tokenizer, **options)


def _make_mend(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    preset: str | None,
    **options: Any,
) -> EditingMethod:
    from easyedit_fast.mend import Mend

    if preset is not None:
        preset_values("mend", preset)  # refuses it
    return Mend(model, tokenizer, **options)


def _rome_preset(name: str) -> dict[str, Any]:
    from easyedit_fast.rome.presets import preset_values

    return preset_values(name)


METHODS: Mapping[str, MethodFactory] = {"mend": _make_mend, "rome": _make_rome}
"""All methods by name."""


def _make_mend_trainee(*records: Any, **options: Any) -> tuple[Trainee, TrainingHparams]:
    from easyedit_fast.mend.training import mend_trainee

    return mend_trainee(*records, **options)


TRAINERS: Mapping[str, TraineeFactory] = {"mend": _make_mend_trainee}
"""The methods that are trained, by name."""


def _mend_training_keys(given: Mapping[str, Any]) -> dict[str, Any]:
    from easyedit_fast.mend.hparams import MENDTrainingHparams

    return MENDTrainingHparams.checked_keys(given)


_TRAINING_KEYS: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "mend": _mend_training_keys
}

_PRESETS: Mapping[str, Callable[[str], dict[str, Any]]] = {"rome": _rome_preset}


def method_factory(name: str) -> MethodFactory:
    """What makes a method, by its name.

    Raises:
        HparamsError: There is no such method.
    """
    factory = METHODS.get(name.lower())
    if factory is None:
        near = difflib.get_close_matches(name.lower(), METHODS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise HparamsError(f"method {name!r} is unknown; use one of {sorted(METHODS)}{hint}")
    return factory


def trainee_factory(name: str) -> TraineeFactory:
    """What makes the trainee of a method, by its name.

    Raises:
        HparamsError: There is no such method, or it is not trained.
    """
    method_factory(name)
    factory = TRAINERS.get(name.lower())
    if factory is None:
        raise HparamsError(f"{name} needs no training; use one of {sorted(TRAINERS)}")
    return factory


def training_keys(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters of training that were given, checked before a model is loaded.

    Raises:
        HparamsError: The method is not trained, or a value cannot be used.
    """
    trainee_factory(method)
    return _TRAINING_KEYS[method.lower()](given)


def preset_values(method: str, preset: str) -> dict[str, Any]:
    """The hyperparameters that a preset of a method sets.

    Raises:
        HparamsError: There is no such method or preset.
    """
    method_factory(method)
    values = _PRESETS.get(method.lower())
    if values is None:
        raise HparamsError(f"{method} has no presets; leave preset={preset!r} out")
    return values(preset)
