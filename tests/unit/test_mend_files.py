"""Editor files: ours, EasyEdit's checkpoints, and files that are neither."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from easyedit_fast.errors import DataFileError, HparamsError, MissingFileError, ModelError
from easyedit_fast.mend import Mend, MENDHyperParams
from easyedit_fast.mend.editor_files import (
    read_editor,
    write_easyedit_checkpoint,
    write_editor,
)
from easyedit_fast.mend.network import EditorNetwork
from easyedit_fast.training.editors import EditorFile
from tests.unit.tiny_models import WORDS, tiny_model, word_tokenizer

INNER_PARAMS = ["model.layers.2.mlp.up_proj.weight", "model.layers.3.mlp.down_proj.weight"]


def trained(**keys: Any) -> tuple[MENDHyperParams, EditorNetwork]:
    """A network that has seen tokens."""
    hparams = MENDHyperParams(**{"inner_params": INNER_PARAMS, "rank": 3, **keys})
    model = tiny_model()
    sizes = {name: tuple(model.get_parameter(name).T.shape) for name in INNER_PARAMS}
    network = EditorNetwork(hparams, sizes)
    factors = {name: (torch.randn(5, x), torch.randn(5, d)) for name, (x, d) in sizes.items()}
    network.train()(factors)
    return hparams, network


def tensors_of(network: EditorNetwork) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_what_is_written_is_read(tmp_path: Path) -> None:
    hparams, network = trained()
    path = tmp_path / "editor.safetensors"
    write_editor(path, EditorFile(tensors_of(network), hparams.to_dict(), {"steps": 7}))
    found = read_editor(path)
    assert_same(found.tensors, tensors_of(network))
    assert (found.hparams, found.card) == (hparams.to_dict(), {"steps": 7})
    method = Mend(tiny_model(), word_tokenizer(WORDS), hparams={"archive": path})
    assert method.hparams.inner_params == INNER_PARAMS
    assert_same(tensors_of(method.network), tensors_of(network))


def test_any_length_of_header_is_read(tmp_path: Path) -> None:
    """A file begins with it, so that its first byte may be that of a pickle."""
    path = tmp_path / "editor.safetensors"
    tensors = {"edit_lrs": torch.ones(1)}
    first = set()
    for length in range(0, 256, 8):  # safetensors fills headers up to eight bytes
        write_editor(path, EditorFile(tensors, {}, {"data": "x" * length}))
        assert_same(read_editor(path).tensors, tensors)
        first.add(path.read_bytes()[0])
    assert 0x80 in first


@pytest.mark.parametrize("prefix", ["mend.", "gtn."])
def test_a_checkpoint_of_easyedit(tmp_path: Path, prefix: str) -> None:
    """With all that theirs hold: the model's config, optimiser states, statistics."""
    hparams, network = trained()
    state = OrderedDict(
        (name.replace("mend.", prefix), tensor) for name, tensor in tensors_of(network).items()
    )
    checkpoint = {
        "model": OrderedDict(state, model_config=LlamaConfig()),
        "opt": torch.optim.Adam(network.parameters()).state_dict(),
        "lr_opt": None,
        "val_stats": defaultdict(float, {"edit/acc_val": 0.5}),
        "start_time": "25/11/2026-00:00:00/000000",
        "elapsed_time": 1.5,
        "step": 40,
    }
    path = tmp_path / "llama"
    torch.save(checkpoint, path)
    assert_same(read_editor(path).tensors, tensors_of(network))
    model, tokenizer = tiny_model(), word_tokenizer(WORDS)
    with pytest.raises(HparamsError, match="does not say which weights it edits"):
        Mend(model, tokenizer, hparams={"archive": path})
    given = {"archive": path, "inner_params": INNER_PARAMS, "rank": hparams.rank}
    assert_same(tensors_of(Mend(model, tokenizer, hparams=given).network), tensors_of(network))


def test_ours_goes_back_to_easyedits_form(tmp_path: Path) -> None:
    _, network = trained()
    path = tmp_path / "checkpoint"
    write_easyedit_checkpoint(path, network.state_dict(), LlamaConfig())
    with torch.serialization.safe_globals([LlamaConfig]):  # the one thing in it beside tensors
        content = torch.load(path, weights_only=True)
    assert isinstance(content["model"].pop("model_config"), LlamaConfig)
    assert_same(content["model"], tensors_of(network))
    assert_same(read_editor(path).tensors, tensors_of(network))


