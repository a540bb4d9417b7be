"""What the scope learns from: whose prompt is whose, or what the mixture of both models answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from easyedit_fast.models.tracing import frozen
from easyedit_fast.serac.answers import Answered, routed_logits, row_means
from easyedit_fast.serac.counterfactual import CounterfactualAdapter
from easyedit_fast.serac.hparams import SERACTrainingHparams
from easyedit_fast.serac.scopes import AnyScope
from easyedit_fast.serac.shares import MixtureShare, ScopeShare
from easyedit_fast.serac.training_data import SeracData, unfair_pairs
from easyedit_fast.training.finite import require_finite
from easyedit_fast.training.losses import nll_and_divergence

WHAT = "its loss is"
"""Begins the message of a loss that is not finite."""


def scope_loss(
    scope: AnyScope, data: SeracData, share: ScopeShare, hparams: SERACTrainingHparams
) -> tuple[Tensor, Tensor]:
    """Cross-entropy over the edits and "none of these", and the share that is right.

    Raises:
        NonFiniteError: A record's loss is NaN or infinite.
    """
    requests = [data.requests[place] for place in share.places]
    prompts = [request.prompt for request in requests]
    others = [text for own in share.others for text in own]
    asked = [*share.inside, *share.outside, *others]
    records = len(share.own)
    owners = [
        *share.own,
        *share.own,
        *(at for at, own in zip(share.own, share.others, strict=True) for _ in own),
    ]
    allowed = ~unfair_pairs(asked, requests)
    if not hparams.use_all_negatives:
        allowed[:records] = False
    allowed[range(records), share.own] = True
    allowed[range(2 * records, len(asked)), owners[2 * records :]] = True
    # Where a scope does not look at all edits, it looks at a prompt's own and at near ones.
    own = functional.one_hot(torch.tensor(owners), len(prompts)).bool()
    near = scope.looked_at(asked, prompts, allowed & ~own, hparams.hard_negatives)
    scores = scope.answers(asked, prompts, near | (own & allowed))
    wanted = torch.tensor(share.own + [len(prompts)] * (len(asked) - records)).to(scores.device)
    losses = functional.cross_entropy(scores, wanted, reduction="none")
    require_finite([share.places[at] for at in owners], losses.isfinite(), WHAT)
    weights = torch.full_like(losses, 0.5 / share.outsiders)  # half for those outside
    weights[:records] = 0.5 / share.records
    return (losses * weights).sum(), ((scores.argmax(1) == wanted) * weights).sum()


def mixture_losses(
    scope: AnyScope,
    adapter: CounterfactualAdapter,
    data: SeracData,
    share: MixtureShare,
    hparams: SERACTrainingHparams,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The losses of ``(1 - w) · base + w · counterfactual``, through which both parts learn.

    w is a prompt's similarity to the likeliest edit, which is the one that the counterfactual model
    reads (Mitchell et al., arXiv 2206.06520, their code where ``supervised`` is false).

    Returns:
        Negative log-likelihood of the targets, the part of their tokens that is right, KL(base ‖
        mixture) of the locality prompts' answers, and the part of the prompts that go where they
        should.

    Raises:
        NonFiniteError: A record's loss is NaN or infinite.
    """
    edits = [data.requests[place].prompt for place in share.places]
    own = functional.one_hot(torch.tensor(share.own), len(edits)).bool()
    seen = own | scope.looked_at(share.prompts, edits, ~own, hparams.hard_negatives)
    scores = scope.answers(share.prompts, edits, seen)
    best = scores[:, :-1].argmax(1)
    odds = scores.gather(1, best[:, None])[:, 0] - scores[:, -1]
    rows = [
        data.with_edit(row, share.places[edit])
        for row, edit in zip(share.rows, best.tolist(), strict=True)
    ]
    learns = hparams.parts != "scope" and torch.is_grad_enabled()
    with frozen(adapter.model), torch.set_grad_enabled(learns):
        edited, base = routed_logits(adapter, data.base, rows, [True] * len(rows), share.base)
    mixed = _mixed(base.detach(), edited, odds, rows)
    wanted = torch.tensor([token for row in rows[: share.inside] for token in row.answer])
    wanted = wanted.to(mixed.device)
    nll, kl = nll_and_divergence(mixed, wanted, base[len(wanted) :].detach())
    edit, locality = row_means(nll, rows[: share.inside]), row_means(kl, rows[share.inside :])
    finite = (edit.isfinite(), locality.isfinite())
    require_finite([share.places[at] for at in share.own], torch.cat(finite), WHAT)
    right = row_means((mixed[: len(wanted)].argmax(-1) == wanted).float(), rows[: share.inside])
    goes = torch.where(odds > 0, best, -1).cpu()
    goal = torch.tensor(share.own)
    goal[share.inside :] = -1
    return (
        edit.sum() / share.records,
        right.sum() / share.records,
        locality.sum() / share.records,
        (goes == goal).sum() / (2 * share.records),
    )


def _mixed(base: Tensor, edited: Tensor, odds: Tensor, rows: Sequence[Answered]) -> Tensor:
    """Logarithms of mixed probabilities ``[reads, vocabulary]``, of logits of the same shape.

    Args:
        base: The base model's.
        edited: The counterfactual model's.
        odds: ``[rows]``, logarithms of w / (1 - w).
        rows: The rows, each of which has some reads.
    """
    reads = torch.tensor([row.reads for row in rows], device=odds.device)
    each = odds.repeat_interleave(reads)[:, None].to(base.device)
    return torch.logaddexp(
        base.float().log_softmax(-1) + functional.logsigmoid(-each),
        edited.float().log_softmax(-1) + functional.logsigmoid(each),
    )
