"""The one training loop: what it is that learns, a method says.

A run lives in a folder of its own: ``editor.safetensors`` (the best so far),
``checkpoint.safetensors`` (where it stands), ``log.jsonl`` and TensorBoard's files. The same call
goes on where a run was ended, at its last checkpoint, and ends with the same editor, bit for bit on
a CPU: all that is drawn depends on the seed and the iteration alone.

In several processes (``accelerate launch``) each takes its share of every batch; the first writes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from easyedit_fast.errors import HparamsError, NonFiniteError
from easyedit_fast.processes import (
    first_tells,
    rank_and_ranks,
    sum_over_ranks,
    together,
    wait_for_all,
)
from easyedit_fast.training.batches import BatchOrder
from easyedit_fast.training.checkpoint import (
    CHECKPOINT,
    EDITOR,
    Checkpoint,
    load_optimizer_tensors,
    optimizer_tensors,
)
from easyedit_fast.training.early_stopping import EarlyStopping
from easyedit_fast.training.folder import open_run
from easyedit_fast.training.hparams import TrainingHparams
from easyedit_fast.training.logs import TrainingLog

VALIDATION = "the validation records"
"""What `RecordError.among` says of a record that is not learned from."""

TrainingProgress = Callable[[int, int, Mapping[str, float]], None]
"""Called with the iterations done and of all, and the latest values."""


class Trainee(Protocol):
    """What learns.

    Attributes:
        records: How many records there are to learn from.
        validation_values: Names of what `validate` gives.
    """

    records: int
    validation_values: tuple[str, ...]

    def description(self) -> dict[str, Any]:
        """All that a run depends on, as plain JSON values.

        ``hparams`` and ``model`` are known by their names to what tells two runs apart
        (`training.differences`), and ``data``: of the records and of those of the validations the
        keys of their trunks, ``targets`` and ``locality``, and a digest of the ``labels``.
        """
        ...

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What is trained, with the learning rate of each group, as `torch.optim` takes it."""
        ...

    def prepare(self, iteration: int, places: list[int]) -> Any:
        """A batch; all that is drawn for it depends on the iteration alone."""
        ...

    def read_ahead(self, iteration: int, places: list[int]) -> None:
        """Told of the batch after the one that is about to run, so that it can be at hand then."""
        ...

    def step(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """This process's share of the batch's loss, and of values by name; shares add up.

        Raises:
            NonFiniteError: Something is NaN or infinite; the record is named.
        """
        ...

    def validate(self) -> dict[str, float]:
        """Values by name, the same in every process."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """All that is trained, and what goes with it."""
        ...

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Puts such a state back."""
        ...

    def write_editor(self, path: Path, card: Mapping[str, Any]) -> None:
        """Writes what is trained as users load it."""
        ...

    def close(self) -> None:
        """Leaves the model as it was; called when all is done."""
        ...


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """What a run gave.

    Attributes:
        folder: The run's folder.
        iterations: Iterations that were run, those before a pause among them.
        best_iteration: The one that the kept editor is of.
        values: The values of its validation.
        seconds: Time of training and validation, those before a pause among them.
        resumed: The iteration that this call began after.
        stopped_early: Whether the patience was at its end before `max_iters`.
    """

    folder: Path
    iterations: int
    best_iteration: int
    values: dict[str, float]
    seconds: float
    resumed: int
    stopped_early: bool

    @property
    def editor(self) -> Path:
        """The file of the best editor."""
        return self.folder / EDITOR


def train(
    trainee: Trainee,
    hparams: TrainingHparams,
    folder: Path,
    *,
    about: Mapping[str, Any],
    overwrite: bool = False,
    name_of: Callable[[int], str] = str,
    progress: TrainingProgress | None = None,
) -> TrainingResult:
    """Trains until `max_iters`, or until the patience is at its end.

    Args:
        trainee: What learns.
        hparams: How.
        folder: The run's folder; made where it is not there.
        about: What people want to know of the run; kept with the editor too.
        overwrite: Begin anew where the folder holds another run.
        name_of: Names a record by its place, for messages that name several.
        progress: Told after each iteration.

    Raises:
        NonFiniteError: A loss or a gradient is NaN or infinite. The record is named, and the last
            checkpoint is kept.
        DataFileError: The folder holds another run, is in use, or holds a damaged file.
        HparamsError: There are fewer records than a batch has, or `early_stop_key` is no value of
            a validation.
        KeyboardInterrupt: As it came; its text says where the run stands.
    """
    if hparams.early_stop_key not in trainee.validation_values:
        raise HparamsError(
            f"early_stop_key {hparams.early_stop_key!r} is not among what a validation gives: "
            f"{', '.join(sorted(trainee.validation_values))}"
        )
    run = _Run(trainee, hparams, folder, name_of)
    described = trainee.description()
    with contextlib.ExitStack() as stack:

        def open_first() -> TrainingLog | None:
            """The log, in the first process alone."""
            if rank_and_ranks()[0] > 0:
                return None
            return stack.enter_context(open_run(folder, described, about, overwrite=overwrite))

        run.log, run.card = together(open_first), dict(about)
        resumed = run.resume()
        try:
            run.go(progress)
        except KeyboardInterrupt as stop:
            stop.args = (run.standing(),)
            raise
        wait_for_all()
        assert run.best_values is not None
        return TrainingResult(
            folder,
            run.iteration,
            run.stopping.best_step,
            run.best_values,
            run.seconds,
            resumed,
            stopped_early=run.iteration < run.iterations,
        )


class _Run:
    """A run, and where it stands."""

    def __init__(
        self,
        trainee: Trainee,
        hparams: TrainingHparams,
        folder: Path,
        name_of: Callable[[int], str],
    ) -> None:
        self.trainee, self.hparams, self.folder = trainee, hparams, folder
        self.name_of = name_of
        self.log: TrainingLog | None = None
        self.card: dict[str, Any] = {}
        self.order = BatchOrder(trainee.records, hparams.batch_size, hparams.seed)
        epochs = hparams.max_epochs
        of_epochs = hparams.max_iters if epochs is None else epochs * self.order.batches
        self.iterations = min(hparams.max_iters, of_epochs)
        tenth = math.ceil(self.iterations / 10 / hparams.accumulate_bs) * hparams.accumulate_bs
        is_short = hparams.model_save_pt >= self.iterations
        self.save_interval = tenth if is_short else hparams.model_save_pt
        self.optimizer = torch.optim.Adam(trainee.parameter_groups(), fused=True)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.stopping = EarlyStopping(hparams.early_stop_key, hparams.early_stop_patience)
        self.best_values: dict[str, float] | None = None
        self.iteration = self.kept = 0
        self._seconds_before = 0.0
        self._began = time.perf_counter()
        self.sums: dict[str, float] = {}
        self.summed = 0
        self.over = False
        self.not_descended: list[int] = []

    def go(self, progress: TrainingProgress | None) -> None:
        """Runs all iterations that are left."""
        places = self.order.places(self.iteration)
        while not self._is_over():
            start = time.perf_counter()
            batch = self.trainee.prepare(self.iteration, places)
            coming = self.order.places(self.iteration + 1)
            self.trainee.read_ahead(self.iteration + 1, coming)
            values = self._iterate(places, batch, start)
            if progress is not None:
                progress(self.iteration, self.iterations, values)
            places = coming

    def standing(self) -> str:
        """Where the run stands when it is stopped, and what the same call does."""
        at = f"stopped at iteration {self.iteration:,}"
        if not self.kept:
            return f"{at}; there is no checkpoint yet: the same command begins anew"
        return (
            f"{at}; the last checkpoint is of iteration {self.kept:,}; the same command goes on "
            "from there"
        )

    def _is_over(self) -> bool:
        return self.over or self.iteration >= self.iterations

    @property
    def seconds(self) -> float:
        """Time of the run so far."""
        return self._seconds_before + time.perf_counter() - self._began

    def _iterate(self, places: list[int], batch: Any, start: float) -> dict[str, float]:
        """One batch, which was begun with at `start`, and what is due after it."""
        self.iteration += 1
        self.not_descended += places
        try:
            loss, shares = self.trainee.step(batch)
            (loss / self.hparams.accumulate_bs).backward()
            if self._due(self.hparams.accumulate_bs):
                self._descend()
        except NonFiniteError as error:
            raise self._stopped(error) from error
        values = _summed(shares)
        values["time/step_train"] = time.perf_counter() - start
        self.summed += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        if self._due(self.hparams.log_interval):
            self._add({name: value / self.summed for name, value in self.sums.items()})
            self.sums, self.summed = {}, 0
        if self._due(self.hparams.val_interval) or self.iteration == self.iterations:
            values |= self._validate()
            self._write_checkpoint()
        elif self._due(self.save_interval):
            self._write_checkpoint()
        return values

    def _due(self, interval: int) -> bool:
        return self.iteration % interval == 0

    def _descend(self) -> None:
        """Takes an optimiser step.

        Raises:
            NonFiniteError: The gradient holds NaN or infinity.
        """
        groups = self.optimizer.param_groups
        share = self.hparams.learning_rate(self.iteration, self.iterations)
        for group, rate in zip(groups, self.rates, strict=True):
            group["lr"] = rate * share
        parameters = [parameter for group in groups for parameter in group["params"]]
        sum_over_ranks(p.grad for p in parameters if p.grad is not None)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.hparams.grad_clip)
        if not bool(norm.isfinite()):
            names = ", ".join(self.name_of(place) for place in sorted(set(self.not_descended)))
            raise NonFiniteError(f"the gradient of these records together is not finite: {names}")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.not_descended = []

    def _stopped(self, error: NonFiniteError) -> NonFiniteError:
        kept = self.folder / CHECKPOINT
        parts = [
            f"training stopped in iteration {self.iteration}: {error.reason}",
            *([f"the checkpoint of before is kept ({kept})"] if kept.is_file() else []),
            "leave the record out or lower lr, and begin anew (--overwrite, overwrite=True)",
        ]
        return NonFiniteError("; ".join(parts), record=error.record)

    def _validate(self) -> dict[str, float]:
        values = self.trainee.validate()
        key = self.stopping.key
        if self.best_values is None and not math.isfinite(values[key]):
            raise HparamsError(
                f"the first validation gave {values[key]} for {key!r}; choose another "
                "early_stop_key, or lower lr"
            )
        if self.stopping.update(self.iteration, values):
            self.best_values = values
            if self.log is not None:
                card = {
                    **self.card,
                    "iterations": self.iteration,
                    "seconds": round(self.seconds, 1),
                    "validation": values,
                }
                self.trainee.write_editor(self.folder / EDITOR, card)
        self.over = self.stopping.is_over(self.iteration)
        self._add(values)
        return values

    def _add(self, values: Mapping[str, float]) -> None:
        if self.log is not None:
            finite = {name: value for name, value in values.items() if math.isfinite(value)}
            epoch = self.iteration // self.order.batches
            self.log.add(self.iteration, epoch, self.seconds, finite)

    def _write_checkpoint(self) -> None:
        if self.log is None:
            self.kept = self.iteration
            return
        told = {
            "run": self.log.run,
            "over": self.over,
            "iteration": self.iteration,
            "seconds": self.seconds,
            "best": self.stopping.best,
            "best_step": self.stopping.best_step,
            "best_values": self.best_values,
            "sums": self.sums,
            "summed": self.summed,
        }
        checkpoint = Checkpoint(self.trainee.state_dict(), optimizer_tensors(self.optimizer), told)
        checkpoint.write(self.folder / CHECKPOINT)
        self.kept = self.iteration

    def resume(self) -> int:
        """Goes to where the last checkpoint is, in every process; gives its iteration."""
        found = first_tells(together(self._read_checkpoint))
        if found is not None:
            self.trainee.load_state_dict(found.trained)
            load_optimizer_tensors(self.optimizer, found.optimizer)
            told = found.told
            self.iteration = self.kept = told["iteration"]
            self._seconds_before, self.over = told["seconds"], told["over"]
            self.stopping.best, self.stopping.best_step = told["best"], told["best_step"]
            self.best_values = told["best_values"]
            self.sums, self.summed = told["sums"], told["summed"]
        if self.log is not None:
            self.log.go_on_after(self.iteration)
        return self.iteration

    def _read_checkpoint(self) -> Checkpoint | None:
        """The run's last checkpoint, in the first process alone."""
        path = self.folder / CHECKPOINT
        if self.log is None or not path.is_file():
            return None
        found = Checkpoint.read(path)
        return found if found.told.get("run") == self.log.run else None


def _summed(shares: Mapping[str, Tensor]) -> dict[str, float]:
    """The sum of all processes' shares of each value."""
    values = torch.stack([share.detach().double() for share in shares.values()])
    sum_over_ranks([values])
    return dict(zip(shares, values.tolist(), strict=True))
