"""ROME for one request and for many: keys and values, v*, and the closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from easyedit_fast.data import RequestTokenizer
from easyedit_fast.errors import HparamsError, ModelError
from easyedit_fast.failures import Failures
from easyedit_fast.models.architectures import (
    Architecture,
    architecture_of,
    describe_architecture,
    key_size,
)
from easyedit_fast.models.fingerprint import model_fingerprint
from easyedit_fast.models.memory import BatchSize
from easyedit_fast.requests import EditRequest
from easyedit_fast.rome.batches import ValueFinder
from easyedit_fast.rome.context_templates import (
    checked_templates,
    context_templates,
    read_context_templates,
)
from easyedit_fast.rome.hparams import ROMEHyperParams, resolve_rome_hparams
from easyedit_fast.rome.plan import Lengths, requests_per_batch
from easyedit_fast.rome.statistics import LayerStatistics
from easyedit_fast.rome.values import LayerValues
from easyedit_fast.timings import Timings
from easyedit_fast.updates import ComputedUpdates, LowRankUpdate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Rome:
    """ROME, made for one model.

    Attributes:
        name: ``rome``.
        hparams: The hyperparameters, a copy of what was given. Layers and statistics are settled
            with them: for other values make a new `Rome` (or a new editor).
        architecture: Where the model's parts are.
    """

    name = "rome"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        hparams: Any = None,
        preset: str | None = None,
        architecture: Architecture | None = None,
    ) -> None:
        """Resolves hyperparameters and statistics; nothing is computed yet.

        Args:
            model: The model to edit.
            tokenizer: Its (fast) tokenizer.
            hparams: As `resolve_rome_hparams` takes them.
            preset: Likewise.
            architecture: Description of a family that the package does not know.
        """
        resolved = resolve_rome_hparams(hparams, model, architecture, preset)
        self.hparams: ROMEHyperParams = resolved.model_copy(deep=True)
        self.architecture = architecture or _architecture(model, self.hparams)
        _refuse_other_modules(self.architecture, self.hparams)
        self._model = model
        self._tokenizer = tokenizer
        RequestTokenizer.from_transformers(tokenizer)  # refuses one that cannot be used
        self._templates: tuple[str, list[str]] | None = None
        self._layers = sorted(self.hparams.layers)
        modules = [
            (
                layer,
                self.architecture.projection_name(layer),
                key_size(model, self.architecture, layer),
            )
            for layer in self._layers
        ]
        name = str(getattr(model, "name_or_path", ""))
        fingerprint = model_fingerprint(model, self.architecture)
        self._statistics = LayerStatistics.resolve(self.hparams, name, fingerprint, modules)

    def settings(self) -> dict[str, Any]:
        """What the result depends on beside the requests, as plain JSON values."""
        moments = self._statistics.moments
        return {
            "hyperparameters": self.hparams.source,
            "layers": self._layers,
            "mom2_adjustment": bool(moments),
            "second_moment": {layer: moment.source for layer, moment in moments.items()} or None,
            "consistent_keys": self.hparams.consistent_keys,
        }

    def used_hparams(self) -> dict[str, Any]:
        """The hyperparameters with what they leave open filled in, as plain JSON values."""
        return {
            **self.hparams.to_dict(),
            "mom2_adjustment": bool(self._statistics.moments),
            "context_templates": self.context_templates(),
        }

    def requests_at_once(self, requests: Sequence[EditRequest]) -> int:
        """How many of these are optimised together: as many as the memory at hand takes."""
        return self._requests_at_once(requests, self._layers, self.context_templates())

    def compute(
        self,
        requests: Sequence[EditRequest],
        *,
        isolated: bool,
        timings: Timings,
        batch_size: BatchSize = "auto",
        failures: Failures | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> ComputedUpdates:
        """Computes the updates of some requests; the model is left as it was.

        Args:
            requests: The requests.
            isolated: One update a request, or one for all.
            timings: Gets the phases ``templates``, ``tokenise``, ``trunk``, ``optimise`` and
                ``solve``.
            batch_size: Requests that are optimised at once; fewer where memory runs out.
            failures: Requests that are left out, those that fail here among them; None raises the
                first failure.
            progress: Called after each batch of requests with the number done and of all; with
                several layers a request counts once a layer.

        Raises:
            RecordError: A request does not fit the model, has values that are not finite, or takes
                more memory than there is. It is named.
        """
        finder = self._finder(requests, self._layers, timings, batch_size, failures)
        failures = finder.failures
        updates: list[dict[str, LowRankUpdate]] = [{} for _ in (requests if isolated else [0])]
        details: list[dict[str, Any]] = [{"layers": {}} for _ in requests]
        total = len(requests) * len(self._layers)
        for number, layer in enumerate(self._layers):

            def tell(done: int, before: int = number * len(requests)) -> None:
                if progress is not None:
                    progress(before + done, total)

            failed = len(failures)
            places, values = finder.find([layer], updates, tell)
            if places:
                with timings.phase("solve"):
                    self._solve(layer, places, values[layer], failures, updates, details)
            if number and not isolated and len(failures) > failed:
                # What was solved for the layers below holds those that failed here.
                return self.compute(
                    requests,
                    isolated=isolated,
                    timings=timings,
                    batch_size=batch_size,
                    failures=failures,
                    progress=progress,
                )
        finished = failures.among(range(len(requests)))
        return ComputedUpdates(
            [updates[place] for place in finished] if isolated else updates[: len(finished)],
            [{} if place in failures else detail for place, detail in enumerate(details)],
        )

    def values(
        self,
        requests: Sequence[EditRequest],
        layers: Sequence[int],
        *,
        timings: Timings,
        batch_size: BatchSize = "auto",
        progress: Callable[[int], None] | None = None,
    ) -> dict[int, LayerValues]:
        """Keys and optimised values at several layers, at each as if it alone were edited.

        The keys of all layers come from one forward pass a batch, and so does all else that the
        optimisations above them start from. Closed forms with one second moment or another
        (`LayerValues.solve`) need no more of the model.

        Args:
            requests: The requests.
            layers: The layers, from 0; they need not be those of the hyperparameters.
            timings: As for `compute`, without ``solve``.
            batch_size: As for `compute`.
            progress: Called after each batch of requests with the number done.

        Raises:
            ModelError: A layer is not in the model.
            RecordError: As `compute`.
        """
        finder = self._finder(requests, layers, timings, batch_size, None)
        return finder.find(layers, [{}], progress or (lambda _: None))[1]

    def _finder(
        self,
        requests: Sequence[EditRequest],
        layers: Sequence[int],
        timings: Timings,
        batch_size: BatchSize,
        failures: Failures | None,
    ) -> ValueFinder:
        with timings.phase("templates"):
            templates = self.context_templates()
        if batch_size == "auto":
            batch_size = self._requests_at_once(requests, layers, templates)
        return ValueFinder(
            model=self._model,
            tokenizer=self._tokenizer,
            architecture=self.architecture,
            hparams=self.hparams,
            requests=requests,
            templates=templates,
            timings=timings,
            batch_size=batch_size,
            failures=Failures() if failures is None else failures,
        )

    def _requests_at_once(
        self, requests: Sequence[EditRequest], layers: Sequence[int], templates: Sequence[str]
    ) -> int:
        tokenizer = RequestTokenizer.from_transformers(self._tokenizer)
        lengths = Lengths.of(tokenizer, requests, templates, self.hparams.fact_token)
        return requests_per_batch(self._model, self.architecture, min(layers), lengths)

    def _solve(
        self,
        layer: int,
        places: Sequence[int],
        values: LayerValues,
        failures: Failures,
        updates: list[dict[str, LowRankUpdate]],
        details: list[dict[str, Any]],
    ) -> None:
        """Adds the layer's updates to `updates`, and what they tell to `details`."""
        name = self.architecture.weight_name(layer)
        factor = self._statistics.factor(layer, values.deltas.device)
        together = list(range(len(places)))
        for share in [[number] for number in together] if len(updates) > 1 else [together]:
            solved = None
            while share and solved is None:
                with failures.catching(places):
                    solved = values.solve(
                        share,
                        factor,
                        self.architecture.weight_layout,
                        consistent=self.hparams.consistent_keys,
                    )
                share = [number for number in share if places[number] not in failures]
            if solved is None:
                continue
            updates[places[share[0]] if len(updates) > 1 else 0][name] = solved.update
            for number in share:
                losses = values.losses[number]
                details[places[number]]["layers"][layer] = {
                    "steps": len(losses),
                    "losses": losses,
                    # JSON has no infinity.
                    "condition": solved.condition if math.isfinite(solved.condition) else None,
                }

    def context_templates(self) -> list[str]:
        """The context templates: given, from a file, or the model's own (kept in the cache)."""
        given = self.hparams.context_templates
        if isinstance(given, str):
            return read_context_templates(given)
        if given is not None:
            return checked_templates(given)
        fingerprint = model_fingerprint(self._model, self.architecture)
        if self._templates is None or self._templates[0] != fingerprint:
            pairs = [(length, n) for length, n in self.hparams.context_template_length_params]
            made = context_templates(
                self._model, self._tokenizer, fingerprint, pairs, self.hparams.seed
            )
            self._templates = fingerprint, made
        return list(self._templates[1])


