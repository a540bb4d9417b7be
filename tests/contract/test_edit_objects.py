"""Edits as objects: applied to real model classes, reverted, and known to a saved model."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from easyedit_fast import Edit, EditRequest
from easyedit_fast.errors import EditStateError, ModelError, NonFiniteError
from easyedit_fast.ledger import save_edited_model
from easyedit_fast.models.architectures import architecture_of, edited_module
from easyedit_fast.models.fingerprint import model_fingerprint
from easyedit_fast.updates import LowRankUpdate
from tests.unit.tiny_models import tiny_model

REQUEST = EditRequest(prompt="The sky over {} is", subject="Mars", target_new="green")


def make_edit(
    model: PreTrainedModel, *, seed: int = 0, layers: tuple[int, ...] = (1,), scale: float = 0.1
) -> Edit:
    """An edit of rank 2 of some layers."""
    architecture = architecture_of(model)
    generator = torch.Generator().manual_seed(seed)
    updates = {}
    for layer in layers:
        name = architecture.weight_name(layer)
        weight = model.get_parameter(name)
        out, into = weight.shape if architecture.weight_layout == "out_in" else weight.shape[::-1]
        updates[name] = LowRankUpdate(
            scale * torch.randn(out, 2, generator=generator),
            torch.randn(2, into, generator=generator),
            architecture.weight_layout,
        )
    return Edit(
        updates,
        requests=[REQUEST],
        method="rome",
        model_fingerprint=model_fingerprint(model, architecture),
        architecture=architecture,
        model_name="tiny",
        hparams={"layers": list(layers)},
        versions={"torch": torch.__version__},
    )


def weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_same_weights(model: PreTrainedModel, before: dict[str, torch.Tensor]) -> None:
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_apply_adds_the_update_and_revert_is_bit_exact(family: str, dtype: torch.dtype) -> None:
    model = tiny_model(family).to(dtype)
    before = weights(model)
    edit = make_edit(model)
    edit.apply(model)
    ((name, update),) = edit.updates.items()
    dense = update.dense() if update.weight_layout == "out_in" else update.dense().T
    expected = (before[name].float() + dense).to(dtype)
    torch.testing.assert_close(model.get_parameter(name).detach(), expected)
    assert edit.is_applied
    edit.revert()
    assert not edit.is_applied
    assert_same_weights(model, before)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0)])
def test_edits_of_one_weight_come_out_in_any_order(order: tuple[int, ...]) -> None:
    model = tiny_model().to(torch.bfloat16)
    before = weights(model)
    edits = [make_edit(model, seed=seed) for seed in range(3)]
    for edit in edits:
        edit.apply(model)
    remaining = [0, 1, 2]
    for place in order:
        edits[place].revert()
        remaining.remove(place)
        fresh = tiny_model().to(torch.bfloat16)
        for kept in remaining:
            make_edit(fresh, seed=kept).apply(fresh)
        assert_same_weights(model, weights(fresh))
    assert_same_weights(model, before)


def test_applied_is_for_a_while_also_after_an_exception() -> None:
    model = tiny_model()
    before = weights(model)
    edit = make_edit(model)

    def fail() -> None:
        with edit.applied(model):
            assert edit.is_applied
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert_same_weights(model, before)


def test_the_same_edit_is_refused_twice(tmp_path: Path) -> None:
    model = tiny_model()
    edit = make_edit(model)
    edit.apply(model)
    once = weights(model)
    with pytest.raises(EditStateError, match="in the model already"):
        edit.apply(model)
    edit.save(tmp_path / "edit.safetensors")
    with pytest.raises(EditStateError, match="in the model already"):
        Edit.load(tmp_path / "edit.safetensors").apply(model)
    assert_same_weights(model, once)


class Tokenizer:
    """What `save_edited_model` asks of a tokenizer."""

    def save_pretrained(self, folder: Path) -> None:
        (folder / "tokenizer.json").write_text("{}")


def save_by_us(model: PreTrainedModel, folder: Path) -> None:
    save_edited_model(model, Tokenizer(), folder)  # type: ignore[arg-type]


def saved_ids(folder: Path) -> list[str] | None:
    ids: list[str] | None = json.loads((folder / "config.json").read_text()).get(
        "easyedit_fast_edits"
    )
    return ids


SAVERS = pytest.mark.parametrize(
    "save", [save_by_us, lambda model, folder: model.save_pretrained(folder)], ids=["us", "them"]
)


@SAVERS
def test_a_saved_model_knows_its_edits(
    tmp_path: Path, save: Callable[[PreTrainedModel, Path], None]
) -> None:
    model = tiny_model()
    edit = make_edit(model)
    edit.apply(model)
    save(model, tmp_path / "model")
    assert saved_ids(tmp_path / "model") == [edit.id]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert_same_weights(loaded, weights(model))
    with pytest.raises(EditStateError, match=r"in the model already.*load the unedited"):
        make_edit(model).apply(loaded)
    with pytest.raises(EditStateError, match=r"saved with this edit.*load the unedited"):
        edit.revert(loaded)
    make_edit(model, seed=1).apply(loaded)
    save(loaded, tmp_path / "both")
    assert saved_ids(tmp_path / "both") == [edit.id, make_edit(model, seed=1).id]


@SAVERS
def test_a_reverted_edit_leaves_no_mark(
    tmp_path: Path, save: Callable[[PreTrainedModel, Path], None]
) -> None:
    model = tiny_model()
    first, second = make_edit(model), make_edit(model, seed=1)
    first.apply(model)
    second.apply(model)
    first.revert()
    save(model, tmp_path / "second")
    assert saved_ids(tmp_path / "second") == [second.id]
    second.revert()
    assert not hasattr(model.config, "easyedit_fast_edits")
    save(model, tmp_path / "none")
    assert saved_ids(tmp_path / "none") is None


def test_a_refused_edit_leaves_no_mark() -> None:
    model = tiny_model()
    with pytest.raises(EditStateError, match="another model"):
        make_edit(tiny_model(seed=1)).apply(model)
    assert not hasattr(model.config, "easyedit_fast_edits")


@pytest.mark.parametrize("other", ["another seed", "another shape", "another family"])
def test_another_model_is_refused(other: str) -> None:
    edit = make_edit(tiny_model())
    model = {
        "another seed": lambda: tiny_model(seed=1),
        "another shape": lambda: tiny_model(intermediate_size=64),
        "another family": lambda: tiny_model("gpt2"),
    }[other]()
    before = weights(model)
    with pytest.raises(EditStateError, match=r"another (model|architecture)"):
        edit.apply(model)
    assert_same_weights(model, before)
    assert not edit.is_applied


def test_a_model_of_another_dtype_is_the_same_model() -> None:
    model = tiny_model()
    edit = make_edit(model)
    half = tiny_model().to(torch.bfloat16)
    edit.apply(half)
    assert edit.is_applied


def test_the_model_check_can_be_left_out() -> None:
    edit = make_edit(tiny_model())
    edit.apply(tiny_model(seed=1), check_model=False)
    assert edit.is_applied


def test_a_non_finite_result_leaves_every_weight_as_it_was() -> None:
    model = tiny_model().to(torch.float16)
    before = weights(model)
    edit = make_edit(model, layers=(1, 2))
    last = architecture_of(model).weight_name(2)
    huge = edit.updates[last]
    edit.updates[last] = LowRankUpdate(huge.output_factor * 1e6, huge.input_factor)
    with pytest.raises(NonFiniteError):
        edit.apply(model)
    assert_same_weights(model, before)
    assert not edit.is_applied


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_factor_is_refused(bad: float) -> None:
    factor = torch.ones(3, 1)
    factor[1] = bad
    with pytest.raises(NonFiniteError, match="output_factor"):
        LowRankUpdate(factor, torch.ones(1, 4))


def change(model: PreTrainedModel, layer: int = 1, *, through_data: bool = False) -> None:
    weight = model.get_parameter(architecture_of(model).weight_name(layer))
    (weight.data if through_data else weight.detach())[0, 0] += 1.0


@pytest.mark.parametrize("through_data", [False, True])
def test_a_weight_changed_by_other_means_is_refused(tmp_path: Path, through_data: bool) -> None:
    model = tiny_model()
    edit = make_edit(model)
    edit.apply(model)
    change(model, through_data=through_data)
    changed = weights(model)
    for refused in (
        edit.revert,
        lambda: edit.apply(model),
        lambda: make_edit(model).apply(model),
        lambda: make_edit(model, seed=1).apply(model),
        lambda: save_by_us(model, tmp_path / "model"),
    ):
        with pytest.raises(EditStateError, match=r"was changed after.*from_pretrained"):
            refused()
    assert_same_weights(model, changed)
    assert not (tmp_path / "model").exists()
    assert edit.is_applied
    edit.apply(tiny_model())  # as the message says


def test_changes_that_cancel_in_the_sum_are_noticed() -> None:
    model = tiny_model().to(torch.bfloat16)
    edit = make_edit(model)
    edit.apply(model)
    bits = model.get_parameter(architecture_of(model).weight_name(1)).data.view(torch.int16)
    bits[0, 0] += 1
    bits[1, 0] -= 1
    with pytest.raises(EditStateError, match="was changed after"):
        edit.revert()


def load_anew(model: PreTrainedModel, state: dict[str, torch.Tensor]) -> None:
    model.load_state_dict(state, strict=False)


def test_a_model_loaded_anew_is_edited_again(demo_model) -> None:
    model, _ = demo_model
    names = [architecture_of(model).weight_name(layer) for layer in (4, 5)]
    state = {name: model.get_parameter(name).detach().clone() for name in names}
    edit = make_edit(model, layers=(4, 5), scale=0.01)
    edit.apply(model)
    edited = model.get_parameter(names[0]).detach().clone()
    load_anew(model, state)
    assert not edit.is_applied
    edit.apply(model)
    assert torch.equal(model.get_parameter(names[0]), edited)
    assert edit.is_applied
    load_anew(model, state)
    other = make_edit(model, seed=1, layers=(5, 4), scale=0.01)
    other.apply(model)
    assert not edit.is_applied
    assert model.config.easyedit_fast_edits == [other.id]
    other.revert()
    assert not hasattr(model.config, "easyedit_fast_edits")
    assert all(torch.equal(model.get_parameter(name), state[name]) for name in names)


def test_there_is_nothing_to_revert_in_a_model_loaded_anew() -> None:
    model = tiny_model()
    before = weights(model)
    edit = make_edit(model)
    with edit.applied(model):
        load_anew(model, before)
    edit.apply(model)
    load_anew(model, before)
    for _ in range(2):
        with pytest.raises(EditStateError, match=r"loaded anew.*nothing to revert"):
            edit.revert()
    assert not hasattr(model.config, "easyedit_fast_edits")
    assert_same_weights(model, before)
    edit.apply(tiny_model())


def test_a_model_loaded_anew_is_saved_at_the_second_call(tmp_path: Path) -> None:
    model = tiny_model()
    before = weights(model)
    make_edit(model).apply(model)
    load_anew(model, before)
    with pytest.raises(EditStateError, match=r"loaded anew.*save once more"):
        save_by_us(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    save_by_us(model, tmp_path / "model")
    assert saved_ids(tmp_path / "model") is None


def test_one_weight_of_two_loaded_anew_leaves_half_to_revert() -> None:
    model = tiny_model()
    before = weights(model)
    edit = make_edit(model, layers=(1, 2))
    edit.apply(model)
    name = architecture_of(model).weight_name(1)
    load_anew(model, {name: before[name]})
    assert edit.is_applied
    with pytest.raises(EditStateError, match=r"in the model already.*revert\(model\)"):
        edit.apply(model)
    assert model.config.easyedit_fast_edits == [edit.id]
    edit.revert()
    assert_same_weights(model, before)
    assert not hasattr(model.config, "easyedit_fast_edits")


def test_an_edit_that_rounds_away_is_still_recorded() -> None:
    model = tiny_model().to(torch.bfloat16)
    edit = make_edit(model, scale=1e-12)
    before = weights(model)
    edit.apply(model)
    assert_same_weights(model, before)
    assert edit.is_applied
    with pytest.raises(EditStateError, match="in the model already"):
        edit.apply(model)
    edit.revert()


def test_an_edit_goes_into_one_model_at_a_time() -> None:
    model, other = tiny_model(), tiny_model()
    edit = make_edit(model)
    edit.apply(model)
    with pytest.raises(EditStateError, match="applied to another model"):
        edit.apply(other)
    edit.revert()
    edit.apply(other)
    assert edit.is_applied


def adapted(model: PreTrainedModel) -> torch.nn.Module:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(target_modules=["down_proj"], r=1))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("check_model", [True, False])
@pytest.mark.parametrize(
    ("wrap", "remedy"),
    [
        (adapted, "merge_and_unload"),
        (torch.compile, "_orig_mod"),
        (torch.nn.DataParallel, r"model\.module"),
    ],
)
def test_a_wrapped_model_is_refused_as_by_the_editor(
    wrap: Callable[[PreTrainedModel], torch.nn.Module], remedy: str, check_model: bool
) -> None:
    edit = make_edit(tiny_model())
    wrapped = wrap(tiny_model())
    with pytest.raises(ModelError, match=f"is wrapped in.*{remedy}") as caught:
        edit.apply(wrapped, check_model=check_model)  # type: ignore[arg-type]
    with pytest.raises(ModelError) as by_editor:
        edited_module(wrapped, edit.architecture, 1)
    assert str(caught.value) == str(by_editor.value)
    assert not edit.is_applied
    with pytest.raises(ModelError, match="is wrapped in"):
        edit.revert(wrapped)  # type: ignore[arg-type]


def test_a_copied_model_has_edits_of_its_own() -> None:
    model = tiny_model()
    before = weights(model)
    edit = make_edit(model)
    edit.apply(model)
    copied = copy.deepcopy(model)
    second = make_edit(copied, seed=1)
    second.apply(copied)
    edit.revert(copied)
    second.revert()
    assert_same_weights(copied, before)
    edit.revert()
    assert_same_weights(model, before)


def test_a_loaded_edit_comes_out_of_the_model_that_is_named(tmp_path: Path) -> None:
    model = tiny_model()
    before = weights(model)
    edit = make_edit(model)
    edit.apply(model)
    edit.save(tmp_path / "edit.safetensors")
    loaded = Edit.load(tmp_path / "edit.safetensors")
    with pytest.raises(EditStateError, match=r"name it: revert\(model\)"):
        loaded.revert()
    loaded.revert(model)
    assert_same_weights(model, before)
    assert not edit.is_applied
    edit.apply(model)


def test_revert_without_apply_is_refused() -> None:
    with pytest.raises(EditStateError, match="nothing to revert"):
        make_edit(tiny_model()).revert()