class Calls:
    """Pickles as a call."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("function", [os.system, subprocess.call, eval])
def test_a_checkpoint_runs_no_code(tmp_path: Path, function: Any) -> None:
    touched = tmp_path / "touched"
    text = f"open({str(touched)!r}, 'w')" if function is eval else f"touch {touched}"
    arguments = (text.split(),) if function is subprocess.call else (text,)
    path = tmp_path / "checkpoint"
    torch.save({"model": {"edit_lrs": torch.ones(2), "x": Calls(function, arguments)}}, path)
    if function is os.system:  # torch names the modules that it never takes anything from
        with pytest.raises(DataFileError, match=r"read safely: .*module \w+ is blocked"):
            read_editor(path)
    else:
        assert list(read_editor(path).tensors) == ["edit_lrs"]
    assert not touched.exists()


@pytest.mark.parametrize("where", ["head", "tail"])
def test_damage_is_seen(tmp_path: Path, where: str) -> None:
    hparams, network = trained()
    path = tmp_path / "editor.safetensors"
    write_editor(path, EditorFile(tensors_of(network), hparams.to_dict(), {}))
    content = bytearray(path.read_bytes())
    content[20 if where == "head" else -3] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataFileError, match="damaged"):
        read_editor(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], "holds no 'model'"),
        ({"model": {"a": torch.ones(1)}}, "holds no 'edit_lrs'"),
    ],
)
def test_other_checkpoints_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "other")
    with pytest.raises(DataFileError, match=message):
        read_editor(tmp_path / "other")


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="there is no MEND editor file"):
        read_editor(tmp_path / "nowhere")
    (tmp_path / "text").write_text("not an editor")
    with pytest.raises(DataFileError, match="is damaged or no safetensors file"):
        read_editor(tmp_path / "text")


def test_an_editor_must_fit_the_model_and_be_trained(tmp_path: Path) -> None:
    model, tokenizer = tiny_model(), word_tokenizer(WORDS)
    path = tmp_path / "editor.safetensors"
    hparams, network = trained()
    write_editor(path, EditorFile(tensors_of(network), hparams.to_dict(), {}))
    with pytest.raises(ModelError, match=r"'mend\..*\.u' is \(.*, 3\) there and \(.*, 4\) here"):
        Mend(model, tokenizer, hparams={"archive": path, "rank": 4})
    with pytest.raises(ModelError, match=r"no module 'model\.layers\.9"):
        Mend(
            model,
            tokenizer,
            hparams={"archive": path, "inner_params": ["model.layers.9.mlp.up_proj.weight"]},
        )
    with pytest.raises(HparamsError, match="name the file of one as archive"):
        Mend(model, tokenizer)
    fresh = EditorNetwork(hparams, dict.fromkeys(INNER_PARAMS, (4, 4)))
    with pytest.raises(ModelError, match="is not trained"):
        fresh.require_trained()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"edit_lrs": torch.ones(2, dtype=torch.int64)}, "'edit_lrs' is no dense tensor"),
        ({"edit_lrs": torch.ones(2).to_sparse()}, "is no dense tensor|be read safely"),
        ({"edit_lrs": torch.ones(2), "gtn.k": torch.ones(1), "mend.k": torch.ones(1)}, "twice"),
    ],
)
def test_odd_tensors_are_refused(tmp_path: Path, state: Any, message: str) -> None:
    torch.save({"model": state}, tmp_path / "odd")
    with pytest.raises(DataFileError, match=message):
        read_editor(tmp_path / "odd")


def test_checkpoints_of_other_kinds_are_told(tmp_path: Path) -> None:
    content = {"model": {"edit_lrs": torch.ones(2), 3: torch.ones(1)}}
    torch.save(content, tmp_path / "old", _use_new_zipfile_serialization=False)
    with pytest.raises(DataFileError, match=r"before 1\.6"):
        read_editor(tmp_path / "old")
    torch.save(content, tmp_path / "plain")
    assert list(read_editor(tmp_path / "plain").tensors) == ["edit_lrs"]
    with (
        zipfile.ZipFile(tmp_path / "plain") as plain,
        zipfile.ZipFile(tmp_path / "small", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for name in plain.namelist():
            small.writestr(name, plain.read(name))
    with pytest.raises(DataFileError, match="is compressed"):
        read_editor(tmp_path / "small")


def test_damaged_pickles_are_data_errors(tmp_path: Path) -> None:
    torch.save({"model": {"edit_lrs": torch.ones(2), "a": [1, "b"]}}, tmp_path / "whole")
    with zipfile.ZipFile(tmp_path / "whole") as whole:
        parts = {name: whole.read(name) for name in whole.namelist()}
    (pickled,) = [name for name in parts if name.endswith("data.pkl")]
    random = torch.Generator().manual_seed(0)
    for _ in range(200):
        content = bytearray(parts[pickled])
        place, value = (int(torch.randint(n, (1,), generator=random)) for n in (len(content), 256))
        content[place] = value
        with zipfile.ZipFile(tmp_path / "changed", "w") as changed:
            for name, part in {**parts, pickled: bytes(content)}.items():
                changed.writestr(name, part)
        with contextlib.suppress(DataFileError):
            read_editor(tmp_path / "changed")


@pytest.mark.parametrize("name", ["edit_lrs", "u_mean", "mode_scale.weight"])
def test_an_editor_that_is_not_finite_is_refused(tmp_path: Path, name: str) -> None:
    hparams, network = trained()
    tensors = tensors_of(network)
    chosen = next(key for key in tensors if key.endswith(name))
    tensors[chosen].view(-1)[0] = float("nan")
    write_editor(tmp_path / "e", EditorFile(tensors, hparams.to_dict(), {}))
    with pytest.raises(DataFileError, match=f"{re.escape(chosen)!s}' holds NaN or infinity"):
        Mend(tiny_model(), word_tokenizer(WORDS), hparams={"archive": tmp_path / "e"})


def test_settings_tell_the_editors_contents(tmp_path: Path) -> None:
    hparams, network = trained()
    settings = []
    for factor in (1.0, 2.0):
        tensors = tensors_of(network)
        tensors["edit_lrs"] *= factor
        write_editor(tmp_path / "e", EditorFile(tensors, hparams.to_dict(), {}))
        method = Mend(tiny_model(), word_tokenizer(WORDS), hparams={"archive": tmp_path / "e"})
        settings.append(method.settings())
    assert settings[0] != settings[1]


def test_easyedits_keys_give_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    MENDHyperParams(
        inner_params=INNER_PARAMS, device=0, model_parallel=False, lr=1e-6, lr_lr=1e-4, cedit=0.1,
        model_class="LlamaForCausalLM", tokenizer_class="LlamaTokenizer", results_dir="./results",
    )  # fmt: skip
    assert not recwarn.list
    with pytest.warns(UserWarning, match="'inner_parms' is not a hyperparameter"):
        MENDHyperParams(inner_params=INNER_PARAMS, inner_parms=[])
