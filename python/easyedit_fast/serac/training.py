"""Training SERAC: the scope learns whose prompt it is, the adapter to answer from an edit."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from easyedit_fast.errors import HparamsError, RecordError
from easyedit_fast.files import digest
from easyedit_fast.hparams import Hparams
from easyedit_fast.models.adapters import refuse_adapters
from easyedit_fast.models.architectures import Architecture, architecture_of
from easyedit_fast.models.fingerprint import model_fingerprint, tokenizer_fingerprint
from easyedit_fast.models.sentence_encoders import pooling_of
from easyedit_fast.models.tracing import frozen
from easyedit_fast.processes import rank_and_ranks
from easyedit_fast.serac.answers import routed_logits, row_means
from easyedit_fast.serac.drawing import Batch, Drawing
from easyedit_fast.serac.editor_files import load_parts, read_editor, require_encoder, write_editor
from easyedit_fast.serac.hparams import SEARCH_KEYS, SERACTrainingHparams
from easyedit_fast.serac.losses import WHAT, mixture_losses, scope_loss
from easyedit_fast.serac.negatives import Negatives
from easyedit_fast.serac.scope import Scope
from easyedit_fast.serac.scopes import make_scope
from easyedit_fast.serac.shares import AdapterShare, MixtureShare
from easyedit_fast.serac.small import counterfactual_of
from easyedit_fast.serac.training_data import SeracData
from easyedit_fast.serac.validation import VALUES, validate
from easyedit_fast.training.batches import draws
from easyedit_fast.training.editors import EditorFile
from easyedit_fast.training.finite import require_finite
from easyedit_fast.training.loop import VALIDATION
from easyedit_fast.training.losses import nll_and_divergence

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from easyedit_fast.requests import EditRequest


def serac_trainee(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    validation: Sequence[EditRequest],
    *,
    hparams: str | os.PathLike[str] | Mapping[str, Any] | Hparams | None = None,
    architecture: Architecture | None = None,
    **options: Any,
) -> tuple[SeracTrainee, SERACTrainingHparams]:
    """What learns, from hyperparameters in whatever form the user gave them in.

    Args:
        model: As for `SeracTrainee`, like the rest.
        tokenizer: As there.
        requests: As there.
        validation: As there.
        hparams: Keys, the path of a YAML file or a shipped name such as
            ``TRAINING/SERAC/llama-7b``, or hyperparameters ready made.
        architecture: As there.
        **options: As there.

    Raises:
        HparamsError: A value cannot be used.
        MissingFileError: There is no such file.
    """
    resolved = SERACTrainingHparams.resolved(hparams)
    trainee = SeracTrainee(
        model, tokenizer, requests, validation, resolved, architecture=architecture, **options
    )
    return trainee, resolved


class SeracTrainee:
    """A scope and an adapter that learn from records.

    Attributes:
        hparams: The hyperparameters.
        scope: The scope.
        counterfactual: The counterfactual model.
        adapter: Its adapter.
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
        hparams: SERACTrainingHparams,
        *,
        architecture: Architecture | None = None,
        cache_folder: Path | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        """Loads the scope's encoder and any small model, and puts the adapter in.

        With a small model of another vocabulary, tokens and unedited answers are its own.

        Args:
            model: The model; its weights stay as they are.
            tokenizer: Its (fast) tokenizer.
            requests: The records to learn from.
            validation: The records of the validations.
            hparams: The hyperparameters.
            architecture: Description of a family that the package does not know.
            cache_folder: Without meaning here.
            progress: Without meaning here.

        Raises:
            RequestError: A record has no locality prompt, or does not fit the model.
            ModelError: The model cannot be trained on, or there is no such encoder or small model.
            HparamsError: A module is none.
            MissingPackageError: A package is missing.
        """
        _require_records_for_all(hparams)
        refuse_adapters(model)
        known = architecture or architecture_of(model)
        self.hparams = hparams
        self._fingerprint = model_fingerprint(model, known)
        self._tokenizer_fingerprint = tokenizer_fingerprint(tokenizer)
        small = self.counterfactual = counterfactual_of(hparams.small_name, model, tokenizer, known)
        unedited = model if small.same_vocabulary else small.model
        self.data = SeracData(
            small.model, small.tokenizer, requests, unedited, chats=small.same_vocabulary
        )
        try:
            self._validation = SeracData(small.model, small.tokenizer, validation, unedited)
        except RecordError as error:
            raise error.at(error.record or 0, among=VALIDATION) from error
        archive = None if hparams.archive is None else read_editor(Path(hparams.archive))
        self.records = len(self.data)
        plain = Scope(hparams, trained=False).to(model.device)
        negatives = Negatives(plain, self.data.requests) if self._learns("scope") else None
        self._drawing = Drawing(self.data, negatives, hparams)
        checked = Negatives(plain, self._validation.requests)
        self._others = [
            checked.of_subject(place, 1, draws(hparams.seed, "validation", place))
            for place in range(len(self._validation))
        ]
        self.scope = make_scope(hparams, model.device)
        self.adapter = small.adapter(hparams)
        if archive is not None:
            try:
                require_encoder(hparams.archive, archive, self.scope)
                self.load_state_dict(small.own_parts(archive, self.state_dict(), self._fingerprint))
            except BaseException:
                self.adapter.remove()
                raise

    def _learns(self, part: str) -> bool:
        return self.hparams.parts in ("both", part)

    def description(self) -> dict[str, Any]:
        """All that a run depends on, as plain JSON values."""
        hparams = self.hparams.to_dict()
        archive, small = self.hparams.archive, self.counterfactual.card
        # What the names are of has a fingerprint, and a folder may be moved.
        names = ("model_name", "cls_name", *(["small_name"] if small else []))
        for name in (*SEARCH_KEYS, *names, "results_dir", "device", "model_parallel"):
            hparams.pop(name)
        hparams["pooling"] = self.hparams.pooling or pooling_of(self.hparams.cls_name)
        return {
            "method": "serac",
            "hparams": hparams,
            "model": self._fingerprint,
            "tokenizer": self._tokenizer_fingerprint,
            "encoder": self.scope.origin,
            **small,
            "data": [self.data.digest(), self._validation.digest()],
            "chat_template": self.data.forms.digest(),
            "archive_sha256": None if archive is None else digest(Path(archive)),
        }

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The scope's and the adapter."""
        groups: list[dict[str, Any]] = []
        if self._learns("scope"):
            groups += self.scope.parameter_groups(self.hparams.cls_lr or self.hparams.lr)
        if self._learns("counterfactual") and not self.hparams.freeze_cntr:
            groups.append({"params": self.adapter.parameters(), "lr": self.hparams.lr})
        return groups

    def state_dict(self) -> dict[str, Tensor]:
        """The scope's and the adapter's."""
        return {
            **{f"scope.{name}": one for name, one in self.scope.trained_state().items()},
            **{f"counterfactual.{name}": one for name, one in self.adapter.state_dict().items()},
        }

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Puts such a state back."""
        load_parts(tensors, self.scope, self.adapter)

    def write_editor(self, path: Path, card: Mapping[str, Any]) -> None:
        """Writes both parts as `Serac` loads them."""
        about = {
            **card,
            "model_fingerprint": self._fingerprint,
            **self.counterfactual.card,
            "encoder": self.scope.origin,
            "training": self.hparams.to_dict(),
        }
        write_editor(path, EditorFile(self.state_dict(), self.hparams.for_edits(), about))

    def prepare(self, iteration: int, places: list[int]) -> Batch:
        """This process's share of a batch: all that is drawn is drawn here."""
        return self._drawing.batch(iteration, places)

    def read_ahead(self, iteration: int, places: list[int]) -> None:
        """Nothing is read from a disk."""

    def step(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """This process's share of the batch's loss, and of its values.

        Raises:
            NonFiniteError: A record's loss is NaN or infinite.
        """
        total = torch.zeros((), device=self.adapter.model.device, requires_grad=True)
        values: dict[str, Tensor] = {}
        scope, answers = batch
        if scope is not None:
            loss, right = scope_loss(self.scope, self.data, scope, self.hparams)
            total = total + loss
            values |= {"loss/scope_train": loss, "scope/acc_train": right}
        if isinstance(answers, MixtureShare):
            *found, routed = mixture_losses(
                self.scope, self.adapter, self.data, answers, self.hparams
            )
            values["scope/acc_train"] = routed
        else:
            found = [] if answers is None else self._adapter_losses(answers)
        if found:
            edit, right, locality, *after = found
            total = total + self.hparams.cedit * edit + self.hparams.cloc * sum(after, locality)
            values |= {
                "loss/edit_train": edit,
                "loss/loc_train": locality,
                "edit/acc_train": right,
                "edit/log_prob_train": -edit,
            }
            values |= dict(zip(["loss/after_train"], after, strict=False))
        return total, {"loss/total_train": total, "loss/total_edit_train": total, **values}

    def _adapter_losses(self, share: AdapterShare) -> list[Tensor]:
        """Of the targets after their edit, the part right, and KL(base ‖ adapter) elsewhere.

        Elsewhere is at locality prompts, and after the targets where that is learned.
        """
        rows = [*share.targets, *share.outside]
        with frozen(self.adapter.model):  # the adapter learns while it is on
            logits, base = routed_logits(
                self.adapter, self.data.base, rows, [True] * len(rows), share.base
            )
            wanted = torch.tensor(
                [token for row in share.targets for token in row.answer], device=logits.device
            )
            nll, kl = nll_and_divergence(logits, wanted, base.detach())
        edit = row_means(nll, share.targets)
        kept = row_means(kl, share.outside)
        finite = torch.cat([edit, kept]).isfinite()
        require_finite([*share.places, *share.owners], finite, WHAT)
        right = row_means((logits[: len(wanted)].argmax(-1) == wanted).float(), share.targets)
        locality, after = kept.tensor_split([len(edit)])
        found = [one.sum() / share.records for one in (edit, right, locality)]
        return [*found, after.sum() / share.continued] if share.continued else found

    def close(self) -> None:
        """Takes the adapter out of its model."""
        self.adapter.remove()

    def validate(self) -> dict[str, float]:
        """Values of the validation records; see `serac.validation`."""
        return validate(self.scope, self.adapter, self._validation, self._others, self.hparams)


def _require_records_for_all(hparams: SERACTrainingHparams) -> None:
    ranks = rank_and_ranks()[1]
    for name in ("batch_size", "cntr_batch_size"):
        size = getattr(hparams, name)
        if size is not None and size < ranks:
            raise HparamsError(f"{ranks} processes need a {name} of {ranks}, and it is {size}")
