"""Collecting second moments: the sums of plain forward passes, resumed and found again."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from easyedit_fast import Editor
from easyedit_fast.data import TextFiles
from easyedit_fast.errors import DataFileError, HparamsError, ModelError, NonFiniteError
from easyedit_fast.models.architectures import architecture_of
from easyedit_fast.models.fingerprint import model_fingerprint
from easyedit_fast.moments import (
    collect_statistics,
    find_collected,
    find_statistics,
    read_origin,
    read_second_moment,
)
from easyedit_fast.moments.statistics_files import write_second_moment
from easyedit_fast.rome import Rome
from tests.unit.tiny_models import FAMILIES, tiny_model

LINE = "The river runs past the old town, and nobody knows how deep it is.\n"
LENGTH, BATCH = 24, 3


class RandomCorpus:
    """Blocks of random ids within the tiny models' vocabulary, in the place of a text."""

    name = "random"

    def __init__(self, tokens: int) -> None:
        self.ids = np.random.default_rng(0).integers(3, 128, size=tokens)

    def identity(self) -> dict[str, Any]:
        return {"tokens": len(self.ids)}

    def blocks(self, _: Any, *, block_length: int, rows: int) -> Any:
        full = len(self.ids) // block_length * block_length
        whole = self.ids[:full].reshape(-1, block_length)
        for first in range(0, len(whole), rows):
            yield whole[first : first + rows]
        if full < len(self.ids):
            yield self.ids[full:][None]


@pytest.fixture
def text(tmp_path: Path) -> TextFiles:
    path = tmp_path / "river.txt"
    path.write_text("".join(f"{number}. {LINE}" for number in range(400)))
    return TextFiles.of(path)


def expected(model: Any, layer: int, ids: np.ndarray) -> torch.Tensor:
    """Σ k kᵀ in float64, from whole plain forward passes, block by block."""
    places = architecture_of(model)
    keys: list[torch.Tensor] = []
    module = model.get_submodule(places.projection_name(layer))
    handle = module.register_forward_pre_hook(
        lambda _, args: keys.append(args[0].reshape(-1, args[0].shape[-1]))
    )
    with torch.no_grad():
        for first in range(0, len(ids), LENGTH):
            model(torch.from_numpy(ids[first : first + LENGTH])[None])
    handle.remove()
    stacked = torch.cat(keys).double()
    return stacked.T @ stacked


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_sums_of_plain_passes(
    family: str, demo_model: Any, tmp_path: Path
) -> None:
    model = tiny_model(family)
    corpus = RandomCorpus(LENGTH * 7 + 5)
    files = collect_statistics(
        model, demo_model[1], corpus, [2, 0], tokens=10_000, block_length=LENGTH,
        batch_size=BATCH, folder=tmp_path,
    )  # fmt: skip
    assert list(files) == [0, 2]
    for layer, path in files.items():
        moment = read_second_moment(path)
        assert moment.count == len(corpus.ids)
        wanted = expected(model, layer, corpus.ids) / moment.count
        assert (moment.matrix - wanted).norm() <= 1e-5 * wanted.norm()
        assert torch.equal(moment.matrix, moment.matrix.T)


def test_the_budget_is_met_by_whole_blocks(demo_model: Any, tmp_path: Path) -> None:
    model, seen = tiny_model(), []
    files = collect_statistics(
        model, demo_model[1], RandomCorpus(4000), [1], tokens=100, block_length=LENGTH,
        folder=tmp_path, progress=lambda *counts: seen.append(counts),
    )  # fmt: skip
    assert read_second_moment(files[1]).count == 5 * LENGTH
    assert seen == [(0, 100), (100, 100)]
    default = collect_statistics(
        model, demo_model[1], RandomCorpus(4000), [1], folder=tmp_path / "default"
    )
    # 10 tokens for each of 48 dimensions, in blocks of the 64 tokens that the model reads.
    assert read_second_moment(default[1]).count == 512


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_single(
    dtype: torch.dtype, demo_model: Any, tmp_path: Path
) -> None:
    model, corpus = tiny_model().to(dtype), RandomCorpus(2000)
    files = collect_statistics(
        model, demo_model[1], corpus, [1], tokens=2000, block_length=LENGTH, folder=tmp_path
    )
    wanted = expected(model, 1, corpus.ids) / 2000
    error = (read_second_moment(files[1]).matrix - wanted).norm() / wanted.norm()
    assert error <= 2e-3  # other batches round the model's own products otherwise


