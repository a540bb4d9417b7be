"""The encoder of a scope: how it is loaded, what of it is trained, how its states are pooled."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from easyedit_fast.errors import DataFileError, HparamsError, MissingPackageError
from easyedit_fast.models.sentence_encoders import Pooling, load_sentence_encoder
from easyedit_fast.serac.hparams import SERACHparams
from easyedit_fast.serac.spelling import spelled

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

_ADAPTER = "scope"
_LONGEST = 512
_POSITIONS_AFTER_PADDING = ("roberta", "xlm-roberta", "camembert", "mpnet")
"""Kinds of encoders whose first position is number 2, after that of pads."""


def load_encoder(hparams: SERACHparams) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The encoder as it comes, of which nothing is trained, and its tokenizer.

    Of a classifier (``…ForSequenceClassification``, as EasyEdit's cross-encoders are loaded) it is
    what lies below the classifier's head.

    Raises:
        MissingPackageError: The packaged encoder is not installed.
        ModelError: There is no such encoder, or no such class.
    """
    model, tokenizer = load_sentence_encoder(hparams.cls_name, hparams.cls_class)
    encoder: Any = model.base_model
    return encoder.requires_grad_(False), tokenizer


def pooled(
    encoder: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pooling: Pooling,
    *texts: Sequence[str],
) -> Tensor:
    """The pooled last hidden states ``[rows, d_model]`` float32, through which gradients flow.

    Words that the tokenizer does not know are spelled in letters that it does.

    Args:
        encoder: The encoder.
        tokenizer: Its tokenizer.
        pooling: What of the hidden states is taken.
        texts: One text a row; or two, which are read together.
    """
    longest = _longest(encoder.config)
    tokens = _tokens(tokenizer, longest, texts)
    unknown = tokenizer.unk_token_id
    if unknown is not None and bool((tokens["input_ids"] == unknown).any()):
        tokens = _tokens(tokenizer, longest, [spelled(tokenizer, column) for column in texts])
    tokens = tokens.to(encoder.device)
    states = encoder(**tokens).last_hidden_state
    if pooling == "cls":
        found: Tensor = states[:, 0]
    else:
        mask = tokens["attention_mask"][..., None].to(states.dtype)
        found = (states * mask).sum(1) / mask.sum(1)
    return found.float()


def _tokens(
    tokenizer: PreTrainedTokenizerBase, longest: int, texts: Sequence[Sequence[str]]
) -> BatchEncoding:
    tokens: BatchEncoding = tokenizer(
        *map(list, texts),
        return_tensors="pt",
        padding=True,
        truncation=True,
        max_length=longest,
    )
    return tokens


def reading(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """A prompt as a tokenizer prepares it for `pooled`, and runs of white space as one space.

    It is the same for prompts that differ in what the tokenizer does not tell apart, such as case
    or accents, or the two ways to write an accent.
    """
    text = " ".join(prompt.split())
    if not text.isascii():
        (text,) = spelled(tokenizer, [text])
    normalizer = tokenizer.backend_tokenizer.normalizer if tokenizer.is_fast else None
    return text if normalizer is None else " ".join(normalizer.normalize_str(text).split())


def _longest(config: Any) -> int:
    """Tokens of a row that an encoder reads at most; some have no limit."""
    limit: int = getattr(config, "max_position_embeddings", None) or _LONGEST
    if config.model_type in _POSITIONS_AFTER_PADDING:
        limit -= 2
    return min(_LONGEST, limit)


def make_trainable(encoder: PreTrainedModel, hparams: SERACHparams) -> None:
    """Lets what shall be trained require gradients; new values are drawn by the seed.

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
        layers = range(len(blocks) - (hparams.freeze or 0), len(blocks))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(hparams.seed)
            _inject(encoder, hparams.cls_rank, layers)
        return
    trained: Any = encoder if hparams.freeze is None else blocks[-hparams.freeze :]
    trained.requires_grad_(True)
    if getattr(encoder, "pooler", None) is not None:  # what is read does not go through it
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


def trained_parameters(encoder: PreTrainedModel) -> Iterator[tuple[str, nn.Parameter]]:
    """What of an encoder is trained, under names that do not depend on PEFT."""
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            yield name.replace(f".{_ADAPTER}.weight", ""), parameter


@torch.no_grad()
def put_into(
    own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], hparams: SERACHparams
) -> None:
    """Overwrites what is trained of a scope by what was kept of one.

    Raises:
        DataFileError: It was kept of another scope.
    """
    if own.keys() != tensors.keys() or any(
        own[name].shape != tensor.shape for name, tensor in tensors.items()
    ):
        kinds = {False: "an embedding", True: "a cross-encoder"}
        raise DataFileError(
            f"the scope's weights do not fit the encoder {hparams.cls_name!r} as "
            f"{kinds[hparams.cross_attend]} (cross_attend: {str(hparams.cross_attend).lower()}); "
            "leave the scope's hyperparameters as they were in training, or train one with these: "
            "easyedit-fast train --method serac"
        )
    for name, tensor in tensors.items():
        own[name].copy_(tensor)
