"""Losses of an edited model against the targets, and against the unedited model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_ROWS_AT_ONCE = 8  # of logits: some megabytes, which stay in a CPU's cache


def nll_and_divergence(
    logits: Tensor, labels: Tensor, base_logits: Tensor
) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of tokens ``[n]`` and KL(base ‖ edited) ``[m]``, both in nats.

    The gradient flows to the edited model's logits alone. It is made on the way, a few rows at a
    time: going forwards nothing else of the logits' size is.

    Args:
        logits: ``[n + m, vocabulary]``, the edited model's: n rows for the tokens, then m.
        labels: ``[n]``, the tokens.
        base_logits: ``[m, vocabulary]``, the unedited model's.
    """
    nll, divergence = _Losses.apply(logits, labels, base_logits)
    return nll, divergence


class _Losses(torch.autograd.Function):
    """The gradients of both with respect to the logits are q less what is wanted, p or 1."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, base_logits: Tensor
    ) -> tuple[Tensor, Tensor]:
        tokens = len(labels)
        gradient = torch.empty_like(logits)
        log_q = logits[:tokens].float().log_softmax(-1)
        nll = nn.functional.nll_loss(log_q, labels, reduction="none")
        gradient[:tokens] = log_q.exp_()
        gradient[torch.arange(tokens, device=labels.device), labels] -= 1
        divergence = [log_q.new_zeros(0)]
        places = (part.split(_ROWS_AT_ONCE) for part in (base_logits, logits[tokens:]))
        for base, other, own in zip(*places, gradient[tokens:].split(_ROWS_AT_ONCE), strict=True):
            log_p, log_q = (part.float().log_softmax(-1) for part in (base, other))
            p = log_p.exp()
            divergence.append(torch.linalg.vecdot(p, log_p - log_q))
            own.copy_(log_q.exp_().sub_(p))
        ctx.save_for_backward(gradient)
        return nll, torch.cat(divergence)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * torch.cat(outer)[:, None].to(gradient.dtype), None, None
