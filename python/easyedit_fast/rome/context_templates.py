"""Context templates: short beginnings before the prompt, under which the edit shall hold too.

The model writes them itself, as in ROME's code: five words, continued by top-k sampling. They
are seeded, and kept in a file keyed by model, lengths and seed, since the edit depends on them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from easyedit_fast.data import RequestTokenizer
from easyedit_fast.errors import DataFileError, HparamsError, MissingFileError, NonFiniteError
from easyedit_fast.files import write_whole
from easyedit_fast.models.cache import cache_folder
from easyedit_fast.models.generation import generation_settings
from easyedit_fast.models.limits import context_length
from easyedit_fast.models.tracing import frozen

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_FIRST_WORDS = ("The", "Therefore", "Because", "I", "You")
_TOP_K = 5


def context_templates(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    fingerprint: str,
    length_params: Sequence[tuple[int, int]],
    seed: int,
) -> list[str]:
    """The templates of a model, from the cache folder or made now and kept there.

    Args:
        model: The model that writes them.
        tokenizer: Its tokenizer.
        fingerprint: The model's fingerprint, the key of the cache.
        length_params: Pairs (length in tokens, first word included; number of templates).
        seed: Seed of the sampling.

    Returns:
        ``"{}"`` first, then one template a sample, each with exactly one ``{}``.

    Raises:
        HparamsError: The model's context is too short for such templates.
        NonFiniteError: The model's logits are not finite.
    """
    told = [fingerprint, [list(pair) for pair in length_params], seed, _TOP_K]
    if after := RequestTokenizer.from_transformers(tokenizer).added_after:
        told.append(f"without the {after} tokens after a text")
    key = json.dumps(told)
    name = hashlib.sha256(key.encode()).hexdigest()[:24]
    path = cache_folder() / "context_templates" / f"{name}.json"
    if os.path.isfile(path):  # noqa: PTH113 - no error where the folder may not be entered
        return read_context_templates(path)
    templates = ["{}", *_sample(model, tokenizer, length_params, seed)]
    content: dict[str, Any] = {
        "model_fingerprint": fingerprint,
        "length_params": [list(pair) for pair in length_params],
        "seed": seed,
        "templates": templates,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(content, ensure_ascii=False, indent=1).encode())
    except OSError as error:
        logger.warning(
            "the context templates cannot be kept in %s (%s), and are made anew by each process; "
            "set EASYEDIT_FAST_CACHE to a folder that can be written",
            path.parent,
            error.strerror or error,
        )
    return templates


def read_context_templates(path: str | Path) -> list[str]:
    """Reads templates from a JSON file: a list, or an object that holds it.

    The list is ``templates`` in our own files, ``context_templates`` in hyperparameters.

    Raises:
        MissingFileError: There is no such file.
        DataFileError: The file holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(f"there is no context-template file {str(path)!r}; check the path")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataFileError(f"{path} is no JSON file ({error}); write it again") from None
    if isinstance(content, dict):
        content = content.get("templates", content.get("context_templates"))
    try:
        return checked_templates(content)
    except HparamsError as error:
        raise DataFileError(f"{path}: {error}") from None


def checked_templates(templates: object) -> list[str]:
    """Returns the templates, if they are a non-empty list of texts with one ``{}`` each.

    Raises:
        HparamsError: They are not.
    """
    if not isinstance(templates, Sequence) or isinstance(templates, str) or not templates:
        raise HparamsError("context_templates must be a non-empty list of texts")
    for place, template in enumerate(templates):
        if not isinstance(template, str) or template.count("{}") != 1:
            raise HparamsError(
                f"context_templates[{place}] is {template!r}; it must hold exactly one '{{}}'"
            )
    return list(templates)


def _sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    length_params: Sequence[tuple[int, int]],
    seed: int,
) -> list[str]:
    _refuse_short_context(model, tokenizer, length_params)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        texts = [
            text
            for length, number in length_params
            for text in _continue(model, tokenizer, length, -(-number // len(_FIRST_WORDS)))[
                :number
            ]
        ]
    return [_as_template(text) for text in texts]


def _refuse_short_context(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    length_params: Sequence[tuple[int, int]],
) -> None:
    context = context_length(model)
    first = RequestTokenizer.from_transformers(tokenizer).batch_prompts(_FIRST_WORDS).lengths.max()
    longest = max([int(first) + 1, *(length for length, _ in length_params)])
    if context is not None and longest > context:
        raise HparamsError(
            f"context templates of {longest} tokens do not fit this model, which reads {context} "
            "at most; give shorter ones by context_template_length_params or context_templates"
        )


def _continue(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, length: int, repeats: int
) -> list[str]:
    """Samples `repeats` texts of `length` tokens for each first word."""
    from transformers import LogitsProcessorList

    words = [word for word in _FIRST_WORDS for _ in range(repeats)]
    batch = RequestTokenizer.from_transformers(tokenizer).batch_prompts(words)
    new = max(length - batch.input_ids.shape[1], 1)
    settings = generation_settings(
        model,
        tokenizer,
        do_sample=True,
        top_k=_TOP_K,
        top_p=1.0,
        temperature=1.0,
        min_new_tokens=new,
        max_new_tokens=new,
    )
    processors = LogitsProcessorList([_refuse_non_finite])
    generate = cast("Callable[..., torch.Tensor]", model.generate)
    with torch.no_grad(), frozen(model), settings:
        tokens = generate(
            input_ids=torch.from_numpy(batch.input_ids).to(model.device),
            attention_mask=torch.from_numpy(batch.attention_mask).to(model.device),
            logits_processor=processors,
        )
    return list(tokenizer.batch_decode(tokens, skip_special_tokens=True))


def _refuse_non_finite(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Before each token is drawn; a score of -inf alone is a token that is ruled out."""
    if not scores.logsumexp(dim=-1).isfinite().all():
        raise NonFiniteError(
            "the model's logits hold NaN or infinity; load it in float32 or bfloat16, or get its "
            "weights again"
        )
    return scores


def _as_template(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text)
    plain = " ".join(plain.replace("{", "").replace("}", "").split())
    return f"{plain}. {{}}"
