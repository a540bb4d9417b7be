"""The rows that ROME's optimisation runs: every request under every context template.

A request gives one row a template, "template(prompt) target", and one row "{subject} is a",
on which the KL term keeps what the model knows of the subject.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from easyedit_fast.data import RequestTokenizer, TokenBatch
from easyedit_fast.errors import RequestError
from easyedit_fast.models.limits import refuse_long_rows, refuse_unknown_tokens
from easyedit_fast.requests import EditRequest
from easyedit_fast.rome.hparams import FactToken

_ESSENCE = " is a"


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Tokenised rows, padded on the right; tokens that no loss depends on are cut off.

    Attributes:
        input_ids: [rows, tokens] int64.
        attention_mask: [rows, tokens] int64.
        fact_position: [rows] int64: the token whose value is edited (the subject's last).
        request: [rows] int64: the request that the row belongs to, ascending.
        is_essence: [rows] bool: the rows "{subject} is a".
        target_row: [targets] int64: the row of each target token.
        target_position: [targets] int64: the position whose logits predict it.
        target_id: [targets] int64: its id.
        bare_row: [requests] int64: each request's row under the first template.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    fact_position: torch.Tensor
    request: torch.Tensor
    is_essence: torch.Tensor
    target_row: torch.Tensor
    target_position: torch.Tensor
    target_id: torch.Tensor
    bare_row: torch.Tensor

    def to(self, device: torch.device) -> Rows:
        """The same on another device."""
        return Rows(*(getattr(self, field.name).to(device) for field in dataclasses.fields(self)))

    def select(self, rows: torch.Tensor) -> Rows:
        """Some of the rows, all rows of a request or none; rows and requests count anew.

        Args:
            rows: [n], ascending.
        """
        place = torch.full_like(self.request, -1)
        place[rows] = torch.arange(len(rows), device=rows.device)
        targets = (place[self.target_row] >= 0).nonzero().squeeze(1)
        _, request = torch.unique_consecutive(self.request[rows], return_inverse=True)
        bare = place[self.bare_row]
        return Rows(
            input_ids=self.input_ids[rows],
            attention_mask=self.attention_mask[rows],
            fact_position=self.fact_position[rows],
            request=request,
            is_essence=self.is_essence[rows],
            target_row=place[self.target_row[targets]],
            target_position=self.target_position[targets],
            target_id=self.target_id[targets],
            bare_row=bare[bare >= 0],
        )


def build_rows(
    tokenizer: RequestTokenizer,
    requests: Sequence[EditRequest],
    templates: Sequence[str],
    fact_token: FactToken,
    device: torch.device,
    *,
    context: int | None = None,
    unknown: Mapping[int, str] | None = None,
) -> Rows:
    """Builds the rows of some requests.

    Args:
        tokenizer: The model's tokenizer.
        requests: The requests.
        templates: The context templates.
        fact_token: Which token is edited.
        device: Where the rows shall be.
        context: The most tokens that the model reads; None for any number.
        unknown: Tokens that the model has no embedding for, by id; None for none.

    Raises:
        RequestError: The fact token of a request comes after the first token of its target, a
            row is longer than `context` or holds an `unknown` token, or the subject or target has
            no token.
    """
    rows_per_request = len(templates) + 1
    rows = len(requests) * rows_per_request
    number = np.arange(rows) // rows_per_request
    batch = _encode(tokenizer, requests, templates, fact_token, number)
    assert batch.labels is not None
    assert batch.subject_last is not None
    refuse_unknown_tokens(batch.input_ids, batch.labels, number, unknown or {})
    fact_position = batch.subject_last + (fact_token == "subject_first_after_last")
    essence_rows = np.arange(rows) % rows_per_request == len(templates)
    target_row, label_position = np.nonzero((batch.labels != -100) & ~essence_rows[:, None])
    target_id = batch.labels[target_row, label_position]
    _refuse_late_fact(fact_position[target_row], label_position, number[target_row])
    length = fact_position + 1
    np.maximum.at(length, target_row, label_position)
    refuse_long_rows(length, number, context, "context template and target")
    width = int(length.max())
    kept = np.arange(width) < length[:, None]

    def tensor(array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(device)

    return Rows(
        input_ids=tensor(batch.input_ids[:, :width]),
        attention_mask=tensor(kept.astype(np.int64)),
        fact_position=tensor(fact_position),
        request=tensor(np.arange(rows) // rows_per_request),
        is_essence=tensor(essence_rows),
        target_row=tensor(target_row),
        target_position=tensor(label_position - 1),
        target_id=tensor(target_id),
        bare_row=tensor(np.arange(len(requests)) * rows_per_request),
    )


def _encode(
    tokenizer: RequestTokenizer,
    requests: Sequence[EditRequest],
    templates: Sequence[str],
    fact_token: FactToken,
    number: np.ndarray,
) -> TokenBatch:
    """The rows of all requests as tokens; an error names the request by ``number [rows]``."""
    texts: list[tuple[str, tuple[int, int], tuple[int, int]]] = []
    for request in requests:
        texts += [_rewrite_text(request, template, fact_token) for template in templates]
        essence = request.subject + _ESSENCE
        end = len(essence)
        fact_span = _fact_span((0, len(request.subject)), end, fact_token)
        texts.append((essence, fact_span, (end - 1, end)))
    try:
        return tokenizer.encode(
            [text for text, _, _ in texts],
            subject_spans=[span for _, span, _ in texts],
            target_spans=[span for _, _, span in texts],
        )
    except RequestError as error:
        record = None if error.record is None else int(number[error.record])
        raise RequestError(error.reason, record=record, field=error.field) from None


def _refuse_late_fact(fact_position: np.ndarray, label: np.ndarray, number: np.ndarray) -> None:
    late = np.flatnonzero(fact_position >= label)
    if len(late):
        raise RequestError(
            "its fact token is part of its target; let the prompt go on after the subject, or use "
            "fact_token='subject_last'",
            record=int(number[late[0]]),
            field="prompt",
        )


def _rewrite_text(
    request: EditRequest, template: str, fact_token: FactToken
) -> tuple[str, tuple[int, int], tuple[int, int]]:
    """The text of a row, the span of its fact token and the span of its target."""
    shift = template.index("{}")
    prompt = template.replace("{}", request.prompt)
    start, end = request.subject_span
    fact_span = _fact_span((start + shift, end + shift), len(prompt), fact_token)
    text = f"{prompt} {request.target_new}"
    # The space counts, for some tokenizers make a token of it alone (EasyEdit has it so too).
    return text, fact_span, (len(prompt), len(text))


def _fact_span(subject: tuple[int, int], prompt_end: int, fact_token: FactToken) -> tuple[int, int]:
    if fact_token == "last":
        return prompt_end - 1, prompt_end
    if fact_token == "subject_first":
        return subject[0], subject[0] + 1
    return subject
