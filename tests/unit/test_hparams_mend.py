"""MEND's hyperparameters: the shipped files, and what cannot be used."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import yaml

from easyedit_fast.errors import HparamsError
from easyedit_fast.hparams import find_hparams_file, shipped_names
from easyedit_fast.mend.hparams import MENDHyperParams, MENDTrainingHparams

EDITING = [name for name in shipped_names() if name.startswith("MEND/")]
TRAINING = [name for name in shipped_names() if name.startswith("TRAINING/MEND/")]


def test_each_model_has_both() -> None:
    trained = {name.removeprefix("TRAINING/") for name in TRAINING}
    assert set(EDITING) == trained - {"MEND/smollm2-135m"}, "its editor comes with the package"
    assert len(EDITING) == 11


@pytest.mark.parametrize("name", EDITING + TRAINING)
def test_a_shipped_file_loads_in_silence_and_round_trips(name: str, tmp_path: Path) -> None:
    kind = MENDTrainingHparams if name in TRAINING else MENDHyperParams
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hparams = kind.from_hparams(name)
    (tmp_path / "again.yaml").write_text(hparams.to_yaml())
    assert kind.from_yaml(tmp_path / "again.yaml").to_dict() == hparams.to_dict()
    given = yaml.safe_load(find_hparams_file(name).read_text())
    assert {key: getattr(hparams, key) for key in given if key != "edit_lr"} == {
        key: float(value) if key in ("lr", "lr_lr") else value
        for key, value in given.items()
        if key != "edit_lr"
    }


def test_easyedits_own_keys_load_in_silence(tmp_path: Path) -> None:
    """Those that have no meaning here too; numbers as its files write them."""
    (tmp_path / "t.yaml").write_text(
        "alg: MEND\nmodel_name: m\nmodel_class: LlamaForCausalLM\ntokenizer_class: LlamaTokenizer\n"
        "inner_params: [model.layers.29.mlp.up_proj.weight]\narchive: null\nlr: 1e-6\n"
        "edit_lr: 1e-4\nlr_lr: 1e-4\ncbase: 1.0\ndropout: 0.0\ntrain_base: False\n"
        "no_grad_layers: null\nhidden_dim: null\nsilent: False\nval_steps: 500\ndebug: False\n"
        "device: cuda:0\nmodel_parallel: true\neval_only: False\nfinal_eval: True\nsave: False\n"
        "accumulate_bs: 10\nbatch_size: 1\nopt: Adam\ngrad_clip: 100.\nverbose: True\n"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hparams = MENDTrainingHparams.from_yaml(tmp_path / "t.yaml")
    assert (hparams.lr, hparams.edit_lr, hparams.lr_lr) == (1e-6, 1e-4, 1e-4)
    assert hparams.edits_at_most == 1
    assert set(hparams.for_edits()) == set(MENDHyperParams.model_fields) - {
        "archive",
        "together",
        "ridge",
    }


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train_base", True, "train_base: must be False"),
        ("dropout", 0.1, "dropout: "),
        ("opt", "SGD", "opt: must be 'Adam'"),
        ("lr", 0, "lr: must be greater than 0"),
        ("loc_tokens", "some", "loc_tokens: must be 'all' or 'answer'"),
        ("n_edits", 11, r"n_edits \(11\) is more than the batch has \(10\); raise batch_size$"),
        ("one_sided", True, "combine and one_sided exclude each other; switch on one of them$"),
    ],
)
def test_what_cannot_be_used(key: str, value: object, message: str) -> None:
    with pytest.raises(HparamsError, match=f"^{message}"):
        MENDTrainingHparams(inner_params=["a.weight"], **{key: value})


def test_keys_are_checked_before_there_is_a_model() -> None:
    given = {"n_edits": 2, "max_iters": 5}
    with pytest.warns(UserWarning, match="did you mean 'n_edits'"):
        found = MENDTrainingHparams.checked_keys({**given, "n_edit": 3}, inner_params=["w"])
    assert found == given
    with pytest.raises(HparamsError, match=r"^n_edits"):
        MENDTrainingHparams.checked_keys({"n_edits": 2, "batch_size": 1}, inner_params=["w"])


def test_a_fault_of_keys_together_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text("accumulate_bs: 3\ninner_params: [a.weight]\n")
    for read in (
        lambda: MENDTrainingHparams.from_yaml(path),
        lambda: MENDTrainingHparams.resolved(path, inner_params=["a.weight"]),
    ):
        with pytest.raises(HparamsError) as caught:
            read()
        assert str(caught.value).startswith(f"{path}: "), caught.value
        assert str(caught.value).endswith("there is nothing to look at")
