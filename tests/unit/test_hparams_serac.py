"""SERAC's hyperparameters: the shipped files, EasyEdit's keys, and what cannot be used."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from easyedit_fast.errors import HparamsError
from easyedit_fast.hparams import shipped_names
from easyedit_fast.serac.hparams import SERACHparams, SERACTrainingHparams

EDITING = [name for name in shipped_names() if name.startswith("SERAC/")]
TRAINING = [name for name in shipped_names() if name.startswith("TRAINING/SERAC/")]


def test_the_file_that_the_docs_show_loads_in_silence(tmp_path: Path) -> None:
    docs = (Path(__file__).resolve().parents[2] / "docs" / "serac.md").read_text(encoding="utf-8")
    own = docs.partition("### For a model of your own")[2].partition("```yaml\n")[2]
    path = tmp_path / "my-serac.yaml"
    path.write_text(own.partition("```")[0], encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert SERACTrainingHparams.from_yaml(path).model_name == "demo"


def test_each_model_has_both() -> None:
    trained = {name.removeprefix("TRAINING/") for name in TRAINING}
    assert set(EDITING) == trained - {"SERAC/smollm2-135m-adapter"}, "a second run's"
    models = {"llama-7b", "gpt-j-6B", "gpt2-xl", "baichuan-7b", "smollm2-135m"}
    assert {f"SERAC/{model}" for model in models} <= set(EDITING)


@pytest.mark.parametrize("name", EDITING + TRAINING)
def test_a_shipped_file_loads_in_silence_and_round_trips(name: str, tmp_path: Path) -> None:
    kind = SERACTrainingHparams if name in TRAINING else SERACHparams
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hparams = kind.from_hparams(name)
    assert hparams.small_name is None
    (tmp_path / "again.yaml").write_text(hparams.to_yaml())
    assert kind.from_yaml(tmp_path / "again.yaml").to_dict() == hparams.to_dict()


EASYEDITS = (
    "alg_name: SERAC\nmodel_name: m\nmodel_class: LlamaForCausalLM\nsmall_name: small\n"
    "tokenizer_class: LlamaTokenizer\ntokenizer_name: m\ncls_name: distilbert-base-cased\n"
    "cls_class: AutoModel\ninner_params: []\nmodel_parallel: false\narchive: null\n"
    "dropout: 0.0\ntrain_base: False\nno_grad_layers: null\nsoft_weighting: false\n"
    "checkpoint_grad: false\ncross_attend: false\ncos: false\nfreeze: null\nsquare: true\n"
    "bound_embeds: false\nuse_all_negatives: false\nfreeze_cntr: false\ndist_heads: 1\n"
    "lora: null\nbatch_size: 1\nmodel_save_pt: 500\nedit_bs: 1\nsilent: False\n"
    "max_iters: 10000\nlog_interval: 100\nval_interval: 500\nearly_stop_patience: 40000\n"
    "early_stop_key: loss/total_edit_val\neval_only: False\nhalf: False\nsave: False\n"
    "debug: False\nlog_errors: False\nunlikelihood: True\nval_batch_size: 1\n"
    "accumulate_bs: 10\nval_steps: 500\nopt: Adam\ngrad_clip: 100.\nlr: 1e-5\nedit_lr: 1e-2\n"
    "seed: 0\nlr_lr: 0.0\ncedit: 0.1\ncloc: 1.0\ncbase: 1.0\nfinal_eval: True\nsupervised: {}\n"
    "device: 0\n"
)


@pytest.mark.parametrize("kind", [SERACHparams, SERACTrainingHparams])
def test_easyedits_own_keys_load(kind: type[SERACHparams], tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text(EASYEDITS.format("false"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hparams = kind.from_yaml(tmp_path / "t.yaml")
    assert hparams.small_name == "small"
    assert not hparams.supervised
    assert (hparams.cos, hparams.square, hparams.cls_name) == (False, True, "distilbert-base-cased")


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("cross_attend", "always", "cross_attend"),
        ("cross_candidates", 0, "cross_candidates"),
        ("dist_heads", 0, "dist_heads"),
        ("cntr_rank", 0, "cntr_rank"),
        ("pooling", "max", "pooling"),
        ("parts", "all", "parts"),
    ],
)
def test_what_cannot_be_used_is_refused(key: str, value: object, text: str) -> None:
    with pytest.raises(HparamsError, match=text):
        SERACTrainingHparams(**{key: value})


def test_an_unknown_key_is_told() -> None:
    with pytest.warns(UserWarning, match="did you mean 'cntr_rank'"):
        SERACHparams(cntr_ranks=4)


def test_an_editors_file_does_not_say_how_memories_are_searched() -> None:
    hparams = SERACTrainingHparams(memory_index="approximate", threshold=0.2)
    left_out = {"archive", "memory_index", "memory_precision", "threshold"}
    assert set(hparams.for_edits()) == set(SERACHparams.model_fields) - left_out