def _architecture(model: PreTrainedModel, hparams: ROMEHyperParams) -> Architecture:
    """The table's row, else what the hyperparameters' module templates say."""
    try:
        return architecture_of(model)
    except ModelError:
        return describe_architecture(
            model,
            rewrite_module_tmp=hparams.rewrite_module_tmp,
            layer_module_tmp=hparams.layer_module_tmp,
            mlp_module_tmp=hparams.mlp_module_tmp,
            attn_module_tmp=hparams.attn_module_tmp,
            ln_f_module=hparams.ln_f_module,
            lm_head_module=hparams.lm_head_module,
        )


def _refuse_other_modules(architecture: Architecture, hparams: ROMEHyperParams) -> None:
    """Module names in a file are never passed over: they are the architecture's or refused."""
    layer = f"{architecture.blocks}.{{}}"
    known = {
        "rewrite_module_tmp": f"{layer}.{architecture.mlp_output_projection}",
        "layer_module_tmp": layer,
        "mlp_module_tmp": f"{layer}.{architecture.mlp}",
    }
    for name, path in known.items():
        given = getattr(hparams, name)
        if given != path:
            raise HparamsError(
                f"{name} {given!r} is not the {architecture.name} row's {path!r}; leave it out, "
                "or describe the model by architecture=…"
            )
