"""Which edits are in a model: they are added and taken out here, and nowhere else.

The ledger hangs on the model object. Of each edited weight it keeps one copy from before the first
edit (same dtype, same device), the factors of its edits (those of the `Edit` objects, not copied)
and a checksum of 64 characters. A weight is then always that copy plus the updates of its edits, in
order. So an edit is taken out bit for bit, whatever came after it, and a thousand edits cost one
copy; the last one that is taken out frees it.

Whatever is done with an edited weight, its checksum is compared first, which reads the weight
once. Only where that differs is the weight compared with the copy: if they are the same, bit for
bit, the weight was loaded anew, and its edits are forgotten.

The ids of the edits stand in the model's config as well, so that a model that transformers saves
and loads again still says what is in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch

from easyedit_fast.errors import DataFileError, EditStateError, ModelError
from easyedit_fast.kernels import rank_update_
from easyedit_fast.models.adapters import refuse_adapters
from easyedit_fast.models.architectures import architecture_of
from easyedit_fast.models.checksums import BITS, bits_of, weight_checksum
from easyedit_fast.models.compat import quiet_transformers
from easyedit_fast.models.fingerprint import model_fingerprint
from easyedit_fast.models.memory import make_room_after
from easyedit_fast.updates import LowRankUpdate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from easyedit_fast.edits import Edit

EditState: TypeAlias = Literal["absent", "present", "changed"]

_ATTRIBUTE = "_easyedit_fast_ledger"
_CONFIG_KEY = "easyedit_fast_edits"  # of a model's config: the ids of its edits


@dataclasses.dataclass
class _EditedWeight:
    """One edited weight.

    Attributes:
        original: Copy of the weight before its first edit.
        updates: By edit id, in the order of application; never empty in the ledger.
        checksum: Of the weight as our last change left it.
    """

    original: torch.Tensor
    updates: dict[str, LowRankUpdate]
    checksum: str


def applied_edit_ids(model: torch.nn.Module) -> list[str]:
    """Ids of the edits in the model's weights, those that it was saved with among them."""
    recorded = [edit_id for weight in _weights(model).values() for edit_id in weight.updates]
    return list(dict.fromkeys(_config_ids(model) + recorded))


def edit_state(model: torch.nn.Module, edit: Edit) -> EditState:
    """Whether an edit was added to this model object and is in its weights still.

    Returns:
        "absent" also where its weights were loaded anew; "changed" where one of them was changed
        by other means, so that the edit cannot be taken out.
    """
    edit_id = edit.id
    parameters = _named_parameters(model)
    states = {
        _weight_state(weight, parameters.get(name))
        for name, weight in _weights(model).items()
        if edit_id in weight.updates
    }
    if "changed" in states:
        return "changed"
    return "present" if "as left" in states else "absent"


def add(model: PreTrainedModel, edit: Edit, *, check_model: bool) -> None:
    """Adds an edit to the model's weights, all or nothing; see `Edit.apply`."""
    edit_id = edit.id
    parameters = _parameters(model, edit.updates)
    _settle(model, parameters)
    if edit_id in applied_edit_ids(model):
        raise EditStateError(_already(model, edit_id))
    if check_model:
        require_own_model(model, edit)
    ledger = _weights(model)
    weights = {
        name: ledger.get(name) or _EditedWeight(parameter.detach().clone(), {}, "")
        for name, parameter in parameters.items()
    }
    try:
        for name, parameter in parameters.items():
            original = None if weights[name].updates else weights[name].original
            _add_update(parameter, edit.updates[name], original)
        checksums = {name: weight_checksum(parameter) for name, parameter in parameters.items()}
    except BaseException as error:
        make_room_after(error)
        for name, parameter in parameters.items():
            _restore(parameter, weights[name])
        raise
    for name, checksum in checksums.items():
        weights[name].updates[edit_id] = edit.updates[name]
        weights[name].checksum = checksum
    setattr(model, _ATTRIBUTE, {**ledger, **weights})
    _set_config_ids(model, applied_edit_ids(model))


