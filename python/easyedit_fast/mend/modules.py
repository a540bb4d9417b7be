"""The weights that MEND edits in a model, and the editor network that fits them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from easyedit_fast.errors import DataFileError, HparamsError, ModelError
from easyedit_fast.mend.hparams import MENDHyperParams
from easyedit_fast.mend.network import EditorNetwork
from easyedit_fast.models.architectures import Architecture, linear_module, number_of_layers
from easyedit_fast.training.editors import EditorFile
from easyedit_fast.updates import WeightLayout

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WEIGHT = ".weight"
_SQUARES = (".u_s", ".v_s")  # read in training alone
_STATISTICS = (".u_mean", ".u_std", ".v_mean", ".v_std", ".k")
_LAST_LAYERS = 3


def edited_modules(
    model: PreTrainedModel, names: Sequence[str]
) -> tuple[dict[str, nn.Module], dict[str, WeightLayout]]:
    """The modules of the weights, and how these lie.

    Raises:
        HparamsError: A name is no weight's.
        ModelError: There is no such module, or none that can be edited.
    """
    modules: dict[str, nn.Module] = {}
    layouts: dict[str, WeightLayout] = {}
    for name in names:
        if not name.endswith(_WEIGHT):
            raise HparamsError(f"inner_params: {name!r} is no weight; its name ends in '.weight'")
        modules[name], layouts[name] = linear_module(model, name.removesuffix(_WEIGHT))
    return modules, layouts


def weight_sizes(
    modules: Mapping[str, nn.Module], layouts: Mapping[str, WeightLayout]
) -> dict[str, tuple[int, int]]:
    """(d_in, d_out) of each weight."""
    sizes: dict[str, tuple[int, int]] = {}
    for name, module in modules.items():
        weight = module.weight
        assert isinstance(weight, Tensor)
        rows, columns = weight.shape
        sizes[name] = (columns, rows) if layouts[name] == "out_in" else (rows, columns)
    return sizes


def network_of(
    hparams: MENDHyperParams,
    editor: EditorFile,
    sizes: Mapping[str, tuple[int, int]],
) -> EditorNetwork:
    """The editor's network with what its file holds.

    Args:
        hparams: The hyperparameters; ``archive`` is the file's path.
        editor: What it holds.
        sizes: As `weight_sizes` gives them.

    Raises:
        DataFileError: It holds NaN or infinity.
        ModelError: The file is of another network, or not of a trained one.
    """
    network = EditorNetwork(hparams, sizes)
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    there = {name: tuple(tensor.shape) for name, tensor in editor.tensors.items()}
    wrong = [name for name in {**wanted, **there} if wanted.get(name) != there.get(name)]
    if wrong:
        name = wrong[0]
        raise ModelError(
            f"the editor {hparams.archive} does not fit this model and these hyperparameters: "
            f"{name!r} is {there.get(name, 'missing')} there and {wanted.get(name, 'missing')} "
            f"here ({len(wrong)} tensors differ); give the ones that it was trained with"
        )
    network.load_state_dict(editor.tensors)
    network.require_trained()
    for name, tensor in editor.tensors.items():
        unread = name.endswith(_SQUARES) or (not hparams.norm and name.endswith(_STATISTICS))
        if not unread and not bool(tensor.isfinite().all()):
            raise DataFileError(
                f"{hparams.archive}: {name!r} holds NaN or infinity; get the editor again"
            )
    return network


def layer_of(architecture: Architecture, name: str) -> int:
    """The layer that a weight is in, from 0.

    Raises:
        HparamsError: It is in none.
    """
    inside = name.removeprefix(f"{architecture.blocks}.")
    number = inside.partition(".")[0]
    if inside == name or not number.isdecimal():
        raise HparamsError(
            f"inner_params: {name!r} is in no layer ({architecture.blocks}.…); training needs one"
        )
    return int(number)


def mend_rule(model: PreTrainedModel, architecture: Architecture) -> list[str]:
    """The weights that are edited unless others are named: all of the last three MLPs.

    So are those of EasyEdit's files.
    """
    depth = number_of_layers(model, architecture)
    parts = (*architecture.mlp_input_projections, architecture.mlp_output_projection)
    return [
        f"{architecture.block_name(layer)}.{part}{_WEIGHT}"
        for layer in range(max(0, depth - _LAST_LAYERS), depth)
        for part in parts
    ]
