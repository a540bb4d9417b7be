"""The losses that a MEND editor is trained on (arXiv 2110.11309, equation 4).

Rows run from the first edited block on: what enters it is known (`models/tail.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from easyedit_fast.mend.factors import TargetRows, target_nll, token_factors
from easyedit_fast.mend.network import EditorNetwork
from easyedit_fast.models.tail import Tail
from easyedit_fast.models.tracing import row_updates


@dataclasses.dataclass(frozen=True, eq=False)
class TailRows:
    """Rows with what enters the first edited block.

    Attributes:
        rows: The rows.
        tail: Their tail, from their first token on.
    """

    rows: TargetRows
    tail: Tail

    def logits(self, reads: Tensor) -> Tensor:
        """Logits ``[places, vocabulary]`` at the places ``reads [rows, t]``, row by row."""
        row, column = reads.nonzero().unbind(1)
        return self.tail.logits(None, row, column)

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
    """
    gradients = token_factors(edits.target_logits, modules, edits.rows, mean_over=mean_over)
    factors = network(gradients.factors)
    group = torch.tensor(groups, device=gradients.losses.device)
    with edited_in_groups(modules, factors, gradients.tokens, group):
        logits = targets.target_logits()
        changed = locality.logits(reads)
    nll, _ = target_nll(logits, targets.rows.labels)
    return OuterLosses(
        nll.mean(),
        kl_divergence(base_logits, changed),
        gradients.losses,
        logits.detach(),
        changed.detach(),
    )


def kl_divergence(base_logits: Tensor, logits: Tensor) -> Tensor:
    """Mean KL(base ‖ other) of rows of logits ``[n, vocabulary]``, in nats."""
    base = base_logits.float().log_softmax(-1)
    other = logits.float().log_softmax(-1)
    return nn.functional.kl_div(other, base, reduction="batchmean", log_target=True)


@contextlib.contextmanager
def edited_in_groups(
    modules: Mapping[str, nn.Module],
    factors: Mapping[str, tuple[Tensor, Tensor]],
    tokens: Mapping[str, Sequence[int]],
    group: Tensor,
) -> Iterator[None]:
    """Adds to each row's weights the sum of its group's updates.

    Args:
        modules: The modules of the edited weights.
        factors: By weight, x̃ ``[tokens, d_in]`` and δ̃ ``[tokens, d_out]`` of all records.
        tokens: By weight, how many of the tokens are each record's.
        group: ``[records]``, the group of each record and of the row that is run of it.
    """
    with contextlib.ExitStack() as stack:
        for name, module in modules.items():
            owner = group.repeat_interleave(torch.tensor(tokens[name], device=group.device))
            x, delta = (
                pad_sequence([side[owner == n] for n in range(int(group.max()) + 1)], True)[group]
                for side in factors[name]
            )
            stack.enter_context(row_updates(module, delta.mT, x))
        yield
