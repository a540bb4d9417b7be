"""ROME for one request and for many: keys and values, v*, and the closed form."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from easyedit_fast.data import RequestTokenizer
from easyedit_fast.errors import HparamsError, ModelError, NonFiniteError
from easyedit_fast.models.architectures import (
    Architecture,
    architecture_of,
    describe_architecture,
    edited_module,
    key_size,
)
from easyedit_fast.models.fingerprint import model_fingerprint
from easyedit_fast.models.limits import context_length, tokens_without_embedding
from easyedit_fast.models.tail import Tail
from easyedit_fast.models.tracing import frozen, row_updates
from easyedit_fast.models.trunk import capture_tails
from easyedit_fast.requests import EditRequest
from easyedit_fast.rome.context_templates import (
    checked_templates,
    context_templates,
    read_context_templates,
)
from easyedit_fast.rome.hparams import ROMEHyperParams, resolve_rome_hparams
from easyedit_fast.rome.optimise import OptimisedValues, optimise_values
from easyedit_fast.rome.rows import Rows, build_rows
from easyedit_fast.rome.statistics import LayerStatistics
from easyedit_fast.rome.values import LayerValues
from easyedit_fast.timings import Timings
from easyedit_fast.updates import ComputedUpdates, LowRankUpdate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_ROWS_PER_BATCH = 128
"""Rows (request × template) that are optimised at once."""


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
        self._request_tokenizer = RequestTokenizer.from_transformers(tokenizer)
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
        """How many of these are optimised together."""
        return max(1, _ROWS_PER_BATCH // (len(self.context_templates()) + 1))

    def compute(
        self,
        requests: Sequence[EditRequest],
        *,
        isolated: bool,
        timings: Timings,
        progress: Callable[[int, int], None] | None = None,
    ) -> ComputedUpdates:
        """Computes the updates of some requests; the model is left as it was.

        Args:
            requests: The requests.
            isolated: One update a request, or one for all.
            timings: Gets the phases ``templates``, ``tokenise``, ``trunk``, ``optimise`` and
                ``solve``.
            progress: Called after each batch of requests with the number done and of all; with
                several layers a request counts once a layer.

        Raises:
            NonFiniteError: Names the requests whose values are not finite.
        """
        with timings.phase("templates"):
            templates = self.context_templates()
        shares = len(requests) if isolated else 1
        updates: list[dict[str, LowRankUpdate]] = [{} for _ in range(shares)]
        details: list[dict[str, Any]] = [{"layers": {}} for _ in requests]
        total = len(requests) * len(self._layers)
        for number, layer in enumerate(self._layers):

            def tell(done: int, before: int = number * len(requests)) -> None:
                if progress is not None:
                    progress(before + done, total)

            values = self._values([layer], requests, templates, updates, timings, tell)
            with timings.phase("solve"):
                self._solve(layer, values[layer], updates, details)
        return ComputedUpdates(updates, details)

    def values(
        self,
        requests: Sequence[EditRequest],
        layers: Sequence[int],
        *,
        timings: Timings,
        first_request: int = 0,
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
            first_request: Number of the first request in the whole list, for errors.
            progress: Called after each batch of requests with the number done.

        Raises:
            ModelError: A layer is not in the model.
            NonFiniteError: Names the request whose values are not finite.
        """
        with timings.phase("templates"):
            templates = self.context_templates()
        tell = progress or (lambda _: None)
        return self._values(layers, requests, templates, [{}], timings, tell, first_request)

    def _values(
        self,
        layers: Sequence[int],
        requests: Sequence[EditRequest],
        templates: Sequence[str],
        earlier: Sequence[dict[str, LowRankUpdate]],
        timings: Timings,
        tell: Callable[[int], None],
        first_request: int = 0,
    ) -> dict[int, LayerValues]:
        """`values`, batch by batch of requests, in a model that holds earlier updates."""
        size = self.requests_at_once(requests)
        parts: dict[int, list[LayerValues]] = {layer: [] for layer in layers}
        for first in range(0, len(requests), size):
            batch = requests[first : first + size]
            with timings.phase("tokenise"):
                rows = build_rows(
                    self._request_tokenizer,
                    batch,
                    templates,
                    self.hparams.fact_token,
                    self._model.device,
                    context=context_length(self._model),
                    unknown=tokens_without_embedding(self._model, self._tokenizer),
                    first_request=first_request + first,
                )
            own = earlier[first : first + size] if len(earlier) > 1 else earlier
            with timings.phase("trunk"), self._earlier_layers(own, rows):
                # Leads that rows share are run once, which the updates of each row rule out.
                capture = Tail.capture_layers if own[0] else capture_tails
                tails = capture(
                    self._model,
                    self.architecture,
                    layers,
                    rows.input_ids,
                    rows.attention_mask,
                    rows.fact_position,
                )
            for layer in layers:
                with timings.phase("optimise"), frozen(self._model):
                    found = self._optimise(tails.pop(layer), rows, first_request + first)
                parts[layer].append(found)
            tell(first + len(batch))
        return {layer: LayerValues.joined(found) for layer, found in parts.items()}

    def _optimise(self, tail: Tail, rows: Rows, first: int) -> LayerValues:
        start = time.perf_counter()
        keys, values = tail.key.float(), tail.value.float()
        rows = rows.to(values.device)  # the edited layer's, which need not be the model's
        found = optimise_values(tail, rows, values[rows.bare_row], self.hparams)
        _refuse_non_finite(found, first)
        steps, losses = found.steps.tolist(), found.losses.transpose(0, 1).tolist()
        return LayerValues(
            keys[rows.bare_row],
            _template_mean(keys, rows),
            found.delta,
            [loss[:step] for loss, step in zip(losses, steps, strict=True)],
            time.perf_counter() - start,
        )

    def _solve(
        self,
        layer: int,
        values: LayerValues,
        updates: list[dict[str, LowRankUpdate]],
        details: list[dict[str, Any]],
    ) -> None:
        """Adds the layer's updates to `updates`, and what they tell to `details`."""
        name = self.architecture.weight_name(layer)
        factor = self._statistics.factor(layer, values.deltas.device)
        width = 1 if len(updates) > 1 else len(values.deltas)
        for place, own in enumerate(updates):
            part = slice(place * width, (place + 1) * width)
            solved = values.solve(
                part,
                factor,
                self.architecture.weight_layout,
                consistent=self.hparams.consistent_keys,
            )
            own[name] = solved.update
            for detail, losses in zip(details[part], values.losses[part], strict=True):
                detail["layers"][layer] = {
                    "steps": len(losses),
                    "losses": losses,
                    # JSON has no infinity.
                    "condition": solved.condition if math.isfinite(solved.condition) else None,
                }

    @contextlib.contextmanager
    def _earlier_layers(
        self, updates: Sequence[dict[str, LowRankUpdate]], rows: Rows
    ) -> Iterator[None]:
        """Lets each row carry the updates of the layers below that are edited already."""
        with contextlib.ExitStack() as stack:
            for layer in self._layers:
                name = self.architecture.weight_name(layer)
                if name in updates[0]:
                    projection = edited_module(self._model, self.architecture, layer)
                    own = [update[name] for update in updates]
                    stack.enter_context(
                        row_updates(
                            projection,
                            _for_rows([update.output_factor for update in own], rows, projection),
                            _for_rows([update.input_factor for update in own], rows, projection),
                        )
                    )
            yield

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


def _for_rows(factors: Sequence[Tensor], rows: Rows, projection: nn.Module) -> Tensor:
    """A factor a row, [rows, …], on the projection's device: its request's, or the one for all."""
    device = next(projection.parameters()).device
    if len(factors) == 1:
        return factors[0].to(device).expand(len(rows.request), -1, -1)
    return torch.stack(list(factors)).to(device)[rows.request.to(device)]


def _template_mean(states: Tensor, rows: Rows) -> Tensor:
    """Mean over a request's templates of ``states [rows, d]``: [requests, d]."""
    request = rows.request[~rows.is_essence]
    total = states.new_zeros(len(rows.bare_row), states.shape[1])
    total.index_add_(0, request, states[~rows.is_essence])
    return total / torch.bincount(request)[:, None]


def _refuse_non_finite(found: OptimisedValues, first: int) -> None:
    bad = (~found.delta.isfinite().all(dim=1)).nonzero().squeeze(1).tolist()
    if bad:
        raise NonFiniteError(
            f"the optimisation of request {first + bad[0]} gave NaN or infinity; nothing was "
            "changed. Load the model in float32 or bfloat16, or leave that request out"
        )