def require_own_model(model: PreTrainedModel, edit: Edit) -> None:
    """Refuses a model that the edit was not computed for.

    Raises:
        EditStateError: The model has another fingerprint.
        ModelError: The model holds an adapter.
    """
    refuse_adapters(model)
    if _fingerprint(model, edit) != edit.model_fingerprint:
        raise EditStateError(
            f"this edit was computed for another model ({edit.model_name or 'unnamed'}); apply it "
            "to that one, or pass check_model=False if you know the weights to be the same"
        )


def remove(model: PreTrainedModel, edits: Sequence[Edit]) -> None:
    """Takes edits out of the model's weights, all or nothing; see `Edit.revert`.

    However many they are, each weight is built anew once.
    """
    ledger, edit_ids = _weights(model), {edit.id for edit in edits}
    fitting: dict[str, torch.nn.Parameter] = {}
    for edit in edits:
        fitting.update(_parameters(model, edit.updates))
    parameters = {
        name: parameter
        for name, parameter in fitting.items()
        if name in ledger and edit_ids & ledger[name].updates.keys()
    }
    for name in _settle(model, parameters):
        del parameters[name]
    if not parameters:
        raise EditStateError(_not_removable(model, edit_ids))
    before = {name: ledger[name].updates for name in parameters}
    try:
        for name, parameter in parameters.items():
            ledger[name].updates = {
                edit_id: update
                for edit_id, update in before[name].items()
                if edit_id not in edit_ids
            }
            _rebuild(parameter, ledger[name])
    except BaseException as error:
        make_room_after(error)
        for name, parameter in parameters.items():
            ledger[name].updates = before[name]
            _rebuild(parameter, ledger[name])
        raise
    for name in parameters:
        if not ledger[name].updates:
            del ledger[name]
    _drop_config_ids(model, edit_ids)


def save_edited_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path
) -> None:
    """Saves a model and its tokenizer as transformers does.

    The saved config lists the ids of the edits in the weights, so that none is applied a second
    time. The model at hand is left as it is.

    Raises:
        DataFileError: `folder` is a file.
        EditStateError: An edited weight was changed by other means, or loaded anew. In the second
            case its edits are forgotten, and the next call saves the model without them.
    """
    if Path(folder).is_file():
        raise DataFileError(f"{str(folder)!r} is a file; name a folder for the model")
    updates = {
        name: next(iter(weight.updates.values())) for name, weight in _weights(model).items()
    }
    loaded_anew = _settle(model, _parameters(model, updates))
    if loaded_anew:
        raise EditStateError(
            f"weight {loaded_anew[0]!r} was loaded anew after it was edited and holds the edit no "
            "longer; apply the edit again, or save once more to save the model without it"
        )
    _set_config_ids(model, applied_edit_ids(model))
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _settle(model: torch.nn.Module, parameters: Mapping[str, torch.nn.Parameter]) -> list[str]:
    """Brings the record of some weights in line with what they hold, before they are used.

    Returns:
        Names of the weights that were loaded anew. Their edits are forgotten.

    Raises:
        EditStateError: A weight was changed by other means. Nothing is forgotten.
    """
    ledger = _weights(model)
    states = {
        name: _weight_state(ledger[name], parameter)
        for name, parameter in parameters.items()
        if name in ledger
    }
    for name, state in states.items():
        if state == "changed":
            raise EditStateError(
                f"weight {name!r} was changed after it was edited (trained, loaded or edited by "
                "other means); load the model again with from_pretrained into a new object and "
                "apply the edits to that"
            )
    loaded_anew = [name for name, state in states.items() if state == "original"]
    _drop_config_ids(
        model, [edit_id for name in loaded_anew for edit_id in ledger.pop(name).updates]
    )
    return loaded_anew


def _weight_state(
    weight: _EditedWeight, parameter: torch.Tensor | None
) -> Literal["as left", "original", "changed"]:
    """What became of an edited weight; None is a weight that the model has no longer."""
    original = weight.original
    if parameter is None or parameter.is_meta or parameter.dtype != original.dtype:
        return "changed"
    if weight_checksum(parameter) == weight.checksum:
        return "as left"
    same = parameter.shape == original.shape and torch.equal(
        bits_of(parameter), bits_of(original).to(parameter.device)
    )
    return "original" if same else "changed"


def _config_ids(model: torch.nn.Module) -> list[str]:
    return list(getattr(getattr(model, "config", None), _CONFIG_KEY, None) or [])


