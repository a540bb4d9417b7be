"""The scope: an embedding of prompts, and how near one is to be in the scope of an edit.

SERAC (Mitchell et al., arXiv 2206.06520) scores how likely a prompt is in the scope of an edit by
the distance of their embeddings. Here the prompt of the edit alone is embedded, never its target;
and "in the scope of none" is one of the answers in training, whose score is learned: a prompt at
distance d from an edit scores -a·d, and none of the edits -a·t. So t is the threshold.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from easyedit_fast.errors import HparamsError
from easyedit_fast.models.checksums import weight_checksum
from easyedit_fast.models.sentence_encoders import encoder_origin, pooling_of
from easyedit_fast.serac.encoders import (
    load_encoder,
    make_trainable,
    pooled,
    put_into,
    reading,
    trained_parameters,
)
from easyedit_fast.serac.hparams import SERACHparams

if TYPE_CHECKING:
    from easyedit_fast.serac.memory import Nearest

_FIRST_SCALE, _FIRST_THRESHOLD = 20.0, 0.35
_AT_ONCE = 128
_TRAINED = "encoder."


class Scope(nn.Module):
    """A sentence encoder, a scale and a threshold.

    Attributes:
        size: Numbers of an embedding.
        heads: Equal parts of an embedding; two are as near as the nearest of their parts.
        candidates: Of the nearest edits it looks at the very nearest alone.
        log_scale: Logarithm of a, a scalar parameter.
        threshold: t, a scalar parameter.
        origin: Of the encoder before it is changed, and of its tokenizer.
    """

    candidates = 1

    def __init__(self, hparams: SERACHparams, *, trained: bool = True) -> None:
        """Loads the encoder.

        Args:
            hparams: The hyperparameters.
            trained: Whether anything of the encoder is ever trained.

        Raises:
            HparamsError: The encoder has no such layers, or no whole parts.
            MissingPackageError: A package is missing.
            ModelError: There is no such encoder.
        """
        super().__init__()
        self.encoder, self._tokenizer = load_encoder(hparams)
        self._pooling = hparams.pooling or pooling_of(hparams.cls_name)
        self._hparams = hparams
        self.size: int = self.encoder.config.hidden_size
        self.heads = hparams.dist_heads
        if self.size % self.heads:
            raise HparamsError(
                f"dist_heads ({self.heads}) must divide the encoder's {self.size} numbers"
            )
        self.origin = encoder_origin(self.encoder, self._tokenizer)
        if trained:
            make_trainable(self.encoder, hparams)
        self.log_scale = nn.Parameter(torch.tensor(math.log(_FIRST_SCALE)))
        self.threshold = nn.Parameter(torch.tensor(_FIRST_THRESHOLD))
        self.eval()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that an embedding depends on, threshold and scale excepted."""
        own = self._hparams
        parts = [own.cos, own.bound_embeds, own.dist_heads, self._pooling, "spelled"]
        digest = hashlib.sha256(f"{self.origin} {parts}".encode())
        for name, parameter in sorted(trained_parameters(self.encoder)):
            digest.update(f"{name} {weight_checksum(parameter)}".encode())
        return digest.hexdigest()

    @torch.inference_mode()
    def embed(self, prompts: Sequence[str]) -> Tensor:
        """The embeddings ``[prompts, size]`` float32, on the CPU, in which they are compared.

        Prompts of like length run together; a prompt's embedding does not depend on the others,
        but for rounding.
        """
        found = torch.empty(len(prompts), self.size)
        order = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
        for first in range(0, len(order), _AT_ONCE):
            places = order[first : first + _AT_ONCE]
            found[places] = self([prompts[place] for place in places]).cpu()
        return found

    def reading(self, prompt: str) -> str:
        """As `PromptEncoder.reading`."""
        return reading(self._tokenizer, prompt)

    def forward(self, prompts: Sequence[str]) -> Tensor:
        """The embeddings ``[prompts, size]`` float32, through which gradients flow."""
        states = pooled(self.encoder, self._tokenizer, self._pooling, prompts)
        parts = states.unflatten(1, (self.heads, -1))
        if self._hparams.bound_embeds:
            parts = parts.tanh()
        if self._hparams.cos:
            parts = functional.normalize(parts, dim=-1)
        embeddings: Tensor = parts.flatten(1)
        return embeddings

    def scores(self, queries: Tensor, edits: Tensor) -> Tensor:
        """How likely queries are in the scope of edits, and of none of them, but for a constant.

        Args:
            queries: ``[q, size]`` embeddings.
            edits: ``[n, size]`` embeddings.

        Returns:
            ``[q, n + 1]``, the last for "none of these".
        """
        pairs = zip(queries.chunk(self.heads, 1), edits.chunk(self.heads, 1), strict=True)
        squared = torch.stack([_squared_distances(*pair) for pair in pairs]).amin(0)
        scale = self.log_scale.exp()
        none = (-scale * self.threshold).expand(len(queries), 1)
        return torch.cat([-scale * self._distances(squared), none], dim=1)

    @torch.inference_mode()
    def similarity(self, squared_distance: float) -> float:
        """How likely a prompt is in the scope of an edit, of these two answers; 0 to 1."""
        distance = self._distances(torch.tensor(squared_distance, dtype=torch.float32))
        return float(torch.sigmoid(self.log_scale.exp() * (self.threshold - distance)))

    def _distances(self, squared: Tensor) -> Tensor:
        if self._hparams.cos:
            return squared / 2  # of unit vectors: 1 - cos
        return squared if self._hparams.square else squared.clamp_min(1e-12).sqrt()

    def looked_at(
        self,
        queries: Sequence[str],
        edits: Sequence[str],
        allowed: Tensor,
        count: int,
    ) -> Tensor:
        """As `AnyScope.looked_at`: all that are allowed."""
        return allowed

    def answers(self, queries: Sequence[str], edits: Sequence[str], looked_at: Tensor) -> Tensor:
        """As `AnyScope.answers`."""
        texts = [*edits, *queries]
        learning = torch.is_grad_enabled()
        rows = self(texts) if learning else self.embed(texts).to(self.threshold.device)
        scores = self.scores(rows[len(edits) :], rows[: len(edits)])
        unseen = functional.pad(~looked_at, (0, 1)).to(scores.device)
        return scores.masked_fill(unseen, -math.inf)

    def similarities(
        self,
        queries: Sequence[str],
        found: Sequence[Sequence[Nearest]],
    ) -> list[list[float]]:
        """As `AnyScope.similarities`."""
        return [[self.similarity(one.squared_distance) for one in own] for own in found]

    def pair_similarities(self, edits: Sequence[str], queries: Sequence[str]) -> list[float]:
        """As `AnyScope.pair_similarities`."""
        texts = list(dict.fromkeys([*edits, *queries]))
        rows = dict(zip(texts, self.embed(texts), strict=True))
        distances = [
            (rows[edit] - rows[query]).view(self.heads, -1).square().sum(1).min()
            for edit, query in zip(edits, queries, strict=True)
        ]
        return [self.similarity(float(distance)) for distance in distances]

    def parameter_groups(self, rate: float) -> list[dict[str, Any]]:
        """As `AnyScope.parameter_groups`: the encoder's, then the scale and the threshold."""
        encoder = [parameter for _, parameter in trained_parameters(self.encoder)]
        own = [self.log_scale, self.threshold]
        return [{"params": encoder, "lr": rate}, {"params": own, "lr": 10 * rate}]

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
        encoder = {f"{_TRAINED}{name}": one for name, one in trained_parameters(self.encoder)}
        return {**encoder, "log_scale": self.log_scale, "threshold": self.threshold}


def _squared_distances(queries: Tensor, edits: Tensor) -> Tensor:
    """``[q, n]``, from ``[q, d]`` and ``[n, d]``."""
    norms = queries.square().sum(1)[:, None] + edits.square().sum(1)
    return (norms - 2 * queries @ edits.T).clamp_min(0)
