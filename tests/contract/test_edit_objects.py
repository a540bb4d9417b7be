"""Edits as objects: applied, reverted, saved, loaded and exported, on real model classes."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from easyedit_fast import Edit, EditRequest
from easyedit_fast.errors import DataFileError, EditStateError, MissingFileError, NonFiniteError
from easyedit_fast.ledger import save_edited_model
from easyedit_fast.models.architectures import architecture_of
from easyedit_fast.models.fingerprint import model_fingerprint
from easyedit_fast.updates import LowRankUpdate
from tests.unit.tiny_models import VOCABULARY, tiny_model

REQUEST = EditRequest(prompt="The sky over {} is", subject="Mars", target_new="green")
INPUT_IDS = torch.arange(3, 15).remainder(VOCABULARY)[None]


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
    with pytest.raises(EditStateError, match="applied already"):
        edit.apply(model)
    edit.save(tmp_path / "edit.safetensors")
    with pytest.raises(EditStateError, match="in the model already"):
        Edit.load(tmp_path / "edit.safetensors").apply(model)
    assert_same_weights(model, once)


def test_a_saved_model_knows_its_edits(tmp_path: Path) -> None:
    class Tokenizer:
        def save_pretrained(self, folder: Path) -> None:
            (folder / "tokenizer.json").write_text("{}")

    model = tiny_model()
    edit = make_edit(model)
    edit.apply(model)
    save_edited_model(model, Tokenizer(), tmp_path / "model")  # type: ignore[arg-type]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert_same_weights(loaded, weights(model))
    edit.revert()
    edit.apply(model)  # saving leaves no trace in the model at hand
    with pytest.raises(EditStateError, match="in the model already"):
        make_edit(model).apply(loaded)


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


@pytest.mark.parametrize("through_data", [False, True])
def test_a_weight_changed_by_other_means_is_not_reverted(through_data: bool) -> None:
    model = tiny_model()
    edit = make_edit(model)
    edit.apply(model)
    weight = model.get_parameter(architecture_of(model).weight_name(1))
    (weight.data if through_data else weight.detach())[0, 0] += 1.0
    with pytest.raises(EditStateError, match="was changed after"):
        edit.revert()


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
    Edit.load(tmp_path / "edit.safetensors").revert(model)
    assert_same_weights(model, before)


def test_revert_without_apply_is_refused() -> None:
    with pytest.raises(EditStateError, match="nothing to revert"):
        make_edit(tiny_model()).revert()


def test_save_and_load_keep_everything(tmp_path: Path) -> None:
    model = tiny_model()
    edit = make_edit(model, layers=(0, 3))
    edit.save(tmp_path / "edit.safetensors")
    loaded = Edit.load(tmp_path / "edit.safetensors")
    assert loaded.describe() == edit.describe()
    assert loaded.id == edit.id
    assert loaded.requests == edit.requests
    for name, update in edit.updates.items():
        assert torch.equal(loaded.updates[name].output_factor, update.output_factor)
        assert torch.equal(loaded.updates[name].input_factor, update.input_factor)
    loaded.apply(model)
    assert loaded.is_applied


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[:-7], "damaged or no safetensors"),
        (lambda raw: b"", "damaged or no safetensors"),
        (lambda raw: b"\xff" * 64, "damaged or no safetensors"),
        (lambda raw: raw.replace(b"easyedit-fast.edit", b"easyedit-slow.edit"), "no edit of"),
        (lambda raw: raw.replace(b'"format_version":"1"', b'"format_version":"9"'), "version 9"),
        (lambda raw: raw.replace(rb"\"method\"", rb"\"metho0\""), "'method' is missing"),
        (lambda raw: raw.replace(rb"\"blocks\":", rb"\"blockz\":"), "architecture.blocks"),
        (lambda raw: raw.replace(rb"\"subject\":", rb"\"sabject\":"), "a request in it is damaged"),
        (lambda raw: raw[:-4] + b"\x00\x00\xc0\x7f", "the update of .* is damaged"),
    ],
)
def test_a_damaged_edit_file_is_refused(tmp_path: Path, damage: object, message: str) -> None:
    path = tmp_path / "edit.safetensors"
    make_edit(tiny_model()).save(path)
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(DataFileError, match=message) as caught:
        Edit.load(path)
    assert "\n" not in str(caught.value)


def test_tensors_that_the_header_does_not_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "edit.safetensors"
    make_edit(tiny_model()).save(path)
    with safe_open(path, "pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file({**tensors, "stowaway": torch.ones(2)}, path, metadata=header)
    with pytest.raises(DataFileError, match="does not name"):
        Edit.load(path)


def test_a_missing_edit_file_or_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no edit file"):
        Edit.load(tmp_path / "none.safetensors")
    with pytest.raises(MissingFileError, match="no folder"):
        make_edit(tiny_model()).save(tmp_path / "none" / "edit.safetensors")


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "edit.safetensors"
    edit = make_edit(tiny_model())
    edit.save(path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("easyedit_fast.files.Path.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        make_edit(tiny_model(), seed=5).save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(INPUT_IDS).logits
    return result


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "opt"])
def test_the_peft_export_equals_the_edit(family: str, tmp_path: Path) -> None:
    from peft import PeftModel

    edit = make_edit(tiny_model(family), layers=(1, 2))
    edit.to_peft(tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    edited = tiny_model(family)
    plain = logits(edited)
    edit.apply(edited)
    adapted = PeftModel.from_pretrained(tiny_model(family), tmp_path / "adapter")
    difference = (logits(adapted) - logits(edited)).norm() / logits(edited).norm()
    assert difference < 1e-4
    assert (logits(edited) - plain).norm() / plain.norm() > 1e-3
