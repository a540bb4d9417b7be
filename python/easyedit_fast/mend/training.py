"""MEND as what learns in `training.loop`."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from easyedit_fast.errors import HparamsError, ModelError, RecordError
from easyedit_fast.files import digest
from easyedit_fast.hparams import Hparams
from easyedit_fast.mend.editor_files import read_editor, write_editor
from easyedit_fast.mend.hparams import HOW_EDITS_SHARE, MENDTrainingHparams
from easyedit_fast.mend.losses import OuterLosses, TailRows, outer_losses
from easyedit_fast.mend.modules import (
    edited_modules,
    layer_of,
    mend_rule,
    network_of,
    weight_sizes,
)
from easyedit_fast.mend.network import EditorNetwork
from easyedit_fast.mend.training_rows import CacheProgress, LocalityRows, TrainingRows
from easyedit_fast.mend.validation import VALUES, renumbered, validate
from easyedit_fast.models.architectures import Architecture, architecture_of
from easyedit_fast.models.fingerprint import model_fingerprint
from easyedit_fast.models.tracing import frozen
from easyedit_fast.processes import rank_and_ranks
from easyedit_fast.training.batches import draws
from easyedit_fast.training.editors import EditorFile
from easyedit_fast.training.finite import require_finite
from easyedit_fast.training.loop import VALIDATION

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from easyedit_fast.requests import EditRequest

_WHAT = "its activations, gradient or loss are"


def mend_trainee(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    validation: Sequence[EditRequest],
    *,
    hparams: str | os.PathLike[str] | Mapping[str, Any] | Hparams | None = None,
    architecture: Architecture | None = None,
    **options: Any,
) -> tuple[MendTrainee, MENDTrainingHparams]:
    """What learns, from hyperparameters in whatever form the user gave them in.

    Without ``inner_params`` all weights of the last three MLPs are edited.

    Args:
        model: As for `MendTrainee`, like the rest.
        tokenizer: As there.
        requests: As there.
        validation: As there.
        hparams: Keys, the path of a YAML file or a shipped name such as
            ``TRAINING/MEND/llama-7b``, or hyperparameters ready made.
        architecture: As there.
        **options: As there.

    Raises:
        HparamsError: A value cannot be used.
        MissingFileError: There is no such file.
    """
    known = architecture or architecture_of(model)
    resolved = MENDTrainingHparams.resolved(hparams, inner_params=mend_rule(model, known))
    trainee = MendTrainee(
        model, tokenizer, requests, validation, resolved, architecture=known, **options
    )
    return trainee, resolved


@dataclasses.dataclass(frozen=True, eq=False)
class _Draw:
    """What is drawn for a batch.

    Attributes:
        edits: Edits in a model.
        rephrased: Whether the edited models are asked rephrases.
        asked: By record of the batch, the place of its prompt among the target rows.
        probes: By record, the place of its prompt among the locality rows.
        own: Which of the batch's records are this process's.
    """

    edits: int
    rephrased: bool
    asked: Sequence[int]
    probes: Sequence[int]
    own: Sequence[int]


@dataclasses.dataclass(frozen=True, eq=False)
class _Batch:
    """This process's share of a batch.

    Attributes:
        places: Its records.
        edits: The rewrite prompts.
        targets: The prompts that the edited models are asked; the same object, or rephrases.
        locality: The prompts whose predictions shall stay.
        groups: The model that each record is edited into.
        edit_share: Its part of the batch's target tokens; `locality_share`, of the others.
    """

    places: list[int]
    edits: TailRows
    targets: TailRows
    locality: LocalityRows
    groups: list[int]
    edit_share: float
    locality_share: float


class MendTrainee:
    """An editor network that learns from records.

    Attributes:
        hparams: The hyperparameters.
        network: The editor network.
        records: Records to learn from.
        validation_values: Names of what a validation gives.
    """

    validation_values = VALUES

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[EditRequest],
        validation: Sequence[EditRequest],
        hparams: MENDTrainingHparams,
        *,
        architecture: Architecture | None = None,
        cache_folder: Path | None = None,
        progress: CacheProgress | None = None,
    ) -> None:
        """Makes the network, and the trunk of all prompts.

        Args:
            model: The model; it stays as it is.
            tokenizer: Its (fast) tokenizer.
            requests: The records to learn from.
            validation: The records of the validations.
            hparams: The hyperparameters.
            architecture: Description of a family that the package does not know.
            cache_folder: Where the trunk is kept; None: in the user's cache.
            progress: Told while the trunk is made.

        Raises:
            RequestError: A record has no locality prompt, or does not fit the model.
            ModelError: The model cannot be trained on, or the editor that training shall begin
                with is not for it.
            HparamsError: A weight is none, or processes and edits do not fit.
            NonFiniteError: A record's hidden states are not finite.
        """
        _require_usable(model, hparams)
        self.hparams = hparams
        self._require_a_model_each()
        self._model = model
        self._architecture = architecture or architecture_of(model)
        self._modules, layouts = edited_modules(model, hparams.inner_params)
        self.network = self._first_network(weight_sizes(self._modules, layouts))
        self.network.to(model.device)
        layer = min(layer_of(self._architecture, name) for name in hparams.inner_params)

        def rows(own: Sequence[EditRequest]) -> TrainingRows:
            place = (model, tokenizer, self._architecture, layer)
            made = TrainingRows(*place, own, folder=cache_folder, progress=progress)
            if hparams.loc_tokens == "answer":
                made.require_answers()
            return made

        self._rows = rows(requests)
        try:
            self._validation = rows(validation)
        except RecordError as error:
            raise error.at(error.record or 0, among=VALIDATION) from error
        self.records = self._rows.records
        self._fingerprint = model_fingerprint(model, self._architecture)

    def _first_network(self, sizes: Mapping[str, tuple[int, int]]) -> EditorNetwork:
        """The network that training begins with."""
        if self.hparams.archive is None:
            return EditorNetwork(self.hparams, sizes)
        editor = read_editor(Path(self.hparams.archive))
        return network_of(self.hparams, editor, sizes)

    def _require_a_model_each(self) -> None:
        ranks = rank_and_ranks()[1]
        if self.hparams.batch_size < ranks * self.hparams.edits_at_most:
            raise HparamsError(
                f"{ranks} processes and up to {self.hparams.edits_at_most} edits in a model need "
                f"batches of {ranks * self.hparams.edits_at_most} records; raise batch_size, or "
                "lower n_edits"
            )

    def description(self) -> dict[str, Any]:
        """All that a run depends on, as plain JSON values."""
        data = [
            {
                "targets": dict(rows.target_trunk.key),
                "locality": dict(rows.locality_trunk.key),
                "labels": rows.digest(),
            }
            for rows in (self._rows, self._validation)
        ]
        hparams = self.hparams.to_dict()
        for name in ("results_dir", "device", "model_name", "model_parallel", *HOW_EDITS_SHARE):
            hparams.pop(name)
        archive = self.hparams.archive
        return {
            "method": "mend",
            "hparams": hparams,
            "model": self._fingerprint,
            "data": data,
            "archive_sha256": None if archive is None else digest(Path(archive)),
        }

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The networks with ``lr``, the step sizes with ``lr_lr``."""
        named = dict(self.network.named_parameters())
        rates = named.pop("edit_lrs")
        return [
            {"params": list(named.values()), "lr": self.hparams.lr},
            {"params": [rates], "lr": self.hparams.lr_lr},
        ]

    def state_dict(self) -> dict[str, Tensor]:
        """The network's."""
        return dict(self.network.state_dict())

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Puts such a state back."""
        self.network.load_state_dict(tensors)

    def write_editor(self, path: Path, card: Mapping[str, Any]) -> None:
        """Writes the editor as `Mend` loads it."""
        about = {
            **card,
            "model_fingerprint": self._fingerprint,
            "training": self.hparams.to_dict(),
        }
        write_editor(path, EditorFile(self.state_dict(), self.hparams.for_edits(), about))

    def close(self) -> None:
        """The model is as it was."""

    def prepare(self, iteration: int, places: list[int]) -> _Batch:
        """This process's share of a batch: all that is drawn is drawn here."""
        draw = self._drawn(iteration, places)
        chosen = [places[at] for at in draw.own]
        target_rows = self._rows.targets(chosen)
        targets = target_rows
        if draw.rephrased:
            targets = self._rows.targets([draw.asked[at] for at in draw.own])
        tokens = self.hparams.loc_tokens
        return _Batch(
            chosen,
            target_rows,
            targets,
            self._rows.locality([draw.probes[at] for at in draw.own], tokens),
            renumbered([at // draw.edits for at in draw.own]),
            _share(self._rows.target_tokens, draw.asked, draw.own),
            _share(self._rows.locality_tokens(tokens), draw.probes, draw.own),
        )

    def read_ahead(self, iteration: int, places: list[int]) -> None:
        """Has the system begin to read what `prepare` takes of its cache."""
        draw = self._drawn(iteration, places)
        targets = {place for at in draw.own for place in (places[at], draw.asked[at])}
        self._rows.read_ahead(sorted(targets), [draw.probes[at] for at in draw.own])

    def _drawn(self, iteration: int, places: list[int]) -> _Draw:
        draw = draws(self.hparams.seed, "batch", iteration)
        most = self.hparams.edits_at_most
        edits = int((most + 1) ** draw.random()) if self.hparams.vary_n_edits else most
        rephrased = self.hparams.outer_prompts == "alternate" and iteration % 2 == 1
        asked = [_one_of(draw, self._rows.rephrases[place]) for place in places]
        probes = [_one_of(draw, self._rows.localities[place]) for place in places]
        rank, ranks = rank_and_ranks()
        own = [at for at in range(len(places)) if (at // edits) % ranks == rank]
        return _Draw(edits, rephrased, asked if rephrased else places, probes, own)

    def step(self, batch: _Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """This process's share of the batch's loss, and of its values.

        Raises:
            NonFiniteError: A record's loss is NaN or infinite.
        """
        self.network.train()
        losses = self._losses(batch)
        self._require_finite_losses(batch, losses)
        edit = losses.edit * batch.edit_share
        locality = losses.locality * batch.locality_share
        total = self.hparams.cedit * edit + self.hparams.cloc * locality
        values = {
            "loss/total_train": total,
            "loss/total_edit_train": total,
            "loss/edit_train": edit,
            "loss/loc_train": locality,
            "edit/acc_train": losses.right.float().mean() * batch.edit_share,
            "edit/log_prob_train": -edit,
        }
        return total, values

    def _losses(self, batch: _Batch) -> OuterLosses:
        with frozen(self._model):  # what is frozen inside finds nothing left to do
            return outer_losses(
                self.network,
                self._modules,
                batch.edits,
                batch.targets,
                batch.locality.rows,
                batch.locality.reads,
                batch.locality.final,
                batch.groups,
                check=functools.partial(require_finite, batch.places, what=_WHAT),
            )

    def _require_finite_losses(self, batch: _Batch, losses: OuterLosses) -> None:
        """Names the record whose loss is NaN or infinite.

        Raises:
            NonFiniteError: There is one, in any process.
        """
        rows = len(batch.places)
        fine = losses.inner.isfinite()
        for values, reads in (
            (losses.nll, batch.targets.rows.labels != -100),
            (losses.divergence, batch.locality.reads),
        ):
            bad = reads.nonzero()[:, 0][~values.isfinite()]
            fine &= torch.bincount(bad, minlength=rows) == 0
        require_finite(batch.places, fine, _WHAT)

    def validate(self) -> dict[str, float]:
        """Values of the validation records; see `mend.validation`."""
        return validate(self.network, self._modules, self._validation, self.hparams)


def _require_usable(model: PreTrainedModel, hparams: MENDTrainingHparams) -> None:
    """Refuses a model that cannot be trained on.

    Raises:
        ModelError: It is in float16, not in what the hyperparameters say, or on several devices.
    """
    if model.dtype == torch.float16:
        raise ModelError(
            "gradients vanish in float16; load the model in bfloat16 or float32 (--dtype)"
        )
    if hparams.half and model.dtype != torch.bfloat16:
        raise ModelError(
            f"the hyperparameters say 'half', and the model is in {model.dtype}; load it in "
            "bfloat16, or set half to false"
        )
    if len({parameter.device for parameter in model.parameters()}) > 1:
        raise ModelError(
            "the model is spread over several devices, which training does not know; load it on "
            "one (--device)"
        )


def _one_of(draw: Any, places: Sequence[int]) -> int:
    return places[int(draw.integers(len(places)))]


def _share(tokens: Sequence[int], rows: Sequence[int], own: Sequence[int]) -> float:
    """The part of the rows' tokens that some of them have."""
    return sum(tokens[rows[at]] for at in own) / sum(tokens[row] for row in rows)
