"""Keys and optimised values of many requests: batch by batch, without those that fail."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from easyedit_fast.data import RequestTokenizer
from easyedit_fast.errors import NonFiniteError
from easyedit_fast.failures import Failures
from easyedit_fast.models.architectures import Architecture
from easyedit_fast.models.limits import context_length, tokens_without_embedding
from easyedit_fast.models.memory import run_in_batches
from easyedit_fast.models.tail import Tail
from easyedit_fast.models.tracing import frozen, row_updates
from easyedit_fast.models.trunk import capture_tails
from easyedit_fast.requests import EditRequest
from easyedit_fast.rome.hparams import ROMEHyperParams
from easyedit_fast.rome.optimise import optimise_values
from easyedit_fast.rome.rows import Rows, build_rows
from easyedit_fast.rome.values import LayerValues
from easyedit_fast.timings import Timings
from easyedit_fast.updates import LowRankUpdate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True)
class ValueFinder:
    """What finds the values of some requests.

    Attributes:
        model: The model.
        tokenizer: Its tokenizer.
        architecture: Where the model's parts are.
        hparams: The hyperparameters.
        requests: The requests.
        templates: The context templates.
        timings: Gets the phases ``tokenise``, ``trunk`` and ``optimise``.
        batch_size: Requests in a batch; fewer where memory runs out.
        failures: Requests that are left out; those that fail are added, or raised.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    architecture: Architecture
    hparams: ROMEHyperParams
    requests: Sequence[EditRequest]
    templates: Sequence[str]
    timings: Timings
    batch_size: int
    failures: Failures

    def find(
        self,
        layers: Sequence[int],
        earlier: Sequence[dict[str, LowRankUpdate]],
        tell: Callable[[int], None],
    ) -> tuple[list[int], dict[int, LayerValues]]:
        """Goes through the requests that have not failed, batch by batch.

        Args:
            layers: The layers, from 0.
            earlier: Updates of layers below, which the model does not hold: those of each request,
                or one mapping for all.
            tell: Called after each batch with the number of requests that are done.

        Returns:
            The places of the requests that did not fail, and their values by layer.
        """
        places = self.failures.among(range(len(self.requests)))
        finished: list[int] = []
        parts: list[dict[int, LayerValues]] = []
        run = functools.partial(self._batch_values, layers, earlier)
        batches = run_in_batches(places, run, self.batch_size, refuse=self.failures.refuse)
        for batch, (usable, found) in batches:
            finished += usable
            parts.append(found)
            tell(batch[-1] + 1)
        if places and places[-1] in self.failures:
            tell(len(self.requests))
        return finished, {
            layer: LayerValues.joined([part[layer] for part in parts if part]) for layer in layers
        }

    def _batch_values(
        self,
        layers: Sequence[int],
        earlier: Sequence[dict[str, LowRankUpdate]],
        places: Sequence[int],
    ) -> tuple[list[int], dict[int, LayerValues]]:
        """The values of the requests at some places, but for those that fail."""
        with self.timings.phase("tokenise"):
            fitting, rows = self.failures.made_of_others(places, self._rows)
        if rows is None:
            return [], {}
        own = [earlier[place] for place in fitting] if len(earlier) > 1 else earlier
        with self.timings.phase("trunk"), self._earlier_layers(own, rows):
            # Leads that rows share are run once, which the updates of each row rule out.
            capture = Tail.capture_layers if own[0] else capture_tails
            tails = capture(
                self.model,
                self.architecture,
                layers,
                rows.input_ids,
                rows.attention_mask,
                rows.fact_position,
            )
        found = {}
        for layer in layers:
            with self.timings.phase("optimise"), frozen(self.model):
                found[layer] = self._optimise(tails.pop(layer), rows, fitting)
        usable = [number for number, place in enumerate(fitting) if place not in self.failures]
        values = {layer: values.of(usable) for layer, values in found.items()}
        return [fitting[number] for number in usable], values

    def _rows(self, places: Sequence[int]) -> Rows:
        return build_rows(
            RequestTokenizer.from_transformers(self.tokenizer),
            [self.requests[place] for place in places],
            self.templates,
            self.hparams.fact_token,
            self.model.device,
            context=context_length(self.model),
            unknown=tokens_without_embedding(self.model, self.tokenizer),
        )

    def _optimise(self, tail: Tail, rows: Rows, places: Sequence[int]) -> LayerValues:
        start = time.perf_counter()
        keys, values = tail.key.float(), tail.value.float()
        rows = rows.to(values.device)  # the edited layer's, which need not be the model's
        unusable = ~(keys.isfinite().all(dim=1) & values.isfinite().all(dim=1))
        what = f"its activations at layer {tail.layer} hold"
        self._refuse_non_finite(what, rows.request[unusable], places)
        found = optimise_values(tail, rows, values[rows.bare_row], self.hparams)
        diverged = (~found.delta.isfinite().all(dim=1)).nonzero().squeeze(1)
        self._refuse_non_finite("the optimisation of its value gave", diverged, places)
        steps, losses = found.steps.tolist(), found.losses.transpose(0, 1).tolist()
        return LayerValues(
            keys[rows.bare_row],
            _template_mean(keys, rows),
            found.delta,
            [loss[:step] for loss, step in zip(losses, steps, strict=True)],
            time.perf_counter() - start,
        )

    def _refuse_non_finite(self, what: str, requests: Tensor, places: Sequence[int]) -> None:
        """Refuses requests ``[n]``, numbered within the batch."""
        for number in requests.tolist():
            self.failures.refuse(
                places[number],
                NonFiniteError(
                    f"{what} NaN or infinity; nothing was changed. Load the model in float32 or "
                    "bfloat16, or leave that record out"
                ),
            )

    @contextlib.contextmanager
    def _earlier_layers(
        self, updates: Sequence[dict[str, LowRankUpdate]], rows: Rows
    ) -> Iterator[None]:
        """Lets each row carry the updates of the layers below that are edited already."""
        with contextlib.ExitStack() as stack:
            for name in updates[0]:
                projection = self.model.get_submodule(name.removesuffix(".weight"))
                own = [update[name] for update in updates]
                stack.enter_context(
                    row_updates(
                        projection,
                        _for_rows([update.output_factor for update in own], rows, projection),
                        _for_rows([update.input_factor for update in own], rows, projection),
                    )
                )
            yield


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