def test_a_run_that_was_ended_goes_on_and_gives_the_same_bits(
    demo_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("easyedit_fast.moments.collect._CHUNK_TOKENS", 4 * LENGTH)
    model, corpus = tiny_model(), RandomCorpus(40 * LENGTH)

    def collect(folder: str, progress: Any = None) -> Path:
        files = collect_statistics(
            model, demo_model[1], corpus, [1, 3], tokens=40 * LENGTH, block_length=LENGTH,
            folder=tmp_path / folder, progress=progress, checkpoint_seconds=0,
        )  # fmt: skip
        return files[3]

    whole = collect("whole")

    def end_after(tokens: int) -> Any:
        def progress(done: int, _: int) -> None:
            if done >= tokens:
                raise KeyboardInterrupt

        return progress

    for tokens in (4 * LENGTH, 9 * LENGTH, 30 * LENGTH):
        with pytest.raises(KeyboardInterrupt):
            collect("ended", end_after(tokens))
    (checkpoint,) = (tmp_path / "ended").rglob("*.checkpoint")
    passes: list[int] = []
    resumed = collect("ended", lambda done, _: passes.append(done))
    assert passes[0] == 28 * LENGTH
    assert passes[-1] == 40 * LENGTH
    assert not checkpoint.exists()
    assert torch.equal(read_second_moment(whole).matrix, read_second_moment(resumed).matrix)


def test_a_run_that_ends_among_its_files_goes_on_from_its_checkpoint(
    demo_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("easyedit_fast.moments.collect._CHUNK_TOKENS", 4 * LENGTH)
    passes: list[int] = []

    def collect(folder: str) -> list[Path]:
        passes.clear()
        files = collect_statistics(
            tiny_model(), demo_model[1], RandomCorpus(20 * LENGTH), [1, 3], tokens=20 * LENGTH,
            block_length=LENGTH, folder=tmp_path / folder, checkpoint_seconds=0,
            progress=lambda done, _: passes.append(done),
        )  # fmt: skip
        return list(files.values())

    def end(path: Path, *rest: Any) -> None:
        if "layers.3" in path.name:
            raise KeyboardInterrupt
        write_second_moment(path, *rest)

    whole = collect("whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("easyedit_fast.moments.statistics.write_second_moment", end)
        collect("ended")
    resumed = collect("ended")
    assert passes == [], "the checkpoint held every chunk"
    for wanted, got in zip(whole, resumed, strict=True):
        assert torch.equal(read_second_moment(wanted).matrix, read_second_moment(got).matrix)
    assert not list(tmp_path.rglob("*.checkpoint"))


def test_a_checkpoint_that_cannot_be_written_is_one_error(
    demo_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(DataFileError, match=r"checkpoint cannot be written .*; make room"):
        collect_statistics(
            tiny_model(), demo_model[1], RandomCorpus(40), [1], tokens=40, folder=tmp_path,
            checkpoint_seconds=0,
        )  # fmt: skip
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_damaged_checkpoint_is_refused(
    demo_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("easyedit_fast.moments.collect._CHUNK_TOKENS", LENGTH)

    def collect(progress: Any = None) -> None:
        collect_statistics(
            tiny_model(), demo_model[1], RandomCorpus(400), [1], tokens=400, block_length=LENGTH,
            folder=tmp_path, progress=progress, checkpoint_seconds=0,
        )  # fmt: skip

    def end(done: int, _: int) -> None:
        if done > LENGTH:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(end)
    (checkpoint,) = tmp_path.rglob("*.checkpoint")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-9])
    with pytest.raises(DataFileError, match=r"checkpoint is damaged .*; remove it"):
        collect()


def test_statistics_are_collected_once_and_files_from_elsewhere_are_refused(
    demo_model: Any, tmp_path: Path
) -> None:
    def collect(model: Any, corpus: Any, **options: Any) -> dict[int, Path]:
        return collect_statistics(
            model, demo_model[1], corpus, [1], tokens=200, block_length=LENGTH, folder=tmp_path,
            **options,
        )  # fmt: skip

    model = tiny_model()
    (path,) = collect(model, RandomCorpus(400)).values()
    before = path.stat().st_mtime_ns
    assert collect(model, RandomCorpus(400)) == {1: path}
    assert path.stat().st_mtime_ns == before
    with pytest.raises(DataFileError, match=r"from another corpus, model or budget; overwrite"):
        collect(model, RandomCorpus(500))
    with pytest.raises(DataFileError, match="overwrite"):
        collect(tiny_model(seed=1), RandomCorpus(400))
    collect(model, RandomCorpus(500), overwrite=True)
    origin = read_origin(path)
    assert origin is not None
    assert origin.corpus == {"name": "random", "tokens": 500}


def test_easyedit_finds_and_reads_the_file(demo_model: Any, tmp_path: Path) -> None:
    model = tiny_model()
    model.name_or_path = "org/tiny"
    (path,) = collect_statistics(
        model, demo_model[1], RandomCorpus(400), [1], tokens=400, block_length=LENGTH,
        folder=tmp_path, name="wikipedia",
    ).values()  # fmt: skip
    module = "model.layers.1.mlp.down_proj"
    assert find_statistics(tmp_path, "org/tiny", module, "wikipedia", "float32", 100_000) == path
    # What its load_cached_state and SecondMoment.load_state_dict ask for.
    with np.load(path) as file:
        assert file["sample_size"] == 100_000
        assert int(file["mom2.count"]) == 400
        assert torch.from_numpy(file["mom2.mom2"]).shape == (48, 48)


def test_a_key_that_is_not_finite_is_refused(demo_model: Any, tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[0, 0] = torch.inf
    with pytest.raises(NonFiniteError, match=r"layer 2 hold NaN or infinity near token 0"):
        collect_statistics(
            model, demo_model[1], RandomCorpus(100), [1, 2], block_length=LENGTH, folder=tmp_path
        )
    assert not list(tmp_path.rglob("*.npz"))


def test_a_token_without_embedding_is_refused(demo_model: Any, tmp_path: Path) -> None:
    model, tokenizer = demo_model[0], copy.deepcopy(demo_model[1])
    tokenizer.add_tokens(["<image>"])
    path = tmp_path / "page.txt"
    path.write_text("A page with an <image> in it.")
    with pytest.raises(DataFileError, match=r"'page' holds '<image>' \(token 49152\), .* leave"):
        collect_statistics(model, tokenizer, TextFiles.of(path), [1], folder=tmp_path)


def test_layers_and_corpora_must_be_there(demo_model: Any, tmp_path: Path) -> None:
    model, tokenizer = tiny_model(), demo_model[1]
    with pytest.raises(ModelError, match="9"):
        collect_statistics(model, tokenizer, RandomCorpus(100), [9], folder=tmp_path)
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    with pytest.raises(DataFileError, match="holds no token"):
        collect_statistics(model, tokenizer, TextFiles.of(empty), [1], folder=tmp_path)


def test_the_editor_finds_what_was_collected_for_its_model(
    demo_model: Any, text: TextFiles, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, tokenizer = demo_model
    assert Editor(model, tokenizer).method.settings()["mom2_adjustment"] is False
    files = collect_statistics(model, tokenizer, text, [5], tokens=2048)
    try:
        settings = Editor(model, tokenizer).method.settings()
        assert settings["mom2_adjustment"] is True
        assert settings["second_moment"] == {5: str(files[5])}
        fingerprint = model_fingerprint(model, architecture_of(model))
        assert find_collected(fingerprint, "model.layers.5.mlp.down_proj") == files[5]
        assert find_collected(fingerprint, "model.layers.6.mlp.down_proj") is None
        with pytest.raises(HparamsError, match="easyedit-fast stats"):
            Editor(model, tokenizer, hparams={"layers": [6], "mom2_adjustment": True})
        with pytest.raises(DataFileError, match=r"for model.layers.5.* not for model.layers.6"):
            Editor(model, tokenizer, hparams={"layers": [6], "second_moment": files[5]})
    finally:
        files[5].unlink()
    other = collect_statistics(
        tiny_model(), tokenizer, RandomCorpus(600), [1], tokens=600, folder=tmp_path
    )
    with pytest.raises(DataFileError, match="collected on another model"):
        Rome(tiny_model(seed=1), tokenizer, hparams={"layers": [1], "second_moment": other[1]})