def _set_config_ids(model: torch.nn.Module, edit_ids: list[str]) -> None:
    config = getattr(model, "config", None)
    if edit_ids and config is not None:
        setattr(config, _CONFIG_KEY, edit_ids)
    elif hasattr(config, _CONFIG_KEY):
        delattr(config, _CONFIG_KEY)


def _drop_config_ids(model: torch.nn.Module, edit_ids: Iterable[str]) -> None:
    """Takes ids out of the config, but those of edits that other weights still hold."""
    recorded = {edit_id for weight in _weights(model).values() for edit_id in weight.updates}
    gone = set(edit_ids) - recorded
    _set_config_ids(model, [edit_id for edit_id in _config_ids(model) if edit_id not in gone])


def _already(model: torch.nn.Module, edit_id: str) -> str:
    if any(edit_id in weight.updates for weight in _weights(model).values()):
        return (
            "this edit is in the model already, and applying it twice would break it; "
            "revert(model) takes it out first"
        )
    return (
        f"this edit is in the model already: its config lists it under {_CONFIG_KEY!r}, as a model "
        "that was saved with it does; load the unedited model"
    )


def _not_removable(model: torch.nn.Module, edit_ids: set[str]) -> str:
    if edit_ids & set(_config_ids(model)):
        return (
            "the model was saved with this edit, and the weights from before it are not at hand; "
            "load the unedited model"
        )
    return (
        "this edit is not in the model, or no longer since its weights were loaded anew; there is "
        "nothing to revert"
    )


def _fingerprint(model: PreTrainedModel, edit: Edit) -> str | None:
    """The model's fingerprint; None where it has not the parts that the edit names."""
    try:
        return model_fingerprint(model, edit.architecture)
    except ModelError:
        return None


def _weights(model: torch.nn.Module) -> dict[str, _EditedWeight]:
    found: dict[str, _EditedWeight] = getattr(model, _ATTRIBUTE, {})
    return found


def _named_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return dict(model.named_parameters(remove_duplicate=False))


def _parameters(
    model: PreTrainedModel, updates: Mapping[str, LowRankUpdate]
) -> dict[str, torch.nn.Parameter]:
    """The weights that updates are for, checked to fit them."""
    named = _named_parameters(model)
    for name, update in updates.items():
        if name not in named:
            architecture_of(model)  # refuses a wrapped model and says how to unwrap it
            raise EditStateError(
                f"the model has no weight {name!r}; the edit belongs to another architecture, or "
                "the model holds adapters: merge or remove them"
            )
        _check_fit(name, named[name], update)
    return {name: named[name] for name in updates}


def _check_fit(name: str, parameter: torch.nn.Parameter, update: LowRankUpdate) -> None:
    if parameter.element_size() not in BITS or not parameter.is_floating_point():
        raise ModelError(
            f"weight {name!r} is of dtype {parameter.dtype}; load the model in float32, bfloat16 "
            "or float16, or export the edit with to_peft() and load it as an adapter"
        )
    if _as_out_in(parameter, update).shape != update.shape:
        raise EditStateError(
            f"weight {name!r} is {list(parameter.shape)} and the edit is for "
            f"{list(update.shape)} (out, in); it belongs to another model"
        )


def _as_out_in(parameter: torch.Tensor, update: LowRankUpdate) -> torch.Tensor:
    """The weight as a view [d_out, d_in]."""
    weight = parameter.detach()
    return weight if update.weight_layout == "out_in" else weight.T


def _add_update(
    parameter: torch.Tensor, update: LowRankUpdate, original: torch.Tensor | None = None
) -> None:
    device = parameter.device
    rank_update_(
        _as_out_in(parameter, update),
        update.output_factor.to(device),
        update.input_factor.to(device),
        original=None if original is None else _as_out_in(original, update),
    )


def _restore(parameter: torch.Tensor, weight: _EditedWeight) -> None:
    """Sets a weight to its original plus its updates, in order."""
    with torch.no_grad():
        parameter.copy_(weight.original)
    for update in weight.updates.values():
        _add_update(parameter, update)


def _rebuild(parameter: torch.Tensor, weight: _EditedWeight) -> None:
    """`_restore` after the updates were changed, and the checksum of it."""
    _restore(parameter, weight)
    weight.checksum = weight_checksum(parameter)
