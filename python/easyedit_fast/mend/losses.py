"""The losses that a MEND editor is trained on (arXiv 2110.11309, equation 4).

Rows run from the first edited block on: what enters it is known (`models/tail.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from easyedit_fast.mend.factors import TargetRows, token_factors
from easyedit_fast.mend.network import EditorNetwork
from easyedit_fast.models.tail import Tail
from easyedit_fast.models.tracing import row_updates
from easyedit_fast.training.losses import nll_and_divergence


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
        nll: ``[places]``, negative log-likelihood of the targets' tokens in the edited model.
        divergence: ``[tokens]``, KL(base ‖ edited) of the next token at the locality tokens, in
            nats.
        inner: ``[rows]``, negative log-likelihood of each edit's target before it.
        right: ``[places]`` bool, whether the target's token is the edited model's likeliest.
    """

    nll: Tensor
    divergence: Tensor
    inner: Tensor
    right: Tensor

    @property
    def edit(self) -> Tensor:
        """Mean negative log-likelihood of the targets."""
        return self.nll.mean()

    @property
    def locality(self) -> Tensor:
        """Mean divergence of the locality tokens."""
        return self.divergence.mean()


def outer_losses(
    network: EditorNetwork,
    modules: Mapping[str, nn.Module],
    edits: TailRows,
    targets: TailRows,
    locality: TailRows,
    reads: Tensor,
    final: Tensor,
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
        final: ``[tokens, d_model]``, what leaves the unedited model's last block there, row by row.
        groups: The group of each record, from 0 in order: records of a group are edited together.
        mean_over: As for `token_factors`.
        check: Called with ``[rows]`` bool, whether all is finite that the network gets of each
            record, before it gets it.
    """
    base: list[Tensor] = []

    def target_logits() -> Tensor:
        hidden = edits.hidden_states(edits.rows.labels != -100)
        logits = edits.tail.head(hidden, final)
        base.append(logits.detach()[len(hidden) :])
        return logits[: len(hidden)]

    gradients = token_factors(target_logits, modules, edits.rows, mean_over=mean_over)
    check(gradients.finite)
    factors = network(gradients.factors)
    with edited_in_groups(modules, factors, gradients.tokens, groups):
        hidden = [
            targets.hidden_states(targets.rows.labels != -100),
            locality.hidden_states(reads),
        ]
        logits = targets.tail.head(torch.cat(hidden))
    wanted = targets.rows.labels[targets.rows.labels != -100].to(logits.device)
    nll, divergence = nll_and_divergence(logits, wanted, *base)
    right = logits.detach()[: len(wanted)].argmax(-1) == wanted
    return OuterLosses(nll, divergence, gradients.losses, right)


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
    assert list(groups) == sorted(groups)  # groups' rows follow each other
    rows = list(Counter(groups).values())
    ends = [0, *itertools.accumulate(rows)]
    with contextlib.ExitStack() as stack:
        for name, module in modules.items():
            own = [sum(tokens[name][start:end]) for start, end in itertools.pairwise(ends)]
            x, delta = (pad_sequence(side.split(own), True) for side in factors[name])
            stack.enter_context(row_updates(module, delta.mT, x, rows))
        yield
