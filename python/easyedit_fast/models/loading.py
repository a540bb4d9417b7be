"""Load a causal language model and its tokenizer by name."""

from __future__ import annotations

import contextlib
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from easyedit_fast.errors import MissingFileError, ModelError
from easyedit_fast.models.compat import dtype_argument, quiet_transformers
from easyedit_fast.models.demo import DEMO_MODEL, demo_folder
from easyedit_fast.models.limits import embedding_rows

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_CAUSE_LENGTH = 300  # characters of an error of another package that are quoted
_SAVE_AS_SAFETENSORS = (
    "its weights are not there as safetensors; save them so with model.save_pretrained"
)
# Advice of other packages that does not hold here, or that runs whatever a file holds: what the
# user is told in its place.
_OTHERS_ADVICE = {
    "weights_only": "a file of weights is damaged, or holds more than tensors; get the model again",
    "ignore_mismatched_sizes": "weights have other shapes than config.json says; get the model "
    "again, both from one place",
    "named model.safetensors found": _SAVE_AS_SAFETENSORS,
    "use_safetensors": _SAVE_AS_SAFETENSORS,
    "trust_remote_code": "it needs code that comes with it, which is never run here; load it "
    "yourself and pass Editor(model, tokenizer)",
}
_VOCABULARY_FILES = ("tokenizer.json", "vocab.*", "*.model", "*.tiktoken", "tekken.json")


def load_model(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    safetensors_only: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a causal language model, in evaluation mode, and its tokenizer.

    Args:
        name_or_path: "demo" for the packaged demo model, a folder, or a name on the hub.
        device: Where to put the model; "auto" spreads it over all devices. The default is the
            first CUDA device where there is one, else the CPU.
        dtype: Of the weights, as a `torch.dtype` or its name. The default is the checkpoint's.
        revision: Of a model on the hub.
        safetensors_only: Refuses weights that are saved in another form.

    Returns:
        The model and the tokenizer. Where the tokenizer has no pad token, its end-of-text token
        pads; so it does where the model has no embedding for the pad token.

    Raises:
        ModelError: No causal language model, not found on the hub, damaged, or without a
            tokenizer that fits it.
        MissingFileError: A folder that is not there.
        MissingPackageError: The demo model is not installed.
    """
    wanted = _parse_dtype(dtype)
    place = _parse_device(device)
    source = _locate(name_or_path)
    # Code that comes with a model is never run, nor is leave to run it asked for.
    hub: dict[str, Any] = {"trust_remote_code": False}
    if revision is not None:
        hub["revision"] = revision
    with quiet_transformers():
        _check_config(source, hub)
        weights = {**hub, "use_safetensors": True} if safetensors_only else hub
        model = _load_weights(source, wanted, place, weights)
        tokenizer = _load_tokenizer(source, hub)
    _settle_pad(model, tokenizer)
    check_tokenizer(model, tokenizer, source=source)
    # Edits and adapters name the model: by what others can load, not by a folder of this machine.
    model.name_or_path = model.config.name_or_path = str(name_or_path)
    return model, tokenizer


def device_of(keys: Mapping[str, Any], *, spread: bool = True) -> str | None:
    """Where EasyEdit's keys ``device`` and ``model_parallel`` put a model, for `load_model`.

    Args:
        keys: Hyperparameters, as far as they are given.
        spread: Whether ``model_parallel`` counts, by which the model is on all devices.

    Returns:
        None where there is no GPU, which the files take for granted, or where they do not say.
    """
    if not torch.cuda.is_available():
        return None
    if spread and keys.get("model_parallel"):
        return "auto"
    key: int | str | None = keys.get("device")
    return f"cuda:{key}" if isinstance(key, int) else key


def check_tokenizer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, source: str | None = None
) -> None:
    """Refuses a tokenizer that has no tokens for text, or more than the model has embeddings.

    Only ids that are sure to come up count: those of the vocabulary's own tokens, which any text
    may hold, of what the tokenizer puts around every text, and of the end and pad tokens. Other
    added tokens may lie beyond the embeddings, as Gemma 3's image token does in the models without
    vision. More embeddings than tokens are usual: their number is rounded up.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        source: Where both were loaded from; None where the caller made them.

    Raises:
        ModelError: The tokenizer is not this model's, or an empty one.
    """
    text_ids = set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids)
    if not text_ids:
        # transformers makes up such a tokenizer for a folder that has none.
        raise ModelError(
            f"{source!r} holds no tokenizer; save it there with tokenizer.save_pretrained"
            if source
            else "the tokenizer has no tokens for text; pass the one that was saved with the model"
        )
    used = [
        *(text_ids - tokenizer.added_tokens_decoder.keys()),
        *tokenizer("The").input_ids,
        *(id_ for id_ in (tokenizer.eos_token_id, tokenizer.pad_token_id) if id_ is not None),
    ]
    highest, rows = max(used, default=0), embedding_rows(model)
    if highest >= rows:
        raise ModelError(
            f"the tokenizer{f' of {source!r}' if source else ''} makes token ids up to "
            f"{highest}, and the model has {rows} embedding rows; use the tokenizer that the "
            "model was trained with"
        )


def _settle_pad(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Pads are masked, but they are looked up: the model must have an embedding for them."""
    pad = tokenizer.pad_token_id
    if pad is None or pad >= embedding_rows(model):
        tokenizer.pad_token = tokenizer.eos_token


def _locate(name_or_path: str | Path) -> str:
    if name_or_path == DEMO_MODEL:
        return str(demo_folder())
    name = str(name_or_path)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"the folder {name!r} holds no config.json; give the folder of a saved model"
            )
        return str(folder)
    if folder.exists():
        raise ModelError(f"{name!r} is a file; give the folder of a saved model")
    if not name or isinstance(name_or_path, Path) or name[0] in "./~" or name.count("/") > 1:
        raise MissingFileError(f"there is no folder {name!r}; give a saved model or a hub name")
    return name


