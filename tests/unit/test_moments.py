"""Second-moment files: what is read, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from easyedit_fast.errors import DataFileError, HparamsError, MissingFileError
from easyedit_fast.moments import find_statistics, read_second_moment
from easyedit_fast.rome import resolve_rome_hparams
from easyedit_fast.rome.statistics import LayerStatistics
from tests.unit.tiny_models import tiny_model

SIZE = 48  # the key size of the tiny Llama
MODULE = "model.layers.1.mlp.down_proj"


def write(path: Path, **changes: Any) -> Path:
    """A file in EasyEdit's form; a change to None leaves the key out."""
    keys = np.random.default_rng(0).normal(size=(300, SIZE))
    values: dict[str, Any] = {
        "mom2.mom2": (keys.T @ keys).astype(np.float32),
        "mom2.count": np.int64(300),
        "mom2.constructor": "util.runningstats.SecondMoment()",
        "sample_size": np.float64("nan"),
        **{name.replace("_", "."): value for name, value in changes.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{name: value for name, value in values.items() if value is not None})
    return path


def test_the_moment_is_the_mean(tmp_path: Path) -> None:
    path = write(tmp_path / "moment.npz")
    moment = read_second_moment(path)
    with np.load(path) as file:
        expected = torch.from_numpy(file["mom2.mom2"].astype(np.float64) / 300)
    torch.testing.assert_close(moment.matrix, expected, rtol=1e-6, atol=1e-6)
    assert moment.count == 300
    vectors = torch.randn(SIZE, 3, dtype=torch.float64)
    solved = moment.factorise().solve(vectors)
    torch.testing.assert_close(moment.matrix @ solved, vectors, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mom2_mom2": None}, "holds no 'mom2.mom2'"),
        ({"mom2_count": None}, "holds no 'mom2.count'"),
        ({"mom2_mom2": np.ones((2, 3), np.float32)}, "not a square matrix"),
        ({"mom2_mom2": np.ones((2, 2), np.int64)}, "not a square matrix of floating point"),
        ({"mom2_mom2": np.full((2, 2), np.nan)}, "holds NaN or infinity"),
        ({"mom2_count": np.int64(0)}, "not a positive count"),
        ({"mom2_count": np.array("300")}, "not a positive count; collect it again"),
        ({"mom2_count": np.complex64(300)}, "not a positive count"),
        ({"mom2_mom2": np.array([object()])}, "is damaged"),
    ],
)
def test_a_damaged_moment_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "moment.npz", **changes)
    with pytest.raises(DataFileError, match=message) as caught:
        read_second_moment(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("raw", [b"", b"no zip", b"PK\x03\x04" + b"\0" * 40])
def test_bytes_that_are_no_file_of_numpy_are_refused(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "moment.npz"
    path.write_bytes(raw)
    with pytest.raises(DataFileError, match="is damaged") as caught:
        read_second_moment(path)
    assert "pickle" not in str(caught.value)  # numpy's advice, which runs what the file holds


def test_a_truncated_file_and_a_missing_one(tmp_path: Path) -> None:
    path = write(tmp_path / "moment.npz")
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataFileError, match="is damaged"):
        read_second_moment(path)
    with pytest.raises(MissingFileError, match="no second-moment file"):
        read_second_moment(tmp_path / "none.npz")


def test_an_array_under_the_name_of_an_archive(tmp_path: Path) -> None:
    np.save(tmp_path / "moment.npy", np.eye(SIZE))
    path = (tmp_path / "moment.npy").rename(tmp_path / "moment.npz")
    with pytest.raises(DataFileError, match=r"holds a single array \(.npy\), .* give the file"):
        read_second_moment(path)


def test_a_damaged_byte_anywhere_is_one_line(tmp_path: Path) -> None:
    """Compressed, so that damage breaks the deflate stream; each place in the file in turn."""
    path = write(tmp_path / "moment.npz")
    with np.load(path) as file:
        np.savez_compressed(path, **dict(file))
    whole = path.read_bytes()
    refused = []
    for start in [*range(200), *range(200, len(whole), 97)]:
        path.write_bytes(
            whole[:start] + bytes(b ^ 0xFF for b in whole[start : start + 4]) + whole[start + 4 :]
        )
        try:
            read_second_moment(path)
        except DataFileError as error:
            refused.append(str(error))
    assert any("decompressing" in message for message in refused)
    assert len(refused) > 100
    for message in refused:
        assert "\n" not in message
        assert "again" in message or "give" in message


def test_the_largest_cap_is_taken_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "tiny" / "wikipedia_stats"
    for cap in (64, 1000, 512):
        write(folder / f"{MODULE}_float32_mom2_t{cap}_100.npz")
    found = find_statistics(tmp_path, "tiny", MODULE, "wikipedia", "float32", 100)
    assert found == folder / f"{MODULE}_float32_mom2_t1000_100.npz"
    (record,) = caplog.records
    assert record.name.startswith("easyedit_fast")
    assert str(found) in record.getMessage()
    assert "second_moment=FILE" in record.getMessage()


def test_easyedits_cache_is_found(tmp_path: Path) -> None:
    def look(name: str) -> Path | None:
        return find_statistics(tmp_path, name, MODULE, "wikipedia", "float32", 100)

    assert look("org/tiny") is None
    capped = write(tmp_path / "tiny" / "wikipedia_stats" / f"{MODULE}_float32_mom2_t64_100.npz")
    assert look("org/tiny") == capped
    exact = write(tmp_path / "tiny" / "wikipedia_stats" / f"{MODULE}_float32_mom2_100.npz")
    assert look("org/tiny") == exact
    whole = tmp_path / "org_other" / "wikipedia_stats" / f"{MODULE}_float32_mom2_100.npz"
    assert look("org/other") is None
    write(whole)
    assert look("org/other") == whole


@pytest.mark.parametrize(
    ("keys", "at_hand", "used"),
    [
        ({}, False, False),
        ({}, True, True),
        ({"mom2_adjustment": False}, True, False),
        ({"mom2_adjustment": True}, True, True),
        ({"second_moment": "FILE"}, False, True),
        ({"second_moment": "FILE", "mom2_adjustment": False}, False, False),
    ],
)
def test_when_statistics_are_used(
    tmp_path: Path, keys: dict[str, Any], at_hand: bool, used: bool
) -> None:
    file = write(tmp_path / "moment.npz")
    if at_hand:
        write(tmp_path / "tiny" / "wikipedia_stats" / f"{MODULE}_float32_mom2_100000.npz")
    given = {name: str(file) if value == "FILE" else value for name, value in keys.items()}
    hparams = resolve_rome_hparams(
        {"layers": [1], "stats_dir": str(tmp_path), **given}, tiny_model()
    )
    found = LayerStatistics.resolve(hparams, "org/tiny", "", [(1, MODULE, SIZE)])
    assert (found.factor(1, torch.device("cpu")) is not None) is used


def test_statistics_that_are_asked_for_must_be_there_and_fit(tmp_path: Path) -> None:
    model = tiny_model()
    asked = resolve_rome_hparams(
        {"layers": [1], "mom2_adjustment": True, "stats_dir": str(tmp_path)}, model
    )
    with pytest.raises(HparamsError, match=r"layer 1 has no statistics .* second_moment=FILE"):
        LayerStatistics.resolve(asked, "tiny", "", [(1, MODULE, SIZE)])
    file = write(tmp_path / "{}.npz".format("1"))
    fits = resolve_rome_hparams({"layers": [1], "second_moment": str(tmp_path / "{}.npz")}, model)
    assert LayerStatistics.resolve(fits, "tiny", "", [(1, MODULE, SIZE)]).moments[1].source == str(
        file
    )
    with pytest.raises(DataFileError, match="belongs to another model or layer"):
        LayerStatistics.resolve(fits, "tiny", "", [(1, MODULE, SIZE + 1)])
