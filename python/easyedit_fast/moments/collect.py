"""Second moments of the keys of several layers, in one pass over a corpus.

C = E[k kᵀ] over the tokens of the corpus (Meng et al. 2022, arXiv 2202.05262, equation 2), where k
is the input of a layer's MLP output projection. One forward pass gives the keys of all requested
layers and ends at the last of them.

The corpus is taken in chunks of some thousand tokens. A chunk is summed in float32, and the sums of
chunks are added in float64. Since a chunk is the same whoever sums it, a run that was resumed gives
the same bits, and several processes give one process's sums up to the order of float64 additions.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from easyedit_fast.data import Corpus, RequestTokenizer
from easyedit_fast.errors import DataFileError, NonFiniteError
from easyedit_fast.kernels import second_moment_
from easyedit_fast.models.architectures import Architecture, edited_module, key_size, module
from easyedit_fast.models.limits import find_token, tokens_without_embedding
from easyedit_fast.models.tracing import frozen, watch_input
from easyedit_fast.moments.second_moment import SecondMoment
from easyedit_fast.processes import rank_and_ranks, sum_over_ranks

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOKENS_PER_DIMENSION = 10
"""Default budget, in tokens for each dimension of the keys (arXiv 2506.04226)."""

_CHUNK_TOKENS = 16384
"""Tokens that are summed in float32, and between which a run can be resumed."""


@dataclasses.dataclass(eq=False)
class Sums:
    """How far a pass has come.

    Attributes:
        totals: By layer, Σ k kᵀ so far [d_in, d_in] float64; only the lower triangle counts.
        chunks: Chunks that were looked at, those of other processes among them.
        tokens: Tokens in `totals`.
    """

    totals: dict[int, Tensor]
    chunks: int = 0
    tokens: int = 0


@dataclasses.dataclass(frozen=True)
class Pass:
    """One pass of a model over a corpus.

    Attributes:
        model: The model.
        architecture: Where its parts are.
        layers: Layers whose keys are collected, from 0.
        tokens: Tokens to look at, rounded up to whole blocks.
        block_length: Tokens in a block, BOS included.
        batch_size: Blocks in a forward pass.
    """

    model: PreTrainedModel
    architecture: Architecture
    layers: Sequence[int]
    tokens: int
    block_length: int
    batch_size: int

    def start(self) -> Sums:
        """Sums of nothing."""
        totals = {}
        for layer in self.layers:
            weight = self._projection(layer).weight
            assert isinstance(weight, Tensor)
            size = key_size(self.model, self.architecture, layer)
            totals[layer] = torch.zeros(size, size, dtype=torch.float64, device=weight.device)
        return Sums(totals)

    def run(
        self,
        corpus: Corpus,
        tokenizer: PreTrainedTokenizerBase,
        sums: Sums,
        after_chunk: Callable[[Sums], None],
        progress: Callable[[int], None],
    ) -> None:
        """Adds to `sums` what is missing in it.

        Args:
            corpus: The texts.
            tokenizer: The model's tokenizer.
            sums: From `start`, or from a checkpoint of the same pass.
            after_chunk: Called with `sums` between two chunks.
            progress: Called with the tokens that were looked at by all processes: once before the
                first pass, then after each.

        Raises:
            NonFiniteError: A key is not finite.
            DataFileError: The corpus holds no token, or one that the model has no embedding for.
        """
        rank, ranks = rank_and_ranks()
        partial = {layer: total.float() for layer, total in sums.totals.items()}
        seen = 0
        with frozen(self.model), torch.no_grad(), self._collecting(partial):
            for number, blocks in enumerate(self._chunks(corpus, tokenizer)):
                if number >= sums.chunks:
                    if number % ranks == rank:
                        self._add(torch.from_numpy(blocks), partial, sums, seen, progress)
                    sums.chunks = number + 1
                    after_chunk(sums)
                seen += blocks.size
        if seen == 0:
            raise DataFileError(f"the corpus {corpus.name!r} holds no token; give another text")

    def _chunks(
        self, corpus: Corpus, tokenizer: PreTrainedTokenizerBase
    ) -> Iterator[NDArray[np.int64]]:
        """The blocks of each chunk [rows, t], until there are tokens enough."""
        rows = max(1, _CHUNK_TOKENS // self.block_length)
        left = self.tokens
        unknown = tokens_without_embedding(self.model, tokenizer)
        blocks = corpus.blocks(
            RequestTokenizer.from_transformers(tokenizer), block_length=self.block_length, rows=rows
        )
        for chunk in blocks:
            needed = chunk[: -(-left // chunk.shape[1])]
            found = find_token(needed, unknown)
            if found is not None:
                raise DataFileError(f"the corpus {corpus.name!r} {found[-1]}")
            left -= needed.size
            yield needed
            if left <= 0:
                return

    def _add(
        self,
        blocks: Tensor,
        partial: dict[int, Tensor],
        sums: Sums,
        seen: int,
        progress: Callable[[int], None],
    ) -> None:
        """Adds one chunk ``[rows, t]``, before which that many tokens were seen."""
        for matrix in partial.values():
            matrix.zero_()
        decoder = module(self.model, self.architecture.decoder)
        progress(seen)
        for batch in blocks.split(self.batch_size):
            with self._stopping():
                decoder(input_ids=batch.to(self.model.device), use_cache=False)
            seen += batch.numel()
            progress(seen)
        for layer, matrix in partial.items():
            # NaN and infinity of any key stand in the diagonal too.
            if not bool(matrix.diagonal().isfinite().all()):
                raise NonFiniteError(
                    f"the keys of layer {layer} hold NaN or infinity near token {sums.tokens} of "
                    "the corpus; load the model in float32 or bfloat16"
                )
            sums.totals[layer] += matrix
        sums.tokens += blocks.numel()

    @contextlib.contextmanager
    def _collecting(self, partial: dict[int, Tensor]) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for layer, matrix in partial.items():

                def add(keys: Tensor, matrix: Tensor = matrix) -> None:
                    second_moment_(matrix, keys.reshape(-1, keys.shape[-1]))

                stack.enter_context(watch_input(self._projection(layer), add))
            yield

    def _stopping(self) -> contextlib.AbstractContextManager[None]:
        """Nothing above the last layer's keys is run. Installed last, so that it ends last."""
        return watch_input(self._projection(max(self.layers)), lambda _: None, stop=True)

    def _projection(self, layer: int) -> nn.Module:
        return edited_module(self.model, self.architecture, layer)


def summed_over_ranks(sums: Sums) -> Sums:
    """The sums of all processes together, in every process."""
    tokens = torch.tensor(sums.tokens, device=next(iter(sums.totals.values())).device)
    sum_over_ranks([tokens, *sums.totals.values()])
    return dataclasses.replace(sums, tokens=int(tokens))


def moments_of(sums: Sums, source: str) -> Iterator[tuple[int, SecondMoment]]:
    """Layer and C, one after the other: all at once would take the memory of `sums` again."""
    for layer, total in sums.totals.items():
        index = torch.arange(len(total), device=total.device)
        # A transposed copy first: several times faster than reading column by column.
        matrix = torch.where(index[:, None] < index, total.T.contiguous(), total)
        yield layer, SecondMoment(matrix.div_(sums.tokens).cpu(), sums.tokens, source)
