"""The losses that a MEND editor is trained on (arXiv 2110.11309, equation 4).

Rows run from the first edited block on: what enters it is known (`models/tail.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from easyedit_fast.mend.factors import TargetRows, token_factors
from easyedit_fast.mend.network import EditorNetwork
from easyedit_fast.models.tail import Tail
from easyedit_fast.models.tracing import row_updates

_ROWS_AT_ONCE = 8  # of logits: some megabytes, which stay in a CPU's cache


@dataclasses.dataclass(frozen=True, eq=False)
class TailRows:
    """Rows with what enters the first edited block.

    Attributes:
        rows: The rows.
        tail: Their tail, from their first token on.
    """

    rows: TargetRows
    tail: Tail

    def hidden_states(self, reads: Tensor) -> Tensor:
        """What leaves the last block ``[places, d_model]`` at ``reads [rows, t]``, row by row."""
        row, column = reads.nonzero().unbind(1)
        return self.tail.hidden_states(None, row, column)

    def logits(self, reads: Tensor) -> Tensor:
        """Logits ``[places, vocabulary]`` there."""
        return self.tail.head(self.hidden_states(reads))

    def target_logits(self) -> Tensor:
        """Logits at the places with labels."""
        return self.logits(self.rows.labels != -100)


@dataclasses.dataclass(frozen=True, eq=False)
class OuterLosses:
    """What a training step descends on, and what it is told by.

    Attributes:
        edit: Mean negative log-likelihood of the targets in the edited model.
        locality: Mean KL(base ‖ edited) of the next token over the locality tokens, in nats.
        inner: ``[rows]``, negative log-likelihood of each edit's target before it.
        logits: ``[places, vocabulary]``, the edited model's at the targets.
        locality_logits: ``[tokens, vocabulary]``, the edited model's at the locality tokens.
    """

    edit: Tensor
    locality: Tensor
    inner: Tensor
    logits: Tensor
    locality_logits: Tensor


def outer_losses(
    network: EditorNetwork,
    modules: Mapping[str, nn.Module],
    edits: TailRows,
    targets: TailRows,
    locality: TailRows,
    reads: Tensor,
    base_logits: Tensor,
    groups: Sequence[int],
    *,
    mean_over: Literal["row", "batch"] = "row",
    check: Callable[[Tensor], None] = lambda _: None,
) -> OuterLosses:
    """Edits the model in groups of records, and looks at what became of each record's prompts.

    Args:
        network: The editor network; the losses have its gradients.
        modules: The modules of the edited weights.
        edits: One row a record: the prompt that is edited, with its target.
        targets: One row a record: the prompt whose target shall be likely, the same or another
            wording.
        locality: One row a record: a prompt whose predictions shall stay.
        reads: ``[rows, t]`` bool, the tokens of `locality` whose predictions are looked at.
        base_logits: ``[tokens, vocabulary]``, the unedited model's there, row by row.
        groups: The group of each record, from 0: records of a group are edited together.
        mean_over: As for `token_factors`.
        check: Called with ``[rows]`` bool, whether all is finite that the network gets of each
            record, before it gets it.
    """
    gradients = token_factors(edits.target_logits, modules, edits.rows, mean_over=mean_over)
    check(gradients.finite)
    factors = network(gradients.factors)
    with edited_in_groups(modules, factors, gradients.tokens, groups):
        hidden = [
            targets.hidden_states(targets.rows.labels != -100),
            locality.hidden_states(reads),
        ]
        # Few rows take the head about as long as many: its weight is read once.
        logits = targets.tail.head(torch.cat(hidden))
    wanted = targets.rows.labels[targets.rows.labels != -100].to(logits.device)
    nll, divergence = nll_and_divergence(logits, wanted, base_logits)
    return OuterLosses(
        nll,
        divergence,
        gradients.losses,
        logits.detach()[: len(wanted)],
        logits.detach()[len(wanted) :],
    )


def nll_and_divergence(
    logits: Tensor, labels: Tensor, base_logits: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean negative log-likelihood of tokens, and mean KL(base ‖ edited), both in nats.

    The gradient flows to the edited model's logits alone. It is made on the way, a few rows at a
    time: nothing else of the logits' size is.

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
        nll = nn.functional.nll_loss(log_q, labels)
        gradient[:tokens] = log_q.exp_()
        gradient[torch.arange(tokens, device=labels.device), labels] -= 1
        total = torch.zeros((), device=logits.device)
        places = (part.split(_ROWS_AT_ONCE) for part in (base_logits, logits[tokens:]))
        for base, other, own in zip(*places, gradient[tokens:].split(_ROWS_AT_ONCE), strict=True):
            log_p, log_q = (part.float().log_softmax(-1) for part in (base, other))
            p = log_p.exp()
            total += torch.linalg.vecdot(p, log_p - log_q).sum()
            own.copy_(log_q.exp_().sub_(p))
        ctx.save_for_backward(gradient)
        ctx.tokens = tokens
        return nll, total / len(base_logits)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        counts = ctx.tokens, len(gradient) - ctx.tokens
        scales = [own / count for own, count in zip(outer, counts, strict=True)]
        row = torch.cat([scale.expand(n) for scale, n in zip(scales, counts, strict=True)])
        return gradient * row[:, None].to(gradient.dtype), None, None


@contextlib.contextmanager
def edited_in_groups(
    modules: Mapping[str, nn.Module],
    factors: Mapping[str, tuple[Tensor, Tensor]],
    tokens: Mapping[str, Sequence[int]],
    groups: Sequence[int],
) -> Iterator[None]:
    """Adds to each row's weights the sum of its group's updates.

    Args:
        modules: The modules of the edited weights.
        factors: By weight, x̃ ``[tokens, d_in]`` and δ̃ ``[tokens, d_out]`` of all records.
        tokens: By weight, how many of the tokens are each record's.
        groups: The group of each record and of the row that is run of it, from 0 in order.
    """
    members = [
        [place for place, own in enumerate(groups) if own == group]
        for group in range(max(groups) + 1)
    ]
    with contextlib.ExitStack() as stack:
        for name, module in modules.items():
            x, delta = (
                _by_group(side.split(list(tokens[name])), members)[list(groups)]
                for side in factors[name]
            )
            stack.enter_context(row_updates(module, delta.mT, x))
        yield


def _by_group(parts: Sequence[Tensor], members: Sequence[Sequence[int]]) -> Tensor:
    """The rows of each group's records, ``[groups, rows, d]``, zeros after the last."""
    return pad_sequence([torch.cat([parts[place] for place in own]) for own in members], True)
