"""The scope as a cross-encoder: it reads the prompt of an edit and a query together.

EasyEdit's ``cross_attend``, after SERAC's authors (Mitchell et al., arXiv 2206.06520, their code).
A pair is scored by a linear head on the encoder's pooled state, and "in the scope of none" always
scores 0, so that the head's bias is the threshold. Pairs cost a pass each: so the encoder, as it
was before training, proposes the nearest edits by their embeddings, and only these are read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from easyedit_fast.models.sentence_encoders import pooling_of
from easyedit_fast.serac.encoders import (
    load_encoder,
    make_trainable,
    pooled,
    put_into,
    trained_parameters,
)
from easyedit_fast.serac.hparams import SERACHparams
from easyedit_fast.serac.scope import Scope

if TYPE_CHECKING:
    from easyedit_fast.serac.memory import Nearest

_AT_ONCE = 64
_FIRST_WEIGHT = 0.02  # a deviation, as of transformers' heads


class CrossEncoder(nn.Module):
    """An encoder that reads pairs, a linear head, and the plain encoder that proposes them.

    Attributes:
        plain: The encoder as it comes; its embeddings are those of the memory.
        size: Numbers of an embedding.
        heads: Its parts; see `Scope`.
        candidates: So many edits are proposed for a query.
        origin: Of the encoder before it is changed; see `Scope`.
        head: The pair's score, of its pooled state ``[pairs, d_model]``.
    """

    def __init__(self, hparams: SERACHparams) -> None:
        """Loads the encoder, twice.

        Args:
            hparams: The hyperparameters.

        Raises:
            HparamsError: The encoder has no such layers, or no whole parts.
            MissingPackageError: A package is missing.
            ModelError: There is no such encoder.
        """
        super().__init__()
        self.plain = Scope(hparams, trained=False).requires_grad_(False)
        self.size, self.heads = self.plain.size, self.plain.heads
        self.origin = self.plain.origin
        self.candidates = hparams.cross_candidates
        self._hparams = hparams
        self._pooling = hparams.pooling or pooling_of(hparams.cls_name)
        self.encoder, self._tokenizer = load_encoder(hparams)
        make_trainable(self.encoder, hparams)
        draw = torch.Generator().manual_seed(hparams.seed)
        self.head = nn.Linear(self.size, 1)
        with torch.no_grad():
            self.head.weight.normal_(0.0, _FIRST_WEIGHT, generator=draw)
            self.head.bias.zero_()
        self.eval()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that an embedding depends on, which is nothing that is trained."""
        return self.plain.fingerprint

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """The plain encoder's embeddings ``[prompts, size]`` float32, on the CPU."""
        return self.plain.embed(prompts)

    def reading(self, prompt: str) -> str:
        """As `PromptEncoder.reading`."""
        return self.plain.reading(prompt)

    def forward(self, edits: Sequence[str], queries: Sequence[str]) -> Tensor:
        """The scores of pairs ``[pairs]`` float32, through which gradients flow.

        Pairs of like length run together; a pair's score does not depend on the others, but for
        rounding.

        Args:
            edits: The prompt of each pair's edit.
            queries: The prompt that may be in its scope.
        """
        lengths = [len(edit) + len(query) for edit, query in zip(edits, queries, strict=True)]
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        found = [self.head.weight.new_zeros(0)]
        for first in range(0, len(order), _AT_ONCE):
            places = order[first : first + _AT_ONCE]
            pairs = [[texts[place] for place in places] for texts in (edits, queries)]
            states = pooled(self.encoder, self._tokenizer, self._pooling, *pairs)
            found.append(self.head(states)[:, 0])
        back = torch.tensor(order, dtype=torch.long).argsort()
        return torch.cat(found)[back.to(self.head.weight.device)]

    @torch.no_grad()
    def looked_at(
        self, queries: Sequence[str], edits: Sequence[str], allowed: Tensor, count: int
    ) -> Tensor:
        """As `AnyScope.looked_at`: of those that are allowed the nearest `count`."""
        rows = self.embed([*edits, *queries]).to(self.head.weight.device)
        plain = self.plain.scores(rows[len(edits) :], rows[: len(edits)])[:, :-1].cpu()
        near = plain.masked_fill(~allowed, -math.inf).topk(min(count, len(edits)), dim=1).indices
        return torch.zeros_like(allowed).scatter(1, near, value=True) & allowed

    def answers(self, queries: Sequence[str], edits: Sequence[str], looked_at: Tensor) -> Tensor:
        """As `AnyScope.answers`."""
        rows, columns = (looked_at.nonzero(as_tuple=True)[side] for side in (0, 1))
        own = self([edits[at] for at in columns.tolist()], [queries[at] for at in rows.tolist()])
        found = own.new_full(looked_at.shape, -math.inf)
        found = found.index_put((rows.to(own.device), columns.to(own.device)), own)
        return functional.pad(found, (0, 1))  # none: 0

    def similarities(
        self, queries: Sequence[str], found: Sequence[Sequence[Nearest]]
    ) -> list[list[float]]:
        """As `AnyScope.similarities`."""
        edits = [one.edit.request.prompt for own in found for one in own]
        pairs = zip(queries, found, strict=True)
        asked = [query for query, own in pairs for _ in own]
        told = iter(self.pair_similarities(edits, asked))
        return [[next(told) for _ in own] for own in found]

    @torch.inference_mode()
    def pair_similarities(self, edits: Sequence[str], queries: Sequence[str]) -> list[float]:
        """As `AnyScope.pair_similarities`."""
        return [float(value) for value in self(edits, queries).sigmoid().tolist()]

    def parameter_groups(self, rate: float) -> list[dict[str, Any]]:
        """As `AnyScope.parameter_groups`: the encoder's, then the head's."""
        encoder = [parameter for _, parameter in trained_parameters(self.encoder)]
        return [
            {"params": encoder, "lr": rate},
            {"params": list(self.head.parameters()), "lr": rate},
        ]

    def trained_state(self) -> dict[str, Tensor]:
        """All that is trained, by name."""
        return {name: one.detach() for name, one in self._named().items()}

    def load_trained_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts such a state in.

        Raises:
            DataFileError: It is not of this scope.
        """
        put_into(self._named(), tensors, self._hparams)

    def _named(self) -> dict[str, Tensor]:
        encoder = {f"encoder.{name}": one for name, one in trained_parameters(self.encoder)}
        return {**encoder, "head.weight": self.head.weight, "head.bias": self.head.bias}
