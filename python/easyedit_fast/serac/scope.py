"""The scope: an embedding of prompts, and how near one is to be in the scope of an edit.

SERAC (Mitchell et al., arXiv 2206.06520) scores how likely a prompt is in the scope of an edit by
the distance of their embeddings. Here the prompt of the edit alone is embedded, never its target;
and "in the scope of none" is one of the answers in training, whose score is learned: a prompt at
distance d from an edit scores -a·d, and none of the edits -a·t. So t is the threshold.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from easyedit_fast.errors import DataFileError, HparamsError, MissingPackageError
from easyedit_fast.models.checksums import weight_checksum
from easyedit_fast.models.sentence_encoders import (
    encoder_origin,
    load_sentence_encoder,
    pooling_of,
)
from easyedit_fast.serac.hparams import SERACHparams

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ADAPTER = "scope"
_FIRST_SCALE, _FIRST_THRESHOLD = 20.0, 0.35
_LONGEST = 512
_AT_ONCE = 128
_TRAINED = "encoder."
_POSITIONS_AFTER_PADDING = ("roberta", "xlm-roberta", "camembert", "mpnet")
"""Kinds of encoders whose first position is number 2, after that of pads."""


class Scope(nn.Module):
    """A sentence encoder, a scale and a threshold.

    Attributes:
        size: Numbers of an embedding.
        heads: Equal parts of an embedding; two are as near as the nearest of their parts.
        log_scale: Logarithm of a, a scalar parameter.
        threshold: t, a scalar parameter.
        origin: Of the encoder before it is changed, and of its tokenizer.
    """

    def __init__(self, hparams: SERACHparams) -> None:
        """Loads the encoder.

        Args:
            hparams: The hyperparameters.

        Raises:
            HparamsError: The encoder has no such layers, or no whole parts.
            MissingPackageError: A package is missing.
            ModelError: There is no such encoder.
        """
        super().__init__()
        encoder, self._tokenizer = load_sentence_encoder(hparams.cls_name, hparams.cls_class)
        self._pooling = hparams.pooling or pooling_of(hparams.cls_name)
        self._hparams = hparams
        self.size: int = encoder.config.hidden_size
        self.heads = hparams.dist_heads
        if self.size % self.heads:
            raise HparamsError(
                f"dist_heads ({self.heads}) must divide the encoder's {self.size} numbers"
            )
        self.origin = encoder_origin(encoder, self._tokenizer)
        self.encoder = encoder.requires_grad_(False)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(hparams.seed)
            _make_trainable(self.encoder, hparams)
        self.log_scale = nn.Parameter(torch.tensor(math.log(_FIRST_SCALE)))
        self.threshold = nn.Parameter(torch.tensor(_FIRST_THRESHOLD))
        self.eval()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that an embedding depends on, threshold and scale excepted."""
        own = self._hparams
        parts = [own.cos, own.bound_embeds, own.dist_heads, self._pooling]
        digest = hashlib.sha256(f"{self.origin} {parts}".encode())
        for name, parameter in sorted(self._trained()):
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

    def forward(self, prompts: Sequence[str]) -> Tensor:
        """The embeddings ``[prompts, size]`` float32, through which gradients flow."""
        texts = self._tokenizer(
            list(prompts),
            return_tensors="pt",
            padding=True,
            truncation=True,
            max_length=_longest(self.encoder.config),
        ).to(self.encoder.device)
        states = self.encoder(**texts).last_hidden_state
        if self._pooling == "cls":
            pooled = states[:, 0]
        else:
            mask = texts["attention_mask"][..., None].to(states.dtype)
            pooled = (states * mask).sum(1) / mask.sum(1)
        parts = pooled.float().unflatten(1, (self.heads, -1))
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

    def _trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What of the encoder is trained, under names that do not depend on PEFT."""
        for name, parameter in self.encoder.named_parameters():
            if parameter.requires_grad:
                yield name.replace(f".{_ADAPTER}.weight", ""), parameter

    def trained_state(self) -> dict[str, Tensor]:
        """All that is trained, by name."""
        encoder = {f"{_TRAINED}{name}": own.detach() for name, own in self._trained()}
        return {
            **encoder,
            "log_scale": self.log_scale.detach(),
            "threshold": self.threshold.detach(),
        }

    @torch.no_grad()
    def load_trained_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts such a state in.

        Raises:
            DataFileError: It is not of this scope.
        """
        own: dict[str, Tensor] = {f"{_TRAINED}{name}": one for name, one in self._trained()}
        own |= {"log_scale": self.log_scale, "threshold": self.threshold}
        if own.keys() != tensors.keys() or any(
            own[name].shape != tensor.shape for name, tensor in tensors.items()
        ):
            raise DataFileError(
                f"the scope's weights do not fit the encoder {self._hparams.cls_name!r}; use the "
                "hyperparameters that it was trained with"
            )
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def _squared_distances(queries: Tensor, edits: Tensor) -> Tensor:
    """``[q, n]``, from ``[q, d]`` and ``[n, d]``."""
    norms = queries.square().sum(1)[:, None] + edits.square().sum(1)
    return (norms - 2 * queries @ edits.T).clamp_min(0)


def _longest(config: Any) -> int:
    """Tokens of a prompt that an encoder reads at most; some have no limit."""
    limit: int = getattr(config, "max_position_embeddings", None) or _LONGEST
    if config.model_type in _POSITIONS_AFTER_PADDING:
        limit -= 2
    return min(_LONGEST, limit)


def _make_trainable(encoder: PreTrainedModel, hparams: SERACHparams) -> None:
    """Lets what shall be trained require gradients.

    Raises:
        HparamsError: The encoder has fewer layers than are to be trained.
        MissingPackageError: The ``peft`` package is not installed.
    """
    blocks = next((m for m in encoder.modules() if isinstance(m, nn.ModuleList)), nn.ModuleList())
    if hparams.freeze is not None and hparams.freeze > len(blocks):
        raise HparamsError(
            f"freeze ({hparams.freeze}) is more than the encoder's {len(blocks)} layers"
        )
    if hparams.cls_rank is not None:
        _inject(encoder, hparams.cls_rank, range(len(blocks) - (hparams.freeze or 0), len(blocks)))
        return
    trained: Any = encoder if hparams.freeze is None else blocks[-hparams.freeze :]
    trained.requires_grad_(True)
    if getattr(encoder, "pooler", None) is not None:  # the embedding does not go through it
        encoder.pooler.requires_grad_(False)


def _inject(encoder: PreTrainedModel, rank: int, layers: Sequence[int]) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise MissingPackageError(
            'SERAC\'s scope needs the package peft; run: pip install "easyedit-fast[peft]"'
        ) from None
    names = [
        name
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Linear) and "pooler" not in name
    ]
    if layers:
        own = [f".{layer}." for layer in layers]
        names = [name for name in names if any(part in f".{name}." for part in own)]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names, lora_dropout=0.0)
    training = encoder.training
    inject_adapter_in_model(config, encoder, _ADAPTER)
    encoder.train(training)
