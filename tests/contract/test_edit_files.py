"""Edits on disk: saved, loaded, damaged, and exported to the real PEFT library."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from easyedit_fast import Edit
from easyedit_fast.edit_files import write_edit_file
from easyedit_fast.errors import DataFileError, MissingFileError
from tests.contract.test_edit_objects import make_edit
from tests.unit.tiny_models import VOCABULARY, tiny_model

INPUT_IDS = torch.arange(3, 15).remainder(VOCABULARY)[None]


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
        (lambda raw: raw.replace(rb"\"method\"", rb"\"metho0\""), "not match its digest"),
        (lambda raw: raw.replace(b"sha256", b"sha255"), "not match its digest"),
        (lambda raw: raw[:-4] + b"\x00\x00\xc0\x7f", "not match its digest"),
    ],
)
def test_a_damaged_edit_file_is_refused(
    tmp_path: Path, damage: Callable[[bytes], bytes], message: str
) -> None:
    path = tmp_path / "edit.safetensors"
    make_edit(tiny_model()).save(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataFileError, match=message) as caught:
        Edit.load(path)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Edit]:
    edit = make_edit(tiny_model(), layers=(0, 2))
    path = tmp_path_factory.mktemp("edit") / "edit.safetensors"
    edit.save(path)
    return path, edit


@given(data=st.data(), mask=st.integers(1, 255))
def test_a_changed_byte_is_noticed_or_changes_nothing(
    saved: tuple[Path, Edit], data: st.DataObject, mask: int
) -> None:
    path, edit = saved
    raw = bytearray(path.read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1), label="position")] ^= mask
    damaged = path.with_name("damaged.safetensors")
    damaged.write_bytes(raw)
    try:
        loaded = Edit.load(damaged)
    except DataFileError:
        return
    assert loaded.describe() == edit.describe()


@pytest.mark.parametrize("where", ["first value", "last value", "request"])
def test_a_finite_change_is_noticed(saved: tuple[Path, Edit], where: str) -> None:
    path, _ = saved
    raw = bytearray(path.read_bytes())
    header_end = 8 + int.from_bytes(raw[:8], "little")
    place = {"first value": header_end, "last value": len(raw) - 4, "request": raw.index(b"Mars")}
    raw[place[where]] ^= 1
    damaged = path.with_name("damaged.safetensors")
    damaged.write_bytes(raw)
    with pytest.raises(DataFileError, match=r"is damaged \(its contents do not match its digest\)"):
        Edit.load(damaged)


def test_the_digest_is_of_the_contents_not_of_their_layout(
    saved: tuple[Path, Edit], tmp_path: Path
) -> None:
    path, edit = saved
    with safe_open(path, "pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(dict(reversed(tensors.items())), tmp_path / "again", metadata=header)
    assert Edit.load(tmp_path / "again").describe() == edit.describe()
    save_file({**tensors, "stowaway": torch.ones(2)}, tmp_path / "again", metadata=header)
    with pytest.raises(DataFileError, match="digest"):
        Edit.load(tmp_path / "again")


def set_nan(edit: Edit) -> None:
    next(iter(edit.updates.values())).output_factor[0, 0] = float("nan")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda edit, metadata: metadata.pop("method"), "'method' is missing"),
        (lambda edit, metadata: metadata.update(requests=[3]), "'requests' is damaged"),
        (lambda edit, metadata: metadata["architecture"].pop("blocks"), "architecture.blocks"),
        (lambda edit, metadata: metadata["requests"][0].pop("subject"), "a request in it is"),
        (lambda edit, metadata: edit.updates.clear(), "no update at all"),
        (lambda edit, metadata: set_nan(edit), "the update of .* is damaged"),
    ],
)
def test_wrong_contents_are_refused_though_their_digest_fits(
    tmp_path: Path, change: Callable[[Edit, dict[str, Any]], object], message: str
) -> None:
    path = tmp_path / "edit.safetensors"
    edit = make_edit(tiny_model())
    metadata = {
        "method": edit.method,
        "model_name": edit.model_name,
        "model_fingerprint": edit.model_fingerprint,
        "architecture": dataclasses.asdict(edit.architecture),
        "requests": [request.to_dict() for request in edit.requests],
        "hparams": {},
        "settings": {},
        "versions": {},
    }
    write_edit_file(path, edit.updates, metadata)
    assert Edit.load(path).id == edit.id
    change(edit, metadata)
    write_edit_file(path, edit.updates, metadata)
    with pytest.raises(DataFileError, match=message):
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


def test_the_adapter_names_a_model_that_peft_can_load(tmp_path: Path) -> None:
    """None for the demo model, whose name means something to this package only."""
    for own, given_name, named in (
        ("org/tiny", None, "org/tiny"),
        ("demo", None, None),
        ("demo", "./tiny", "./tiny"),
    ):
        edit = make_edit(tiny_model())
        edit.model_name = own
        edit.to_peft(tmp_path, base_model=given_name)
        config = json.loads((tmp_path / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == named
