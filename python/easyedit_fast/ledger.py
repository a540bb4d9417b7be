"""Which edits are in a model: they are added and taken out here, and nowhere else.

The ledger hangs on the model object. It keeps one copy of each edited weight as it was before
the first edit; a weight is then always that copy plus the updates of its edits, in order. So an
edit is taken out bit for bit, whatever came after it, and a thousand edits cost one copy.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from easyedit_fast.errors import DataFileError, EditStateError, ModelError
from easyedit_fast.kernels import rank_update_
from easyedit_fast.models.compat import quiet_transformers
from easyedit_fast.models.fingerprint import model_fingerprint
from easyedit_fast.updates import LowRankUpdate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from easyedit_fast.edits import Edit

_ATTRIBUTE = "_easyedit_fast_ledger"
_SAVED_EDITS_KEY = "easyedit_fast_edits"  # of a saved model's config: the ids of its edits
_BITS = {2: torch.int16, 4: torch.int32}


@dataclasses.dataclass
class _EditedWeight:
    """One edited weight.

    Attributes:
        original: Copy of the weight before its first edit.
        updates: By edit id, in the order of application.
        checksum: Of the weight as our last change left it.
    """

    original: torch.Tensor
    updates: dict[str, LowRankUpdate]
    checksum: int


def applied_edit_ids(model: torch.nn.Module) -> list[str]:
    """Ids of the edits in the model's weights, those that it was saved with among them."""
    config = getattr(model, "config", None)
    saved = list(getattr(config, _SAVED_EDITS_KEY, None) or [])
    added = [edit_id for weight in _weights(model).values() for edit_id in weight.updates]
    return list(dict.fromkeys(saved + added))


def add(model: PreTrainedModel, edit: Edit, *, check_model: bool) -> None:
    """Adds an edit to the model's weights, all or nothing; see `Edit.apply`."""
    edit_id = edit.id
    if edit_id in applied_edit_ids(model):
        raise EditStateError("this edit is in the model already; applying it twice would break it")
    parameters = {name: _parameter(model, name, edit.updates[name]) for name in edit.updates}
    if check_model and _fingerprint(model, edit) != edit.model_fingerprint:
        raise EditStateError(
            f"this edit was computed for another model ({edit.model_name or 'unnamed'}); apply it "
            "to that one, or pass check_model=False if you know the weights to be the same"
        )
    ledger = _weights(model)
    _refuse_changed(ledger, parameters)
    weights = {
        name: ledger.get(name) or _EditedWeight(parameter.detach().clone(), {}, 0)
        for name, parameter in parameters.items()
    }
    try:
        for name, parameter in parameters.items():
            _add_update(parameter, edit.updates[name])
    except BaseException:
        for name, parameter in parameters.items():
            _rebuild(parameter, weights[name])
        raise
    for name, parameter in parameters.items():
        weights[name].updates[edit_id] = edit.updates[name]
        weights[name].checksum = _checksum(parameter)
    setattr(model, _ATTRIBUTE, {**ledger, **weights})


def remove(model: PreTrainedModel, edit: Edit) -> None:
    """Takes an edit out of the model's weights; see `Edit.revert`."""
    ledger, edit_id = _weights(model), edit.id
    parameters = {name: _parameter(model, name, edit.updates[name]) for name in edit.updates}
    if any(name not in ledger or edit_id not in ledger[name].updates for name in parameters):
        raise EditStateError("this edit is not in the model; there is nothing to revert")
    _refuse_changed(ledger, parameters)
    before = {name: dict(ledger[name].updates) for name in parameters}
    try:
        for name, parameter in parameters.items():
            del ledger[name].updates[edit_id]
            _rebuild(parameter, ledger[name])
    except BaseException:
        for name, parameter in parameters.items():
            ledger[name].updates = before[name]
            _rebuild(parameter, ledger[name])
        raise
    for name in parameters:
        if not ledger[name].updates:
            del ledger[name]


def save_edited_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path
) -> None:
    """Saves a model and its tokenizer as transformers does.

    The saved config lists the ids of the edits in the weights, so that none is applied a second
    time. The model at hand is left as it is.

    Raises:
        DataFileError: `folder` is a file.
    """
    if Path(folder).is_file():
        raise DataFileError(f"{str(folder)!r} is a file; name a folder for the model")
    config = model.config
    before = getattr(config, _SAVED_EDITS_KEY, None)
    setattr(config, _SAVED_EDITS_KEY, applied_edit_ids(model))
    try:
        with quiet_transformers():
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    finally:
        if before is None:
            delattr(config, _SAVED_EDITS_KEY)
        else:
            setattr(config, _SAVED_EDITS_KEY, before)


def _fingerprint(model: PreTrainedModel, edit: Edit) -> str | None:
    """The model's fingerprint; None where it has not the parts that the edit names."""
    try:
        return model_fingerprint(model, edit.architecture)
    except ModelError:
        return None


def _weights(model: torch.nn.Module) -> dict[str, _EditedWeight]:
    found: dict[str, _EditedWeight] = getattr(model, _ATTRIBUTE, {})
    return found


def _parameter(model: torch.nn.Module, name: str, update: LowRankUpdate) -> torch.nn.Parameter:
    try:
        parameter = model.get_parameter(name)
    except AttributeError:
        raise EditStateError(
            f"the model has no weight {name!r}; the edit belongs to another architecture"
        ) from None
    if parameter.element_size() not in _BITS or not parameter.is_floating_point():
        raise ModelError(
            f"weight {name!r} is of dtype {parameter.dtype}; load the model in float32, bfloat16 "
            "or float16, or export the edit with to_peft() and load it as an adapter"
        )
    if _as_out_in(parameter, update).shape != update.shape:
        raise EditStateError(
            f"weight {name!r} is {list(parameter.shape)} and the edit is for "
            f"{list(update.shape)} (out, in); it belongs to another model"
        )
    return parameter


def _as_out_in(parameter: torch.Tensor, update: LowRankUpdate) -> torch.Tensor:
    """The weight as a view [d_out, d_in]."""
    weight = parameter.detach()
    return weight if update.weight_layout == "out_in" else weight.T


def _add_update(parameter: torch.Tensor, update: LowRankUpdate) -> None:
    device = parameter.device
    rank_update_(
        _as_out_in(parameter, update),
        update.output_factor.to(device),
        update.input_factor.to(device),
    )


def _rebuild(parameter: torch.Tensor, weight: _EditedWeight) -> None:
    """Sets a weight to its original plus its updates, in order."""
    with torch.no_grad():
        parameter.copy_(weight.original)
    for update in weight.updates.values():
        _add_update(parameter, update)
    weight.checksum = _checksum(parameter)


def _checksum(parameter: torch.Tensor) -> int:
    """Sum of the values' bit patterns: exact, and the same in whatever order it is summed."""
    bits = parameter.detach().view(_BITS[parameter.element_size()])
    return int(bits.sum(dtype=torch.int64))


def _refuse_changed(
    ledger: dict[str, _EditedWeight], parameters: dict[str, torch.nn.Parameter]
) -> None:
    for name, parameter in parameters.items():
        if name in ledger and _checksum(parameter) != ledger[name].checksum:
            raise EditStateError(
                f"weight {name!r} was changed after it was edited (trained, loaded or edited by "
                "other means); load the model again and apply the edits to it"
            )
