"""Load a causal language model and its tokenizer by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from easyedit_fast.errors import MissingFileError, ModelError
from easyedit_fast.models.compat import dtype_argument, quiet_transformers
from easyedit_fast.models.demo import DEMO_MODEL, demo_folder

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def load_model(
    name_or_path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a causal language model, in evaluation mode, and its tokenizer.

    Args:
        name_or_path: "demo" for the packaged demo model, a folder, or a name on the hub.
        device: Where to put the model; "auto" spreads it over all devices. The default is the
            first CUDA device where there is one, else the CPU.
        dtype: Of the weights, as a `torch.dtype` or its name. The default is the checkpoint's.
        revision: Of a model on the hub.

    Returns:
        The model and the tokenizer. Where the tokenizer has no pad token, its end-of-text token
        pads.

    Raises:
        ModelError: No causal language model, not found on the hub, or damaged.
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
        model = _load_weights(source, wanted, place, hub)
        tokenizer = _load_tokenizer(source, hub)
    # Edits and adapters name the model: by what others can load, not by a folder of this machine.
    model.name_or_path = model.config.name_or_path = str(name_or_path)
    return model, tokenizer


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

    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(source, **hub)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"cannot load the model {source!r}: {_first_line(error)}") from error
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or config.is_encoder_decoder:
        raise ModelError(
            f"{source!r} holds a {config.model_type} model, which is no causal language model; "
            "give one that continues text, such as Llama, Qwen or GPT-2"
        )


def _load_weights(
    source: str, dtype: torch.dtype | str, device: str, hub: dict[str, Any]
) -> PreTrainedModel:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    model: PreTrainedModel
    report: dict[str, Any]
    load: Any = AutoModelForCausalLM.from_pretrained
    try:
        model, report = load(
            source, device_map=device, output_loading_info=True, **dtype_argument(dtype), **hub
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"cannot load the weights of {source!r}: {_first_line(error)}") from error
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{source!r} lacks {len(missing)} weights of a {type(model).__name__} (the first is "
            f"{missing[0]!r}); give a checkpoint that was saved as a causal language model"
        )
    model.eval()
    return model


def _load_tokenizer(source: str, hub: dict[str, Any]) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, **hub)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(
            f"cannot load the tokenizer of {source!r}: {_first_line(error)}"
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


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


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
