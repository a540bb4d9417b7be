"""The training loop, with a linear map that learns another one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from easyedit_fast.errors import DataFileError, HparamsError, NonFiniteError
from easyedit_fast.tensor_files import TensorFile
from easyedit_fast.training.batches import BatchOrder, draws
from easyedit_fast.training.hparams import TrainingHparams
from easyedit_fast.training.logs import read_log
from easyedit_fast.training.loop import TrainingResult, train

EDITOR = TensorFile("linear map", written_by="a test")


class LinearMap:
    """Learns a linear map from examples of it."""

    validation_values = ("loss/total_edit_val", "edit/acc_val")

    def __init__(self, records: int = 12, bad: int | None = None, stops_learning: bool = False):
        generator = torch.Generator().manual_seed(0)
        self.records = records
        self.inputs = torch.randn(records, 5, generator=generator)
        self.wanted = self.inputs @ torch.randn(5, 3, generator=generator)
        self.weight = torch.zeros(5, 3, requires_grad=True)
        self.bad = bad
        self.stops_learning = stops_learning
        self.validations = 0
        self.die_in: int | None = None
        self.told: list[tuple[str, int, list[int]]] = []
        self.hparams: dict[str, Any] = {}

    def description(self) -> dict[str, Any]:
        return {"records": self.records, "hparams": self.hparams}

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.weight], "lr": 0.05}]

    def prepare(self, iteration: int, places: list[int]) -> tuple[int, list[int], Tensor]:
        self.told.append(("prepare", iteration, places))
        noise = torch.from_numpy(draws(3, "noise", iteration).normal(size=3)).float()
        return iteration, places, noise

    def read_ahead(self, iteration: int, places: list[int]) -> None:
        self.told.append(("read ahead", iteration, places))

    def step(self, batch: tuple[int, list[int], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        iteration, places, noise = batch
        if iteration == self.die_in:
            raise KeyboardInterrupt
        if self.bad in places:
            raise NonFiniteError("the loss is NaN", record=self.bad)
        error = self.inputs[places] @ self.weight - self.wanted[places] - 0.01 * noise
        loss = error.square().mean()
        return loss, {"loss/total_train": loss}

    def validate(self) -> dict[str, float]:
        self.validations += 1
        if self.stops_learning and self.validations > 2:
            return {"loss/total_edit_val": 1e6, "edit/acc_val": float("nan")}
        loss = (self.inputs @ self.weight - self.wanted).square().mean()
        return {"loss/total_edit_val": loss.item(), "edit/acc_val": float("nan")}

    def state_dict(self) -> dict[str, Tensor]:
        return {"weight": self.weight}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        with torch.no_grad():
            self.weight.copy_(tensors["weight"])

    def write_editor(self, path: Path, card: Mapping[str, Any]) -> None:
        EDITOR.write(path, self.state_dict(), dict(card))


KEYS: dict[str, Any] = {
    "batch_size": 4,
    "max_iters": 24,
    "val_interval": 6,
    "log_interval": 4,
    "model_save_pt": 2,
    "early_stop_patience": 1000,
}


def run(folder: Path, trainee: LinearMap | None = None, **keys: Any) -> TrainingResult:
    hparams = TrainingHparams(**{**KEYS, **keys})
    trainee = trainee or LinearMap()
    trainee.hparams = hparams.to_dict()
    return train(trainee, hparams, folder, about={"model": "none"})


def without_times(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {k: v for k, v in line.items() if k != "seconds" and not k.startswith("time/")}
        for line in lines
    ]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("ends_in", [1, 5, 6, 7, 18, 23])
def test_a_run_that_ended_goes_on_bit_for_bit(
    tmp_path: Path, ends_in: int, accumulate: int
) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    result = run(whole, accumulate_bs=accumulate)
    assert result.resumed == 0
    assert result.iterations == 24
    trainee = LinearMap()
    trainee.die_in = ends_in
    with pytest.raises(KeyboardInterrupt, match=f"^stopped at iteration {ends_in + 1}; ") as told:
        run(parted, trainee, accumulate_bs=accumulate)
    again = run(parted, accumulate_bs=accumulate)
    assert ends_in - 1 <= again.resumed + accumulate <= ends_in + 2
    goes_on = f"the last checkpoint is of iteration {again.resumed}; the same command goes on"
    anew = "there is no checkpoint yet: the same command begins anew"
    assert (goes_on if again.resumed else anew) in str(told.value)
    assert str(again.values) == str(result.values), "one of them is NaN"
    for name in ("editor.safetensors", "checkpoint.safetensors"):
        one, other = load_file(whole / name), load_file(parted / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name
    assert without_times(read_log(whole)) == without_times(read_log(parted))


@pytest.mark.parametrize(("accumulate", "kept"), [(1, 15), (2, 12)])
def test_a_short_run_has_checkpoints_too(tmp_path: Path, accumulate: int, kept: int) -> None:
    trainee = LinearMap()
    trainee.die_in = 15
    rare = {"val_interval": 1000, "model_save_pt": 1000}
    at = f"stopped at iteration 16; the last checkpoint is of iteration {kept};"
    with pytest.raises(KeyboardInterrupt, match=at):
        run(tmp_path, trainee, accumulate_bs=accumulate, **rare)


def test_a_finished_run_is_given_back(tmp_path: Path) -> None:
    first = run(tmp_path)
    trainee = LinearMap()
    second = run(tmp_path, trainee)
    assert trainee.validations == 0
    assert second.resumed == second.iterations == 24
    assert str(second.values) == str(first.values), "one of them is NaN"


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_finished_run_is_made_longer(tmp_path: Path, accumulate: int) -> None:
    """It is the run of that length, but for a validation at its first end."""
    short, whole = tmp_path / "short", tmp_path / "whole"
    assert run(short, max_iters=10, accumulate_bs=accumulate).iterations == 10
    longer = run(short, accumulate_bs=accumulate)
    assert (longer.resumed, longer.iterations) == (10, 24)
    result = run(whole, accumulate_bs=accumulate)
    assert str(longer.values) == str(result.values), "one of them is NaN"
    for name in ("editor.safetensors", "checkpoint.safetensors"):
        one, other = (load_file(folder / name) for folder in (short, whole))
        assert all(torch.equal(one[key], other[key]) for key in one), name
    lines = [line for line in read_log(short) if line["iteration"] != 10]
    assert without_times(lines) == without_times(read_log(whole))
    assert run(short, accumulate_bs=accumulate).resumed == 24


@pytest.mark.parametrize(
    ("keys", "wanted", "message"),
    [
        ({}, 6, "max_iters was 10 and is 6: a run can be made longer, not shorter; give another"),
        ({"lr_decay": "cosine"}, 24, "with lr_decay 'cosine' the learning rates of the iterations"),
        ({"accumulate_bs": 3, "model_save_pt": 3}, 24, "it ends between two optimiser steps"),
    ],
)
def test_a_run_that_cannot_have_another_length(
    tmp_path: Path, keys: dict[str, Any], wanted: int, message: str
) -> None:
    first = run(tmp_path, max_iters=10, **keys)
    with pytest.raises(DataFileError, match=message):
        run(tmp_path, max_iters=wanted, **keys)
    again = run(tmp_path, max_iters=10, **keys)
    assert again.resumed == 10, "it is left as it was"
    assert str(again.values) == str(first.values)


def test_a_run_whose_patience_ended_stays_as_it_is(tmp_path: Path) -> None:
    keys = {"early_stop_patience": 9}
    assert not run(tmp_path / "all", **keys).stopped_early
    first = run(tmp_path, LinearMap(stops_learning=True), max_iters=30, **keys)
    assert (first.iterations, first.stopped_early) == (24, True)
    longer = run(tmp_path, LinearMap(stops_learning=True), max_iters=60, **keys)
    assert (longer.resumed, longer.iterations, longer.stopped_early) == (24, 24, True)


def test_the_best_is_kept_and_training_ends(tmp_path: Path) -> None:
    trainee = LinearMap(stops_learning=True)
    result = run(tmp_path, trainee, early_stop_patience=9)
    assert result.best_iteration == 12
    assert result.iterations == 24, "looked at after validations, the first of them after 9 more"
    again = run(tmp_path, LinearMap(stops_learning=True), early_stop_patience=9)
    assert again.resumed == again.iterations == 24
    _, card = EDITOR.read(result.editor)
    assert card["iterations"] == 12
    assert card["model"] == "none"
    assert card["validation"]["loss/total_edit_val"] == result.values["loss/total_edit_val"] < 1e6


def test_the_log(tmp_path: Path) -> None:
    run(tmp_path)
    lines = read_log(tmp_path)
    trained = [line["iteration"] for line in lines if "loss/total_train" in line]
    assert trained == [4, 8, 12, 16, 20, 24]
    validated = [line for line in lines if "loss/total_edit_val" in line]
    assert [line["iteration"] for line in validated] == [6, 12, 18, 24]
    assert all("edit/acc_val" not in line for line in validated), "NaN is no JSON"
    assert [line["epoch"] for line in validated] == [2, 4, 6, 8]
    assert lines[0]["loss/total_train"] > lines[-2]["loss/total_train"]


def test_tensorboard_reads_the_same(tmp_path: Path) -> None:
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trainee = LinearMap()
    trainee.die_in = 15
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, trainee)
    run(tmp_path)
    board = accumulators.EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    for name in ("loss/total_train", "loss/total_edit_val"):
        told = [(event.step, event.value) for event in board.Scalars(name)]
        logged = [(li["iteration"], li[name]) for li in read_log(tmp_path) if name in li]
        assert [step for step, _ in told] == [step for step, _ in logged]
        for (_, one), (_, other) in zip(told, logged, strict=True):
            assert one == pytest.approx(other, rel=1e-6)


def test_nan_names_the_record_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    order = BatchOrder(12, 4, 0)
    late = next(p for p in range(12) if all(p not in order.places(i) for i in range(2)))
    with pytest.raises(
        NonFiniteError, match=rf"record {late}: .*iteration 3: .*checkpoint.*--overwrite"
    ):
        run(tmp_path, LinearMap(bad=late))
    run(tmp_path / "short", max_iters=2, val_interval=2)
    kept, short = (
        load_file(folder / "checkpoint.safetensors") for folder in (tmp_path, tmp_path / "short")
    )
    assert torch.equal(kept["trained.weight"], short["trained.weight"])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_an_infinite_gradient_stops(tmp_path: Path, accumulate: int) -> None:
    """All records that it may be of are named."""
    trainee, order = LinearMap(), BatchOrder(12, 4, 0)
    late = next(p for p in range(12) if all(p not in order.places(i) for i in range(2)))
    trainee.inputs[late] = 1e30
    batches = [2] if accumulate == 1 else [2, 3]
    names = sorted({place for i in batches for place in order.places(i)})
    with pytest.raises(NonFiniteError, match=rf"iteration {batches[-1] + 1}:.*finite: ") as caught:
        run(tmp_path, trainee, accumulate_bs=accumulate)
    assert ", ".join(map(str, names)) in str(caught.value)


def test_a_checkpoint_before_the_first_line_of_the_log_counts(tmp_path: Path) -> None:
    keys = {"log_interval": 100, "val_interval": 24}
    trainee = LinearMap()
    trainee.die_in = 20
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, trainee, **keys)
    assert run(tmp_path, **keys).resumed == 20


def test_a_checkpoint_of_another_run_is_passed_over(tmp_path: Path) -> None:
    run(tmp_path / "other", max_iters=6)
    trainee = LinearMap()
    trainee.die_in = 1
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "own", trainee)
    name = "checkpoint.safetensors"
    (tmp_path / "own" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    assert run(tmp_path / "own").resumed == 0


@pytest.mark.parametrize("name", ["editor.safetensors", "checkpoint.safetensors"])
def test_files_that_are_there_are_kept(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(DataFileError, match=f"{name} is there and belongs to no run"):
        run(tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_what_an_error_advises_can_be_done(tmp_path: Path) -> None:
    """In the same folder, where nothing was done in it yet."""
    with pytest.raises(HparamsError, match="batch_size=12"):
        run(tmp_path, batch_size=13)
    trainee = LinearMap()
    trainee.die_in = 0
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, trainee)
    assert run(tmp_path, LinearMap(13)).resumed == 0


def test_another_run_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    for trainee, keys, message in (
        (LinearMap(13), {}, "its records differ (the data file changed, or another is given); "),
        (LinearMap(), {"lr": 0.5}, "its hyperparameter lr was 1e-05 and is 0.5; give another "),
        (LinearMap(), {"lr": 0.5, "seed": 3}, "its hyperparameter lr was 1e-05 and is 0.5 (and 1 "),
    ):
        with pytest.raises(DataFileError, match=re.escape(message)):
            run(tmp_path, trainee, **keys)
    hparams = TrainingHparams(**KEYS)
    result = train(LinearMap(13), hparams, tmp_path, about={}, overwrite=True)
    assert result.resumed == 0


def test_a_damaged_checkpoint_is_told_of(tmp_path: Path) -> None:
    run(tmp_path, max_iters=6)
    path = tmp_path / "checkpoint.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataFileError, match="damaged"):
        run(tmp_path, max_iters=6)


def test_too_few_records() -> None:
    with pytest.raises(HparamsError, match="3 records for batches of 4"):
        BatchOrder(3, 4, 0)


def test_a_key_without_a_value(tmp_path: Path) -> None:
    with pytest.raises(HparamsError, match="first validation gave nan for 'edit/acc_val'"):
        run(tmp_path, early_stop_key="edit/acc_val")


def test_a_key_that_is_no_value(tmp_path: Path) -> None:
    with pytest.raises(HparamsError, match="early_stop_key 'acc' is not among"):
        run(tmp_path, early_stop_key="acc")


def test_intervals_are_of_whole_steps() -> None:
    with pytest.raises(HparamsError, match="val_interval must be a multiple of accumulate_bs"):
        TrainingHparams(val_interval=15, accumulate_bs=10, model_save_pt=20)


def test_an_epoch_has_every_record_once() -> None:
    order = BatchOrder(12, 4, seed=1)
    epochs = [
        [place for number in range(3) for place in order.places(3 * epoch + number)]
        for epoch in range(2)
    ]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert epochs[0] != [p for n in range(3) for p in BatchOrder(12, 4, seed=2).places(n)]


def test_the_next_batch_is_read_ahead(tmp_path: Path) -> None:
    learner = LinearMap()
    run(tmp_path, learner)
    prepared = [told for told in learner.told if told[0] == "prepare"]
    ahead = [told for told in learner.told if told[0] == "read ahead"]
    assert [told[1] for told in prepared] == list(range(24))
    assert [told[1:] for told in ahead[:-1]] == [told[1:] for told in prepared[1:]]


def test_the_learning_rate() -> None:
    constant = TrainingHparams()
    assert {constant.learning_rate(i, 100) for i in (0, 50, 100)} == {1.0}
    falling = TrainingHparams(lr_decay="cosine")
    rates = [falling.learning_rate(i, 99) for i in range(100)]
    assert rates[:34] == [1.0] * 34
    assert rates[34:] == sorted(rates[34:], reverse=True)
    assert rates[-1] == pytest.approx(0.05)


def test_the_header_tells_of_the_run(tmp_path: Path) -> None:
    run(tmp_path)
    header = json.loads((tmp_path / "log.jsonl.run.json").read_text())
    hparams = TrainingHparams(**KEYS).to_dict()
    assert header["description"] == {"records": 12, "hparams": hparams}
    assert header["about"] == {"model": "none"}