def _check_config(source: str, hub: dict[str, Any]) -> None:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    remedy = "get the model again, or update transformers if the model is a new one"
    with _refusing(f"the model {source!r}", source, remedy):
        config: PretrainedConfig = AutoConfig.from_pretrained(source, **hub)
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or config.is_encoder_decoder:
        raise ModelError(
            f"{source!r} holds a {config.model_type} model, which is no causal language model; "
            "give one that continues text, such as Llama, Qwen or GPT-2"
        )


def _load_weights(
    source: str, dtype: torch.dtype | str, device: str, hub: dict[str, Any]
) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM

    model: PreTrainedModel
    report: dict[str, Any]
    load: Any = AutoModelForCausalLM.from_pretrained
    with _refusing(f"the weights of {source!r}", source, "get the model again, with all its files"):
        model, report = load(
            source, device_map=device, output_loading_info=True, **dtype_argument(dtype), **hub
        )
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{source!r} lacks {len(missing)} weights of a {type(model).__name__} (the first is "
            f"{missing[0]!r}); give a checkpoint that was saved as a causal language model"
        )
    model.eval()
    return model


def _load_tokenizer(source: str, hub: dict[str, Any]) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    remedy = "get its files again, or save it there with tokenizer.save_pretrained"
    try:
        with _refusing(f"the tokenizer of {source!r}", source, remedy):
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, **hub)
    except ModelError:
        folder = Path(source)
        if folder.is_dir() and not any(any(folder.glob(name)) for name in _VOCABULARY_FILES):
            raise ModelError(
                f"{source!r} holds no tokenizer (there is no tokenizer.json); save it there with "
                "tokenizer.save_pretrained"
            ) from None
        raise
    return tokenizer


@contextlib.contextmanager
def _refusing(what: str, source: str, remedy: str) -> Iterator[None]:
    """Turns whatever a file makes other packages raise into one line.

    Damaged files raise all kinds of errors: pickle's and safetensors' own, `KeyError`, and from
    tokenizers a plain `Exception`.

    Args:
        what: What is loaded.
        source: The folder, or the name on the hub.
        remedy: What to do where `source` is a folder.
    """
    try:
        yield
    except Exception as error:
        text = str(error)
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "allocate memory" in text:
            advice = "there is not enough memory; load it in bfloat16, or on another device"
        elif known := [line for option, line in _OTHERS_ADVICE.items() if option in text]:
            advice = known[0]
        elif Path(source).is_dir():
            advice = f"{_cause(error)}; {remedy}"
        else:
            advice = (
                f"{_cause(error)}; there is no folder of this name here either: check the name "
                "and the connection, or give the folder of a saved model, or 'demo'"
            )
        raise ModelError(f"cannot load {what}: {advice}") from error


def _parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | str:
    if dtype is None or dtype == "auto":
        return "auto"
    for name, known in _DTYPES.items():
        if dtype in (name, known):
            return known
    raise ModelError(f"unknown dtype {dtype!r}; give one of {', '.join(_DTYPES)}")


def _parse_device(device: str | torch.device | None) -> str:
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "auto":
        return "auto"
    try:
        parsed = torch.device(device)
    except (RuntimeError, ValueError):
        raise ModelError(f"unknown device {device!r}; give cpu, cuda, cuda:1 … or auto") from None
    if parsed.type == "cuda" and not torch.cuda.is_available():
        raise ModelError("there is no CUDA device here; give device='cpu'")
    return str(parsed)


def _cause(error: Exception) -> str:
    """The first line, which the following ones belong to where it ends in a colon."""
    lines = str(error).strip().splitlines()
    if not lines or isinstance(error, LookupError):  # a key alone says nothing
        return " ".join([type(error).__name__, *lines])
    text = " ".join(lines) if lines[0].endswith(":") else lines[0]
    return textwrap.shorten(text, _CAUSE_LENGTH, placeholder=" …").rstrip(".")
