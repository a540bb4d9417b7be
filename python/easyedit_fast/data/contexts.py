"""Tokens that go before a prompt's own."""

from __future__ import annotations

from collections.abc import Sequence


def with_context(tokens: Sequence[int], context: Sequence[int], bos: int | None) -> list[int]:
    """The context and then the tokens, but for the one that begins every text, which stays first.

    Args:
        tokens: The prompt's.
        context: What goes before it, without special tokens.
        bos: The token that begins every text; None where the model knows none.
    """
    begins = int(bool(tokens) and tokens[0] == bos)
    return [*tokens[:begins], *context, *tokens[begins:]]
