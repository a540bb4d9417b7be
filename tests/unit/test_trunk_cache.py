"""The kept trunk: what the model computes, found again, and made again where it is not so."""

from __future__ import annotations

import logging
import mmap
from pathlib import Path
from typing import Any

import pytest
import torch

from easyedit_fast.errors import NonFiniteError
from easyedit_fast.models.architectures import architecture_of
from easyedit_fast.models.passes import block_outputs
from easyedit_fast.models.tail import Tail
from easyedit_fast.training import trunk_cache
from easyedit_fast.training.trunk_cache import (
    TrunkCache,
    open_final_cache,
    open_trunk_cache,
    padded_states,
)
from tests.unit.tiny_models import FAMILIES, tiny_model

ROWS = [[5, 9, 17], [11], [4, 25, 7, 2, 30, 31, 8], [3, 3]]
LAYER = 2


def opened(model: Any, folder: Path, rows: Any = ROWS, layer: int = LAYER) -> TrunkCache:
    return open_trunk_cache(model, architecture_of(model), layer, rows, folder=folder)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each batch that is run."""
    seen: list[int] = []
    real = trunk_cache._entering

    def watched(*arguments: Any) -> Any:
        seen.append(len(arguments[-1]))
        return real(*arguments)

    monkeypatch.setattr(trunk_cache, "_entering", watched)
    return seen


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("layer", [0, LAYER])
def test_the_states_are_the_models(family: str, layer: int, tmp_path: Path) -> None:
    model = tiny_model(family)
    cache = opened(model, tmp_path, layer=layer)
    assert len(cache) == len(ROWS)
    assert cache.lengths.tolist() == [3, 1, 7, 2]
    seen: list[torch.Tensor] = []
    part = model.get_submodule(architecture_of(model).block_name(layer))
    handle = part.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args or [kwargs["hidden_states"]])[0].clone()),
        with_kwargs=True,
    )
    for place, row in enumerate(ROWS):
        with torch.no_grad():
            model(input_ids=torch.tensor([row]))
        torch.testing.assert_close(cache[place].float(), seen[-1][0], rtol=1e-2, atol=1e-2)
        assert cache[place].dtype == torch.bfloat16
    handle.remove()


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_what_leaves_the_last_block(family: str, tmp_path: Path) -> None:
    """It gives the model's logits, up to the trunk's rounding, in the model's dtype."""
    model = tiny_model(family)
    architecture = architecture_of(model)
    trunk = opened(model, tmp_path)
    final = open_final_cache(model, architecture, LAYER, trunk, folder=tmp_path)
    entering, mask = padded_states([trunk[place] for place in range(len(ROWS))], model)
    outputs = block_outputs(model, architecture, LAYER)
    tail = Tail.of_entering(model, architecture, LAYER, entering, mask, outputs)
    for place, row in enumerate(ROWS):
        assert final[place].dtype == model.dtype
        with torch.no_grad():
            whole = model(input_ids=torch.tensor([row])).logits[0]
            column = torch.arange(len(row))
            again = tail.hidden_states(None, torch.full_like(column, place), column)
            torch.testing.assert_close(final[place], again, rtol=1e-5, atol=1e-6)
            assert (tail.head(final[place]) - whole).norm() <= 2e-2 * whole.norm()


def test_a_cache_is_found_again(tmp_path: Path, made: list[int]) -> None:
    first = opened(tiny_model(), tmp_path)
    assert made
    made.clear()
    second = opened(tiny_model(), tmp_path)
    assert not made
    for place in range(len(ROWS)):
        assert torch.equal(first[place], second[place])


@pytest.mark.parametrize("change", ["weight", "norm", "rows", "layer", "dtype", "config"])
def test_another_trunk_has_another_cache(tmp_path: Path, made: list[int], change: str) -> None:
    opened(tiny_model(), tmp_path)
    made.clear()
    model = tiny_model()
    rows, layer = ROWS, LAYER
    with torch.no_grad():
        if change == "weight":
            model.get_parameter("model.layers.1.mlp.up_proj.weight")[3, 2] += 1e-3
        if change == "norm":
            model.get_parameter("model.layers.0.input_layernorm.weight")[1] += 1e-3
    if change == "config":
        model.config.rope_parameters = {**model.config.rope_parameters, "rope_theta": 7.0}
    if change == "dtype":
        model = model.bfloat16()
    if change == "rows":
        rows = [*ROWS[:-1], [3, 4]]
    if change == "layer":
        layer = 1
    opened(model, tmp_path, rows, layer)
    assert made


def test_what_lies_above_does_not_count(tmp_path: Path, made: list[int]) -> None:
    opened(tiny_model(), tmp_path)
    made.clear()
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter("model.layers.2.mlp.up_proj.weight").mul_(2)
    opened(model, tmp_path)
    assert not made


@pytest.mark.parametrize("damage", ["states", "short", "header", "no header", "foreign"])
def test_a_damaged_cache_is_made_again(
    tmp_path: Path, made: list[int], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = opened(tiny_model(), tmp_path)
    expected = [whole[place].clone() for place in range(len(ROWS))]
    made.clear()
    (place,) = tmp_path.iterdir()
    states, header = place / "states.bin", place / "header.json"
    if damage == "states":
        content = bytearray(states.read_bytes())
        content[7] ^= 1
        states.write_bytes(content)
    if damage == "short":
        states.write_bytes(states.read_bytes()[:-4])
    if damage == "header":
        header.write_text("{")
    if damage == "no header":
        header.unlink()
    if damage == "foreign":
        header.write_text(header.read_text().replace('"layer": 2', '"layer": 3'))
    with caplog.at_level(logging.WARNING, "easyedit_fast"):
        again = opened(tiny_model(), tmp_path)
    assert made
    assert ("making it again" in caplog.text) == (damage != "no header")
    for number, states_ in enumerate(expected):
        assert torch.equal(again[number], states_)


def test_a_row_that_is_not_finite_is_named_and_nothing_kept(tmp_path: Path) -> None:
    model = tiny_model()
    with torch.no_grad():
        model.get_parameter("model.embed_tokens.weight")[25] = float("nan")
    with pytest.raises(NonFiniteError, match=r"^record 2: its hidden states hold NaN"):
        opened(model, tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_rows_are_read_ahead_where_they_lie(tmp_path: Path) -> None:
    model = tiny_model()
    cache = opened(model, tmp_path, rows=[[5, 9, 17, 4, 3, 8, 11]] * 200)
    told: list[tuple[int, int]] = []

    class Mapped:
        def madvise(self, _: int, first: int, length: int) -> None:
            told.append((first, first + length))
            raise OSError  # a system may refuse

    real, size = cache._mapped, cache[0].nbytes
    real.madvise(mmap.MADV_WILLNEED, 0, len(real))
    cache._mapped = Mapped()  # type: ignore[assignment]
    rows = [0, 57, 199]
    cache.read_ahead(rows)
    for row, (first, last) in zip(rows, told, strict=True):
        assert first % mmap.PAGESIZE == 0
        assert row * size - mmap.PAGESIZE < first <= row * size
        assert last == (row + 1) * size <= len(real)
