"""The table of editing methods, and what each of them offers to the editor."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

from easyedit_fast.errors import HparamsError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from easyedit_fast.edits import Edit
    from easyedit_fast.evaluation.routing import Routing
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


@runtime_checkable
class MemoryMethod(Protocol):
    """A method whose edits lie in a memory; the weights stay as they are.

    Attributes:
        name: Its name, e.g. ``serac``.
        architecture: Where the model's parts are.
        base: The model that it was made for.
        fingerprint: Of the base model.
    """

    name: str
    architecture: Architecture
    base: PreTrainedModel
    fingerprint: str

    @property
    def model(self) -> PreTrainedModel:
        """The model that holds the edits."""
        ...

    @property
    def hparams(self) -> Hparams:
        """Its hyperparameters."""
        ...

    def edits(
        self, requests: Sequence[EditRequest], about: Mapping[str, Any], *, isolated: bool
    ) -> Sequence[Edit]:
        """Edits that are not in the memory yet: one for all requests, or one for each.

        Raises:
            RequestError: The model cannot read a request's prompt after its edit; it is named.
        """
        ...

    def routing(self, alone: Sequence[EditRequest] | None = None) -> Routing:
        """How prompts are routed: by the memory, or each by its own request's edit alone."""
        ...

    def requests_at_once(self, requests: Sequence[EditRequest]) -> int:
        """How many of these are added together, when no batch size is given."""
        ...

    def used_hparams(self) -> dict[str, Any]:
        """The hyperparameters, as plain JSON values."""
        ...

    def settings(self) -> dict[str, Any]:
        """What the result depends on, as plain JSON values."""
        ...


MethodFactory = Callable[..., "EditingMethod | MemoryMethod"]
"""Takes a model and its tokenizer, and by name ``architecture``, ``hparams``, ``preset`` and
``memory``."""

TraineeFactory = Callable[..., "tuple[Trainee, TrainingHparams]"]
"""Takes a model, its tokenizer, records and validation records, and options by name."""


def _make_rome(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    memory: object,
    **options: Any,
) -> EditingMethod:
    from easyedit_fast.rome import Rome

    _refuse_memory("rome", memory)
    return Rome(model, tokenizer, **options)


def _make_mend(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    preset: str | None,
    memory: object,
    **options: Any,
) -> EditingMethod:
    from easyedit_fast.mend import Mend

    _refuse_memory("mend", memory)
    if preset is not None:
        preset_values("mend", preset)  # refuses it
    return Mend(model, tokenizer, **options)


def _make_serac(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    preset: str | None,
    **options: Any,
) -> MemoryMethod:
    from easyedit_fast.serac import Serac

    if preset is not None:
        preset_values("serac", preset)  # refuses it
    return Serac(model, tokenizer, **options)


def _refuse_memory(name: str, memory: object) -> None:
    if memory is not None:
        raise HparamsError(f"{name} keeps its edits in the weights; leave memory= (--memory) out")


def _rome_preset(name: str) -> dict[str, Any]:
    from easyedit_fast.rome.presets import preset_values

    return preset_values(name)


METHODS: Mapping[str, MethodFactory] = {
    "mend": _make_mend,
    "rome": _make_rome,
    "serac": _make_serac,
}
"""All methods by name."""


def _make_mend_trainee(*records: Any, **options: Any) -> tuple[Trainee, TrainingHparams]:
    from easyedit_fast.mend.training import mend_trainee

    return mend_trainee(*records, **options)


def _make_serac_trainee(*records: Any, **options: Any) -> tuple[Trainee, TrainingHparams]:
    from easyedit_fast.serac.training import serac_trainee

    return serac_trainee(*records, **options)


TRAINERS: Mapping[str, TraineeFactory] = {
    "mend": _make_mend_trainee,
    "serac": _make_serac_trainee,
}
"""The methods that are trained, by name."""


def _mend_training_keys(given: Mapping[str, Any]) -> dict[str, Any]:
    from easyedit_fast.mend.hparams import MENDTrainingHparams

    return MENDTrainingHparams.checked_keys(given, inner_params=["of the model"])


def _serac_training_keys(given: Mapping[str, Any]) -> dict[str, Any]:
    from easyedit_fast.serac.hparams import SERACTrainingHparams

    return SERACTrainingHparams.checked_keys(given)


_TRAINING_KEYS: Mapping[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "mend": _mend_training_keys,
    "serac": _serac_training_keys,
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
