"""MEND as what learns in `training.loop`."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from easyedit_fast.errors import HparamsError, ModelError, NonFiniteError, RecordError
from easyedit_fast.files import digest
from easyedit_fast.hparams import Hparams, find_hparams_file, read_yaml
from easyedit_fast.mend.editor_files import EditorFile, read_editor, write_editor
from easyedit_fast.mend.factors import token_factors
from easyedit_fast.mend.hparams import MENDTrainingHparams
from easyedit_fast.mend.losses import (
    OuterLosses,
    TailRows,
    edited_in_groups,
    nll_and_divergence,
    outer_losses,
)
from easyedit_fast.mend.modules import (
    edited_modules,
    layer_of,
    mend_rule,
    network_of,
    weight_sizes,
)
from easyedit_fast.mend.network import EditorNetwork
from easyedit_fast.mend.training_rows import CacheProgress, LocalityRows, TrainingRows
from easyedit_fast.models.architectures import Architecture, architecture_of
from easyedit_fast.models.fingerprint import model_fingerprint
from easyedit_fast.processes import gathered, rank_and_ranks, sum_over_ranks
from easyedit_fast.training.batches import draws
from easyedit_fast.training.loop import VALIDATION

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from easyedit_fast.requests import EditRequest

_ROWS_AT_ONCE = 32  # of a validation


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
    if isinstance(hparams, Hparams):
        if not isinstance(hparams, MENDTrainingHparams):
            raise HparamsError(
                f"{type(hparams).__name__} is not for training MEND; give MENDTrainingHparams"
            )
        resolved = hparams.model_copy(deep=True)
    else:
        if hparams is None or isinstance(hparams, Mapping):
            given = dict(hparams or {})
        else:
            given = read_yaml(find_hparams_file(hparams))
        given.setdefault("inner_params", mend_rule(model, known))
        resolved = MENDTrainingHparams(**given)
    trainee = MendTrainee(
        model, tokenizer, requests, validation, resolved, architecture=known, **options
    )
    return trainee, resolved


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

    validation_values = (
        *(f"{name}/{part}_val" for name in ("edit", "rephrase") for part in ("acc", "log_prob")),
        *(
            f"{name}/{when}_val"
            for when in ("pre", "post")
            for name in ("acc", "nll", "perplexity", "n_tokens")
        ),
        "locality/acc_val",
        *(f"loss/{name}_val" for name in ("edit", "loc", "total_edit", "total")),
        "time/edit_val",
    )

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
        for name in ("results_dir", "device", "model_name", "model_parallel"):
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

    def prepare(self, iteration: int, places: list[int]) -> _Batch:
        """This process's share of a batch: all that is drawn is drawn here."""
        draw = draws(self.hparams.seed, "batch", iteration)
        most = self.hparams.edits_at_most
        edits = int((most + 1) ** draw.random()) if self.hparams.vary_n_edits else most
        rephrased = self.hparams.outer_prompts == "alternate" and iteration % 2 == 1
        asked = [_drawn(draw, self._rows.rephrases[place]) for place in places]
        if not rephrased:
            asked = places
        probes = [_drawn(draw, self._rows.localities[place]) for place in places]
        rank, ranks = rank_and_ranks()
        own = [at for at in range(len(places)) if (at // edits) % ranks == rank]
        chosen = [places[at] for at in own]
        target_rows = self._rows.targets(chosen)
        locality = self._rows.locality([probes[at] for at in own], self.hparams.loc_tokens)
        return _Batch(
            chosen,
            target_rows,
            self._rows.targets([asked[at] for at in own]) if rephrased else target_rows,
            locality,
            _renumbered([at // edits for at in own]),
            _share(self._rows.target_tokens, asked, own),
            _share(self._rows.locality_tokens(self.hparams.loc_tokens), probes, own),
        )

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
        wanted = batch.targets.rows.labels[batch.targets.rows.labels != -100]
        right = (losses.logits.argmax(-1) == wanted).float().mean()
        values = {
            "loss/total_train": total,
            "loss/total_edit_train": total,
            "loss/edit_train": edit,
            "loss/loc_train": locality,
            "edit/acc_train": right * batch.edit_share,
            "edit/log_prob_train": -edit,
        }
        return total, values

    def _losses(self, batch: _Batch) -> OuterLosses:
        return outer_losses(
            self.network,
            self._modules,
            batch.edits,
            batch.targets,
            batch.locality.rows,
            batch.locality.reads,
            batch.locality.base_logits(),
            batch.groups,
            check=functools.partial(_require_finite, batch.places),
        )

    def _require_finite_losses(self, batch: _Batch, losses: OuterLosses) -> None:
        """Names the record whose loss is NaN or infinite.

        Raises:
            NonFiniteError: There is one, in any process.
        """
        rows = len(batch.places)
        fine = losses.inner.isfinite()
        for logits, reads in (
            (losses.logits, batch.targets.rows.labels != -100),
            (losses.locality_logits, batch.locality.reads),
        ):
            bad = reads.nonzero()[:, 0][~logits.isfinite().all(-1)]
            fine &= torch.bincount(bad, minlength=rows) == 0
        _require_finite(batch.places, fine)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Edits the validation records, `val_batch_size` in a model, and looks at each model.

        Raises:
            ModelError: The edited model was not asked what the unedited one was.
        """
        self.network.eval()
        size = self.hparams.val_batch_size
        models = math.ceil(self._validation.records / size)
        models = min(models, self.hparams.val_steps or models)
        records = min(self._validation.records, models * size)
        rank, ranks = rank_and_ranks()
        sums: dict[str, float] = dict.fromkeys(_SUMS, 0.0)
        at_once = max(1, _ROWS_AT_ONCE // size) * size
        for number, first in enumerate(range(0, records, at_once)):
            if number % ranks == rank:
                places = list(range(first, min(first + at_once, records)))
                for name, value in self._validated(places, size).items():
                    sums[name] += value
        totals = torch.tensor(list(sums.values()), dtype=torch.float64, device=self._model.device)
        sum_over_ranks([totals])
        return self._values(dict(zip(sums, totals.tolist(), strict=True)))

    def _validated(self, places: list[int], size: int) -> dict[str, float]:
        """Sums over some of the records."""
        rows = self._validation
        edits = rows.targets(places)
        asked = {"edit": edits, "rephrase": rows.targets([rows.rephrases[p][0] for p in places])}
        locality = rows.locality([rows.localities[p][0] for p in places], self.hparams.loc_tokens)
        groups = _renumbered([place // size for place in places])
        start = time.perf_counter()
        gradients = token_factors(edits.target_logits, self._modules, edits.rows)
        factors = self.network(gradients.factors)
        self.network.edit_lrs.sum().item()  # waits for the device
        sums = {"seconds": time.perf_counter() - start, "models": float(max(groups) + 1)}
        with edited_in_groups(self._modules, factors, gradients.tokens, groups):
            for name, targets in asked.items():
                wanted = targets.rows.labels[targets.rows.labels != -100]
                nll, right = _against(targets.target_logits(), wanted)
                sums |= {f"{name}.nll": nll, f"{name}.right": right, f"{name}.n": len(wanted)}
            after = locality.rows.logits(locality.reads)
        return sums | _locality_sums(locality, after)

    def _values(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Means by the field's names."""
        values: dict[str, float] = {}
        for name in ("edit", "rephrase"):
            values[f"{name}/acc_val"] = sums[f"{name}.right"] / sums[f"{name}.n"]
            values[f"{name}/log_prob_val"] = -sums[f"{name}.nll"] / sums[f"{name}.n"]
        for when in ("pre", "post"):
            tokens = sums[f"{when}.n"]
            nll = sums[f"{when}.nll"] / tokens if tokens else math.nan
            values[f"acc/{when}_val"] = sums[f"{when}.right"] / tokens if tokens else math.nan
            values[f"nll/{when}_val"] = nll
            values[f"perplexity/{when}_val"] = _exp(nll)
            values[f"n_tokens/{when}_val"] = tokens
        values["locality/acc_val"] = sums["same"] / sums["pre.n"] if sums["pre.n"] else math.nan
        edit = -values["edit/log_prob_val"]
        if self.hparams.outer_prompts == "alternate":
            edit = (edit - values["rephrase/log_prob_val"]) / 2
        values["loss/edit_val"] = edit
        values["loss/loc_val"] = sums["kl"] / sums["kl.n"]
        total = self.hparams.cedit * edit + self.hparams.cloc * values["loss/loc_val"]
        values["loss/total_edit_val"] = values["loss/total_val"] = total
        values["time/edit_val"] = sums["seconds"] / sums["models"]
        return values


_SUMS = (
    *(
        f"{name}.{part}"
        for name in ("edit", "rephrase", "pre", "post")
        for part in ("nll", "right", "n")
    ),
    "same",
    "kl",
    "kl.n",
    "models",
    "seconds",
)


def _locality_sums(locality: LocalityRows, after: Tensor) -> dict[str, float]:
    """What became of the predictions that shall stay.

    Raises:
        ModelError: The edited model was not asked what the unedited one was.
    """
    labels, before = locality.labels(), locality.base_logits()
    if not len(before) == len(after) == len(labels):
        raise ModelError(
            f"{len(labels)} tokens shall stay, and the unedited model was asked {len(before)}, the "
            f"edited one {len(after)}; remove the caches of the trunk"
        )
    known = labels != -100
    sums: dict[str, float] = {}
    for when, logits in (("pre", before), ("post", after)):
        nll, right = _against(logits[known], labels[known])
        sums |= {f"{when}.nll": nll, f"{when}.right": right, f"{when}.n": len(logits[known])}
    same = before[known].argmax(-1) == after[known].argmax(-1)
    _, divergence = nll_and_divergence(after, labels[:0], before)
    total = float(divergence) * len(after)
    return {**sums, "same": float(same.sum()), "kl": total, "kl.n": len(after)}


def _against(logits: Tensor, wanted: Tensor) -> tuple[float, float]:
    """Sum of the negative log-likelihoods of tokens, and how many are the likeliest."""
    nll = nn.functional.cross_entropy(logits.float(), wanted, reduction="sum")
    return float(nll), float((logits.argmax(-1) == wanted).sum())


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


def _require_finite(places: Sequence[int], fine: Tensor) -> None:
    """Names the first record of which something is NaN or infinite, in whatever process it is.

    Args:
        places: The records of this process's rows.
        fine: ``[rows]`` bool.

    Raises:
        NonFiniteError: There is one; it is raised in all processes.
    """
    bad = next((p for p, ok in zip(places, fine.tolist(), strict=True) if not ok), -1)
    found = [int(one) for one in gathered(torch.tensor(bad, device=fine.device)) if one >= 0]
    if found:
        raise NonFiniteError(
            "its activations, gradient or loss are NaN or infinite", record=found[0]
        )


def _drawn(draw: Any, places: Sequence[int]) -> int:
    return places[int(draw.integers(len(places)))]


def _renumbered(groups: Sequence[int]) -> list[int]:
    """The same groups, numbered from 0 in order."""
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    return [numbers[group] for group in groups]


def _share(tokens: Sequence[int], rows: Sequence[int], own: Sequence[int]) -> float:
    """The part of the rows' tokens that some of them have."""
    return sum(tokens[rows[at]] for at in own) / sum(tokens[row] for row in rows)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
