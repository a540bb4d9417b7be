"""ROME's optimisation of v*, for many requests at once.

For each request a delta is sought which, added to the MLP's output at the subject's last token,
makes the target probable under every context template (Meng et al. 2022, arXiv 2202.05262,
equation 4, in the form of its code):

    L(δ) = mean over templates of the target tokens' mean NLL
         + kl_factor · KL(p_δ ‖ p_0) at "{subject} is a"
         + v_weight_decay · ‖δ‖ / ‖v‖²

with the divergence in the direction of that code, Σ p_δ log(p_δ / p_0).

Requests do not mix: each has its own delta, its own loss and its own end, and leaves the batch
when it has ended.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from easyedit_fast.models.ragged import RaggedTail
from easyedit_fast.models.tail import Tail
from easyedit_fast.rome.adam import Adam
from easyedit_fast.rome.descent import NormalisedDescent
from easyedit_fast.rome.hparams import ROMEHyperParams
from easyedit_fast.rome.rows import Rows
from easyedit_fast.timings import each, spanned

_STEPS_BETWEEN_LOOKS = 4
"""Steps on a GPU between two looks at who has ended; a look waits for the device."""


@dataclasses.dataclass(frozen=True, eq=False)
class OptimisedValues:
    """What the optimisation found.

    Attributes:
        delta: δ, [requests, d_out] float32.
        losses: [steps, requests, 4] float32: total, NLL, KL and weight decay before each step.
        steps: [requests] int64: how many of these losses each request has; the rest are zero.
    """

    delta: Tensor
    losses: Tensor
    steps: Tensor


def optimise_values(
    tail: Tail, rows: Rows, initial_values: Tensor, hparams: ROMEHyperParams
) -> OptimisedValues:
    """Optimises the deltas of all requests of a batch.

    Args:
        tail: The model above the edited layer, captured at ``rows.fact_position``.
        rows: The rows of the requests, on the device of `initial_values`.
        initial_values: v, [requests, d_out] float32: the value under the first template.
        hparams: Steps, step size, weights of the loss, bound of the norm.
    """
    found = OptimisedValues(
        delta=torch.zeros_like(initial_values),
        losses=initial_values.new_zeros(hparams.v_num_grad_steps, len(initial_values), 4),
        steps=torch.zeros(len(initial_values), dtype=torch.int64, device=initial_values.device),
    )
    batch = _Batch.whole(tail, rows, initial_values, hparams)
    looks = 1 if initial_values.device.type == "cpu" else _STEPS_BETWEEN_LOOKS
    for step in each("step", range(hparams.v_num_grad_steps)):
        terms, least = batch.losses()
        found.losses[step, batch.members] = terms.detach() * batch.running[:, None]
        found.steps[batch.members] += batch.running
        batch.running &= ~(terms[:, 0].detach() < hparams.v_loss_threshold)
        if hparams.v_stop_probability is not None:
            batch.running &= ~(least >= math.log(hparams.v_stop_probability))
        if step == hparams.v_num_grad_steps - 1:
            break
        staying = batch.running.nonzero().squeeze(1) if step % looks == 0 else batch.running
        if len(staying) == 0:
            break
        batch.step(terms[:, 0])
        if len(staying) < len(batch.members):
            found.delta[batch.members] = batch.delta.detach()
            batch = batch.select(staying)
    found.delta[batch.members] = batch.delta.detach()
    return dataclasses.replace(found, losses=found.losses[: step + 1])


@dataclasses.dataclass(frozen=True, eq=False)
class _Reading:
    """Which logits the loss reads, and how they count.

    Attributes:
        rows: [targets + n]: the row of each target token, then the essence row of each request.
        columns: [targets + n]: the position whose logits are read.
        target_id: [targets].
        request: [targets]: the request of each target token.
        share: [targets] float32: 1 / (target tokens of the row · templates of the request).
    """

    rows: Tensor
    columns: Tensor
    target_id: Tensor
    request: Tensor
    share: Tensor

    @classmethod
    def of(cls, rows: Rows) -> _Reading:
        essence = rows.is_essence.nonzero().squeeze(1)
        tokens = torch.bincount(rows.target_row, minlength=len(rows.request))
        templates = torch.bincount(rows.request[~rows.is_essence])
        request = rows.request[rows.target_row]
        return cls(
            rows=torch.cat([rows.target_row, essence]),
            columns=torch.cat([rows.target_position, rows.fact_position[essence]]),
            target_id=rows.target_id,
            request=request,
            share=1.0 / (tokens[rows.target_row] * templates[request]),
        )


@dataclasses.dataclass(eq=False)
class _Batch:
    """The requests that still run, and their part of everything.

    Attributes:
        tail: Tail of their rows.
        ragged: The same in groups of about the same length.
        rows: Their rows; ``rows.request`` counts within the batch.
        reading: Which logits the loss reads.
        members: [n]: their places in the whole list of requests.
        delta: [n, d_out] float32, the leaf that is optimised.
        initial_norm: [n], ‖v‖.
        initial_log_probs: [n, vocabulary], log p_0 at "{subject} is a"; None before the first
            step.
        running: [n] bool; the delta of a request that has ended moves no more.
        optimiser: Its state.
        hparams: The hyperparameters.
    """

    tail: Tail
    ragged: RaggedTail
    rows: Rows
    reading: _Reading
    members: Tensor
    delta: Tensor
    initial_norm: Tensor
    initial_log_probs: Tensor | None
    running: Tensor
    optimiser: Adam | NormalisedDescent
    hparams: ROMEHyperParams

    @classmethod
    def whole(
        cls, tail: Tail, rows: Rows, initial_values: Tensor, hparams: ROMEHyperParams
    ) -> _Batch:
        requests, device = len(initial_values), initial_values.device
        delta = torch.zeros_like(initial_values).requires_grad_()
        reading = _Reading.of(rows)
        norm = initial_values.norm(dim=1)
        return cls(
            tail=tail,
            ragged=RaggedTail(tail, reading.rows, reading.columns),
            rows=rows,
            reading=reading,
            members=torch.arange(requests, device=device),
            delta=delta,
            initial_norm=norm,
            initial_log_probs=None,
            running=torch.ones(requests, dtype=torch.bool, device=device),
            optimiser=(
                Adam.start(delta, hparams.v_lr)
                if hparams.v_optimizer == "adam"
                else NormalisedDescent.start(norm, delta.shape[1], hparams.v_lr)
            ),
            hparams=hparams,
        )

    @spanned("forward", lambda batch: {"requests": len(batch.members)})
    def losses(self) -> tuple[Tensor, Tensor]:
        """The loss of each request, and how sure the model is of its target.

        Returns:
            Total, NLL, KL and weight decay, [n, 4] float32, and the log-probability of the least
            probable target token under any template, [n] float32, without gradients.
        """
        reading, targets = self.reading, len(self.reading.target_id)
        logits = self.ragged.logits(self.delta[self.rows.request])
        # The head may be on another device than the edited layer, where all else is.
        log_probs = torch.log_softmax(logits.to(self.delta.device, torch.float32), dim=-1)
        chosen = log_probs[:targets].gather(1, reading.target_id[:, None]).squeeze(1)
        nll = torch.zeros_like(self.initial_norm).index_add(
            0, reading.request, -chosen * reading.share
        )
        essence = log_probs[targets:]
        if self.initial_log_probs is None:
            self.initial_log_probs = essence.detach()
        initial = self.initial_log_probs
        kl = self.hparams.kl_factor * (essence.exp() * (essence - initial)).sum(dim=1)
        decay = self.hparams.v_weight_decay * self.delta.norm(dim=1) / self.initial_norm**2
        least = torch.zeros_like(nll.detach()).scatter_reduce(
            0, reading.request, chosen.detach(), "amin"
        )
        return torch.stack([nll + kl + decay, nll, kl, decay], dim=1), least

    @spanned("backward")
    def step(self, total: Tensor) -> None:
        """One step of the optimiser for those that run, then the projection into the ball."""
        (gradient,) = torch.autograd.grad(total.sum(), self.delta)
        with torch.no_grad():
            moved = self.delta + self.optimiser.step(gradient)
            bound = self.hparams.clamp_norm_factor * self.initial_norm
            norm = moved.norm(dim=1)
            moved = torch.where((norm > bound)[:, None], moved * (bound / norm)[:, None], moved)
            delta = torch.where(self.running[:, None], moved, self.delta)
        self.delta = delta.requires_grad_()

    def select(self, staying: Tensor) -> _Batch:
        """The batch of some of its requests, [m] places within the batch."""
        assert self.initial_log_probs is not None
        kept = torch.isin(self.rows.request, staying).nonzero().squeeze(1)
        rows = self.rows.select(kept)
        reading = _Reading.of(rows)
        tail = self.tail.select(kept.cpu())  # its layers may be on several devices
        return _Batch(
            tail=tail,
            ragged=RaggedTail(tail, reading.rows, reading.columns),
            rows=rows,
            reading=reading,
            members=self.members[staying],
            delta=self.delta.detach()[staying].requires_grad_(),
            initial_norm=self.initial_norm[staying],
            initial_log_probs=self.initial_log_probs[staying],
            running=self.running[staying],
            optimiser=self.optimiser.select(staying),
            hparams=self.hparams,
        )
