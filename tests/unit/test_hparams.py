"""The base class of all hyperparameters, and the reading of YAML files."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pydantic
import pytest

from easyedit_fast import hparams as hparams_module
from easyedit_fast.errors import HparamsError, MissingFileError
from easyedit_fast.hparams import (
    Float,
    Hparams,
    PathText,
    PositiveFloat,
    PositiveInt,
    find_hparams_file,
    read_yaml,
    shipped_names,
)


class Sample(Hparams):
    """Every kind of field that the methods use."""

    lr: PositiveFloat = 0.5
    steps: PositiveInt = 3
    bias: Float = 0.0
    verbose: bool = False
    device: int | str | None = None
    layers: list[int] = pydantic.Field(default_factory=lambda: [5])
    cache: PathText | None = None


def write(folder: Path, text: str | bytes, name: str = "sample.yaml") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize("text", ["5e-1", "'0.5'", "0.5", ".5", "5.0E-1"])
def test_a_float_may_be_written_as_text_and_says_nothing(tmp_path: Path, text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Sample.from_yaml(write(tmp_path, f"lr: {text}\n")).lr == 0.5


def test_an_integer_is_a_float_but_not_the_reverse() -> None:
    assert Sample(lr=1).lr == 1.0
    with pytest.raises(HparamsError, match=r"steps: must be a valid integer, got 2\.0"):
        Sample(steps=2.0)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("lr", "fast", "lr: must be a valid number, got 'fast'"),
        ("lr", "5e-1x", "lr: must be a valid number"),
        ("lr", True, "lr: must be a valid number, got True"),
        ("lr", float("nan"), "lr: must be a finite number"),
        ("bias", "inf", "bias: must be a finite number"),
        ("bias", "1e999", "bias: must be a finite number"),
        ("lr", 0, "lr: must be greater than 0"),
        ("steps", 0, "steps: must be greater than or equal to 1"),
        ("steps", True, "steps: must be a valid integer, got True"),
        ("steps", "3", "steps: must be a valid integer, got '3'"),
        ("verbose", "yes", "verbose: must be a valid boolean, got 'yes'"),
        ("verbose", 1, "verbose: must be a valid boolean, got 1"),
        ("device", 1.5, "device: must be a valid integer or a valid string, got 1.5"),
        ("layers", "5", "layers: must be a valid list, got '5'"),
        ("layers", [1, "2"], "layers: must be a valid integer, got '2'"),
        ("layers", [True], "layers: must be a valid integer, got True"),
        ("cache", 3, "cache: must be a valid string, got 3"),
    ],
)
def test_a_wrong_value_is_one_line_when_made_and_when_set(
    key: str, value: object, message: str
) -> None:
    with pytest.raises(HparamsError) as made:
        Sample(**{key: value})
    assert str(made.value).startswith(message)
    assert "\n" not in str(made.value)
    sample = Sample()
    before = sample.to_dict()
    with pytest.raises(HparamsError) as set_:
        setattr(sample, key, value)
    assert str(set_.value) == str(made.value)
    assert sample.to_dict() == before


def test_all_faults_stand_in_one_line_with_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "lr: fast\nsteps: 0\n")
    with pytest.raises(HparamsError) as caught:
        Sample.from_yaml(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert "lr: must be a valid number" in line
    assert "steps: must be greater" in line
    assert "\n" not in line


def test_an_unknown_key_only_warns_and_names_the_one_meant(tmp_path: Path) -> None:
    path = write(tmp_path, "stepz: 4\nlr: 0.25\n")
    with pytest.warns(UserWarning, match=r"'stepz' is not a hyperparameter.*mean 'steps'"):
        sample = Sample.from_yaml(path)
    assert sample.lr == 0.25
    assert "stepz" not in sample.to_dict()


def test_scripts_may_set_attributes_of_their_own() -> None:
    sample = Sample()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample.evaluation_type = "LLM-judge"
        sample.api_key = "secret"
    assert sample.evaluation_type == "LLM-judge"
    assert "secret" not in sample.to_yaml()
    with pytest.warns(UserWarning, match="mean 'layers'"):
        sample.layer = [3]


def test_dict_and_yaml_round_trip(tmp_path: Path) -> None:
    sample = Sample(lr=1e-7, layers=[3, 4], device="cuda:1", cache=Path("a") / "b.npz")
    assert Sample(**sample.to_dict()) == sample
    path = write(tmp_path, sample.to_yaml())
    read = Sample.from_yaml(path)
    assert read.to_dict() == sample.to_dict()
    assert (read.source, sample.source) == (str(path), "given")
    other = copy.deepcopy(sample)
    assert other == sample
    other.layers.append(9)
    assert sample.layers == [3, 4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("# only a comment\n", "is empty"),
        ("- 1\n- 2\n", "must hold 'key: value' lines, not a list"),
        ("just words", "must hold 'key: value' lines, not a str"),
        ("1: 2\n", "the key 1 is not a name"),
        ("lr: 1\nlr: 2\n", r"the key 'lr' stands there twice; drop one \(line 2\)"),
        ("a: {b: 1, b: 2}\n", "the key 'b' stands there twice"),
        ("lr: [1, 2\n", "is not valid YAML"),
        ("lr: !!python/object/apply:os.getcwd []\n", "is not valid YAML.*python/object"),
        ("a: &x [1]\nb: *x\n", "anchors and aliases are not allowed"),
        ("lr: " + "[" * 5000, "is not valid YAML: nested too deep"),
        ("d: 2020-99-99\n", "is not valid YAML"),
        (b"lr: \xff\n", r"is not UTF-8 text \(byte 4\)"),
        (b"lr: \x00\n", "is not valid YAML"),
        (b"#" * ((1 << 20) + 1), "is larger than 1 MiB"),
    ],
)
def test_a_bad_file_is_one_line_that_names_it(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(HparamsError, match=message) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(HparamsError, match="cannot be read"):
        read_yaml(tmp_path)


def test_a_name_is_found_as_path_then_among_the_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = find_hparams_file("ROME/llama-7b")
    assert shipped == hparams_module.hparams_folder() / "ROME" / "llama-7b.yaml"
    assert find_hparams_file("ROME/llama-7b.yaml") == shipped
    assert find_hparams_file("ROME/qwen2.5-0.5b").name == "qwen2.5-0.5b.yaml"
    own = write(tmp_path, "lr: 1\n", "own.v2.yaml")
    assert find_hparams_file(own) == own
    assert find_hparams_file(tmp_path / "own.v2") == own
    (tmp_path / "ROME").mkdir()
    write(tmp_path / "ROME", "lr: 1\n", "llama-7b.yaml")
    monkeypatch.chdir(tmp_path)
    assert find_hparams_file("ROME/llama-7b").samefile(tmp_path / "ROME/llama-7b.yaml")


def test_a_missing_name_lists_near_ones() -> None:
    with pytest.raises(MissingFileError, match=r"'ROME/lama-7b'.*ROME/llama-7b") as caught:
        find_hparams_file("ROME/lama-7b")
    assert isinstance(caught.value, FileNotFoundError)
    assert "\n" not in str(caught.value)
    with pytest.raises(MissingFileError, match="ROME/gpt2-xl"):
        find_hparams_file("")
    with pytest.raises(MissingFileError, match="there is no such file"):
        read_yaml("nowhere.yaml")


def test_the_installed_layout_is_found_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside a source tree the folder beside the module is used."""
    package = tmp_path / "site-packages" / "easyedit_fast"
    (package / "hparams" / "ROME").mkdir(parents=True)
    write(package / "hparams" / "ROME", "lr: 1\n", "only.yaml")
    write(package, "", "hparams.py")
    monkeypatch.setattr(hparams_module, "__file__", str(package / "hparams.py"))
    monkeypatch.setattr(hparams_module.importlib.resources, "files", lambda _: package)
    assert shipped_names() == ["ROME/only"]
