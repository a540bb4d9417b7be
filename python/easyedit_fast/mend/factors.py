"""The gradients of some weights as factors: x and δ of each token, without any weight gradient."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from easyedit_fast.errors import ModelError
from easyedit_fast.models.passes import head_only_at
from easyedit_fast.models.tracing import edit_output, frozen

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclasses.dataclass(frozen=True, eq=False)
class TargetRows:
    """Prompts with their targets, one row a request, padded on the right.

    The last token of a row is left out where nothing is predicted from it.

    Attributes:
        input_ids: ``[rows, t]`` int64.
        attention_mask: ``[rows, t]`` int64.
        labels: ``[rows, t]`` int64: the target's token that each place predicts, else -100.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor

    @classmethod
    def of(cls, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> TargetRows:
        """From whole rows, whose labels stand at the target's own tokens.

        Tokens that no prediction of a target depends on are cut off.
        """
        wanted = labels[:, 1:]
        # Up to the last place that predicts a target's token.
        needed = (wanted != -100).flip(1).cummax(dim=1).values.flip(1)
        width = int(needed.sum(dim=1).max())
        return cls(
            input_ids[:, :width],
            (attention_mask[:, :-1] * needed)[:, :width],
            wanted[:, :width],
        )

    def to(self, device: torch.device) -> TargetRows:
        """The same on a device."""
        return TargetRows(
            self.input_ids.to(device), self.attention_mask.to(device), self.labels.to(device)
        )


@dataclasses.dataclass(frozen=True, eq=False)
class TokenFactors:
    """x and δ of all tokens.

    Tokens whose x or δ is zero are left out, as in MEND's code: in the last block those that
    predict nothing.

    Attributes:
        factors: By weight, x ``[tokens, d_in]`` and δ ``[tokens, d_out]``, in the model's dtype:
            the gradient of row i's loss is the sum over its tokens of δ xᵀ.
        tokens: By weight, how many of the tokens are each row's; rows follow each other.
        losses: ``[rows]`` float32, mean negative log-likelihood of each row's target.
        inputs_finite: ``[rows]``, whether every x of a row is finite.
        deltas_finite: ``[rows]``, whether every δ is.
    """

    factors: dict[str, tuple[Tensor, Tensor]]
    tokens: dict[str, list[int]]
    losses: Tensor
    inputs_finite: Tensor
    deltas_finite: Tensor

    @property
    def finite(self) -> Tensor:
        """``[rows]``, whether all of a row is finite."""
        return self.inputs_finite & self.deltas_finite & self.losses.isfinite()


def model_logits(model: PreTrainedModel, rows: TargetRows) -> Tensor:
    """Logits of the whole model at the places with labels, ``[places, vocabulary]``."""
    with frozen(model), head_only_at(model, rows.labels != -100):
        output = model(
            input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False
        )
    logits: Tensor = output.logits[0]
    return logits


def target_nll(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of each target token, and its row, ``[places]`` both.

    Args:
        logits: ``[places, vocabulary]``, at the places with labels, row by row.
        labels: ``[rows, t]``; -100 where there is none.
    """
    reads = labels != -100
    nll = nn.functional.cross_entropy(
        logits.float(), labels[reads].to(logits.device), reduction="none"
    )
    return nll, reads.nonzero()[:, 0].to(nll.device)


def token_factors(
    logits: Callable[[], Tensor],
    modules: Mapping[str, nn.Module],
    rows: TargetRows,
    *,
    mean_over: Literal["row", "batch"] = "row",
) -> TokenFactors:
    """Runs prompts with their targets forwards and backwards.

    The loss is the mean negative log-likelihood of the target's tokens. Nothing below the first
    edited weight gets a gradient, and no weight does.

    Args:
        logits: Runs the rows and gives the logits at the places with labels, e.g. `model_logits`.
        modules: The modules of the edited weights, by the names of the weights.
        rows: The rows.
        mean_over: ``row``: each row has a loss of its own, so that its factors do not depend on
            the others. ``batch``: one mean over the tokens of all rows, as in EasyEdit.

    Raises:
        ModelError: A module does not run exactly once over all tokens.
    """
    with torch.enable_grad(), _watched(modules) as seen:
        nll, row = target_nll(logits(), rows.labels)
        counts = torch.bincount(row, minlength=len(rows.labels))
        losses = nll.new_zeros(len(rows.labels)).index_add(0, row, nll) / counts
        loss = losses.sum() if mean_over == "row" else nll.mean()
        _require_all_tokens(seen, modules, rows)
        deltas = torch.autograd.grad(loss, [output for _, output in seen.values()])
    shape = rows.input_ids.shape
    pairs = {
        name: (x.reshape(*shape, -1), delta.reshape(*shape, -1))  # some MLPs flatten rows
        for (name, (x, _)), delta in zip(seen.items(), deltas, strict=True)
    }
    taken = torch.stack([_count(x, delta).cpu() for x, delta in pairs.values()])
    taken &= rows.attention_mask.bool().cpu()
    return TokenFactors(
        {
            name: (x[mask.to(x.device)], delta[mask.to(delta.device)])
            for (name, (x, delta)), mask in zip(pairs.items(), taken, strict=True)
        },
        dict(zip(pairs, taken.sum(dim=2).tolist(), strict=True)),
        losses.detach(),
        _finite([x for x, _ in pairs.values()], losses.device),
        _finite([delta for _, delta in pairs.values()], losses.device),
    )


@contextlib.contextmanager
def _watched(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Keeps input and output of modules, the output with a gradient."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str, x: Tensor, output: Tensor) -> Tensor:
        if name in seen:
            raise ModelError(
                f"{name!r} runs more than once in a pass; leave it out of inner_params"
            )
        # A leaf where nothing before has a gradient. The model may add to what it gets in place.
        kept = output if output.requires_grad else output.detach().requires_grad_(True)
        seen[name] = x.detach(), kept
        return kept.clone()

    with contextlib.ExitStack() as stack:
        for name, module in modules.items():

            def hook(x: Tensor, output: Tensor, name: str = name) -> Tensor:
                return keep(name, x, output)

            stack.enter_context(edit_output(module, hook))
        yield seen


def _require_all_tokens(
    seen: Mapping[str, tuple[Tensor, Tensor]], modules: Mapping[str, nn.Module], rows: TargetRows
) -> None:
    """Checks that each module has run over all tokens.

    Raises:
        ModelError: One has not, as the head and parts for images do not.
    """
    for name in modules:
        if name not in seen or seen[name][0].shape[:-1].numel() != rows.labels.numel():
            raise ModelError(
                f"{name!r} does not run over all tokens of a text; leave it out of inner_params"
            )


def _finite(states: Sequence[Tensor], device: torch.device) -> Tensor:
    """Whether all of each row's ``[rows, t, d]`` is finite, ``[rows]``."""
    rows = [one.isfinite().flatten(1).all(1).to(device) for one in states]
    return torch.stack(rows).all(dim=0)


def _count(x: Tensor, delta: Tensor) -> Tensor:
    """Which tokens ``[rows, t]`` count."""
    return (x != 0).any(-1) & (delta != 0).any(-1)
