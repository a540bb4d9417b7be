"""What one request, and all of them together, may ask for."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of a server; whoever asks for more gets an error that names the limit.

    Attributes:
        body_bytes: Of a request's body.
        prompt_tokens: Of a prompt; None: as many as the model reads.
        prompts: Of one request.
        edits: Of one request, and of one page of a list.
        edit_tokens: Of an edit's prompt and target, which are read before a prompt in its scope.
        max_tokens: New tokens of one answer.
        n: Answers to one prompt.
        requests: That are being answered, or wait to be, at one time.
        batch_rows: Answers that are generated together.
        batch_tokens: Tokens of these, pads and new ones included.
        body_seconds: For a request's body to arrive.
    """

    body_bytes: int = 1 << 20
    prompt_tokens: int | None = None
    prompts: int = 64
    edits: int = 1000
    edit_tokens: int = 512
    max_tokens: int = 1024
    n: int = 8
    requests: int = 64
    batch_rows: int = 16
    batch_tokens: int = 1 << 14
    body_seconds: float = 30.0
