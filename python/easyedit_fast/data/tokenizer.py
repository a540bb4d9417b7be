"""Texts to padded batches of tokens, with the places of subjects and targets in them."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from easyedit_fast.data import native
from easyedit_fast.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from easyedit_fast import _loader

IGNORED_LABEL = -100
"""Label of all tokens outside the target, as torch's cross entropy passes over it."""

Span = tuple[int, int]
"""Characters [start, end) of a text, counted as Python counts them."""

_ANY_TEXT = "a"


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class TokenBatch:
    """Padded rows of tokens: n rows, the longest of t tokens; all arrays are int64.

    Attributes:
        input_ids: Token ids [n, t].
        attention_mask: 1 for tokens, 0 for pads [n, t].
        lengths: Tokens of each row without its pads [n].
        labels: Ids of the target's tokens, -100 elsewhere [n, t]; None without target spans.
        subject_last: Place of the subject's last token in the padded row [n]; None without
            subject spans.
    """

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    lengths: NDArray[np.int64]
    labels: NDArray[np.int64] | None = None
    subject_last: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, batch: _loader.Batch) -> TokenBatch:
        """The arrays of a batch of the Rust module."""
        return cls(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            lengths=batch.lengths,
            labels=batch.labels,
            subject_last=batch.subject_last,
        )


class RequestTokenizer:
    """A model's tokenizer in the Rust module; its ids are those of transformers.

    Attributes:
        pad_id: Id of the pads.
        native: The tokenizer of the Rust module.
        added_after: How many tokens it puts after every text, an EOS say.
    """

    def __init__(self, json: str, *, pad_id: int, split_special_tokens: bool = False) -> None:
        """Reads the text of a ``tokenizer.json``.

        Truncation and padding that it may ask for are switched off.

        Args:
            json: The text.
            pad_id: Id of the pads.
            split_special_tokens: Whether special tokens inside a text are plain text.

        Raises:
            ModelError: The text describes no tokenizer.
            NativeModuleError: The Rust module cannot be used.
        """
        self.pad_id = pad_id
        self.native = native.open_tokenizer(json, split_special_tokens=split_special_tokens)
        self.added_after = self._added_after()

    @classmethod
    def from_transformers(cls, tokenizer: PreTrainedTokenizerBase) -> RequestTokenizer:
        """Takes over a fast tokenizer of transformers.

        The first call writes the tokenizer out and reads it again: about 0.2 s for 50,000 tokens,
        more for more. Later calls with the same, unchanged tokenizer give the same object at once.

        Raises:
            ModelError: A slow tokenizer, or one with neither pad nor EOS token.
            NativeModuleError: The Rust module cannot be used.
        """
        name = type(tokenizer).__name__
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ModelError(
                f"{name} is a slow tokenizer, without a tokenizer.json; "
                "load the model's fast one: AutoTokenizer.from_pretrained(…, use_fast=True)"
            )
        pad_id = tokenizer.pad_token_id
        if pad_id is None:
            pad_id = tokenizer.eos_token_id
        if pad_id is None:
            raise ModelError(f"{name} has neither a pad nor an EOS token; set its pad_token")
        key = _fingerprint(tokenizer, backend, pad_id)
        known = _KNOWN.get(tokenizer)
        if known is None or known[0] != key:
            split = bool(getattr(tokenizer, "split_special_tokens", False))
            known = key, cls(backend.to_str(), pad_id=pad_id, split_special_tokens=split)
            _KNOWN[tokenizer] = known
        return known[1]

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return self.native.vocab_size

    def encode(
        self,
        texts: Sequence[str],
        *,
        subject_spans: Sequence[Span] | None = None,
        target_spans: Sequence[Span] | None = None,
        padding_side: Literal["left", "right"] = "right",
        add_special_tokens: bool = True,
    ) -> TokenBatch:
        """Tokenises n texts, in parallel and without the GIL, and pads them to the longest.

        A token belongs to a span where the characters that it stands for overlap it; tokens that
        the tokenizer itself adds (BOS and the like) belong to none.

        Args:
            texts: The n texts.
            subject_spans: One span a text, the subject; or None.
            target_spans: One span a text, the target, whose tokens become labels; or None.
            padding_side: Where the pads stand.
            add_special_tokens: Whether the tokenizer adds its special tokens.

        Raises:
            RequestError: A span outside its text or without a token, or a text that is no valid
                Unicode; it names the row.
            ValueError: A wrong number of spans, an unknown side, or a batch beyond all bounds.
        """
        batch = self.native.encode(
            texts,
            subject_spans=subject_spans,
            target_spans=target_spans,
            padding_side=padding_side,
            pad_id=self.pad_id,
            add_special_tokens=add_special_tokens,
        )
        return TokenBatch.of(batch)

    def encode_prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of texts that go on, so that what is put after every text is left out.

        What a text itself ends with stays, be it an EOS.

        Args:
            texts: The texts.

        Raises:
            RequestError: A text is no valid Unicode; it names the row.
        """
        batch = self.encode(texts)
        rows = zip(batch.input_ids, batch.lengths - self.added_after, strict=True)
        return [ids[:length].tolist() for ids, length in rows]

    def batch_prompts(self, texts: Sequence[str]) -> TokenBatch:
        """As `encode_prompts`, padded on the left for ``generate``."""
        batch = self.encode(texts, padding_side="left")
        width = batch.input_ids.shape[1] - self.added_after
        return TokenBatch(
            batch.input_ids[:, :width],
            batch.attention_mask[:, :width],
            batch.lengths - self.added_after,
        )

    def _added_after(self) -> int:
        """Looks at one text, for it is the same with all."""
        whole, text = (
            self.encode([_ANY_TEXT], add_special_tokens=added).input_ids[0].tolist()
            for added in (True, False)
        )
        ends = range(len(whole), len(text) - 1, -1)
        last = next((end for end in ends if whole[end - len(text) : end] == text), len(whole))
        return len(whole) - last


_KNOWN: weakref.WeakKeyDictionary[Any, tuple[tuple[Any, ...], RequestTokenizer]] = (
    weakref.WeakKeyDictionary()
)
"""Per transformers tokenizer, for as long as it lives: its fingerprint and ours."""


def _fingerprint(tokenizer: PreTrainedTokenizerBase, backend: Any, pad_id: int) -> tuple[Any, ...]:
    """All of a tokenizer that its owner can change and that changes ids, in microseconds."""
    parts = (backend.normalizer, backend.pre_tokenizer, backend.post_processor)
    added = backend.get_added_tokens_decoder()
    return (
        id(backend),
        pad_id,
        bool(getattr(tokenizer, "split_special_tokens", False)),
        tuple(None if part is None else part.__getstate__() for part in parts),
        tuple((number, repr(token)) for number, token in sorted(added.items())),
    )
