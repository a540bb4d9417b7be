"""Scores a model on edit requests, in EasyEdit's nesting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from easyedit_fast.data import RequestTokenizer
from easyedit_fast.errors import RequestError
from easyedit_fast.evaluation.generation import continue_greedily
from easyedit_fast.evaluation.rows import Row, rows_of
from easyedit_fast.evaluation.teacher_forcing import Prediction, predict_targets
from easyedit_fast.metrics import IGNORED_LABEL, begins_with, same_text, token_agreement
from easyedit_fast.models.limits import context_length, find_token, tokens_without_embedding

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from easyedit_fast.data import TokenBatch
    from easyedit_fast.evaluation.isolation import Updates
    from easyedit_fast.requests import EditRequest

_NEW_TOKENS = 10  # of a generation at least
_SPARE_TOKENS = 4  # beyond the answer: the model may spell it in more tokens than the tokenizer


class Evaluator:
    """Runs the prompts of edit requests through a model.

    The scores of a prompt do not depend on the prompts that share its batch.

    Attributes:
        model: The model.
        tokenizer: Its tokenizer.
        batch_size: Prompts in a forward pass.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 64
    ) -> None:
        """Takes a model and its (fast) tokenizer; the model's state is left as it is."""
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size

    def score(
        self,
        requests: Sequence[EditRequest],
        *,
        updates: Sequence[Updates] | None = None,
        generate: bool = True,
    ) -> list[dict[str, Any]]:
        """Scores the model as it is, or each request in a model of its own.

        Args:
            requests: The requests.
            updates: One edit a request, added while its prompts run; the weights stay as they
                are. None: the model as it is.
            generate: Whether to score greedy generations too.

        Returns:
            One dict a request: ``rewrite_acc`` [one score], ``rephrase_acc`` [one a prompt],
            ``locality`` {``<key>_output``: token ids of each prompt}, ``portability``
            {``<key>_acc``: one a prompt with a known answer}. Under ``generated`` the same with
            greedy generations: ``…_acc`` is 1 where the text begins with the answer, and
            ``…_text`` is the text. Whether locality holds is told by `compare`.

        Raises:
            RequestError: A prompt is longer than the model's context, or holds a token that the
                model has no embedding for.
        """
        rows = rows_of(requests)
        if not rows:
            return []
        batch = RequestTokenizer.from_transformers(self.tokenizer).encode(
            [row.text for row in rows], target_spans=[row.target_span for row in rows]
        )
        new_tokens = _new_tokens(rows, batch)
        self._require_embeddings(rows, batch)
        self._require_room(rows, batch.lengths + (new_tokens if generate else 0))
        edits = None if updates is None else [updates[row.request] for row in rows]
        predictions = predict_targets(self.model, rows, batch, edits, self.batch_size)
        scores = [_entry() for _ in requests]
        for row, prediction in zip(rows, predictions, strict=True):
            _add_prediction(scores[row.request], row, prediction)
        if generate:
            texts = continue_greedily(
                self.model,
                self.tokenizer,
                [row.prompt for row in rows],
                new_tokens.tolist(),
                updates=edits,
                batch_size=self.batch_size,
            )
            for score in scores:
                score["generated"] = _entry()
            for row, text in zip(rows, texts, strict=True):
                _add_text(scores[row.request]["generated"], row, text)
        return scores

    def _require_embeddings(self, rows: Sequence[Row], batch: TokenBatch) -> None:
        unknown = tokens_without_embedding(self.model, self.tokenizer)
        found = find_token(batch.input_ids, unknown)
        if found is not None:
            row, column, reason = found
            assert batch.labels is not None
            field = _field(rows[row], in_answer=batch.labels[row, column] != IGNORED_LABEL)
            raise RequestError(reason, record=rows[row].request, field=field)

    def _require_room(self, rows: Sequence[Row], lengths: NDArray[np.int64]) -> None:
        limit = context_length(self.model)
        if limit is None or int(lengths.max()) <= limit:
            return
        row = rows[int(lengths.argmax())]
        raise RequestError(
            f"{row.prompt[:40]!r}… needs {int(lengths.max())} tokens with its answer, and the "
            f"model takes {limit}; shorten it",
            record=row.request,
            field=_field(row),
        )


def compare(pre: Mapping[str, Any], post: Mapping[str, Any]) -> dict[str, Any]:
    """Tells how far a request's locality prompts are answered as before the edit.

    Args:
        pre: What `Evaluator.score` gave for the request before the edit.
        post: The same after the edit.

    Returns:
        `post` with ``locality`` ``<key>_acc``: for each prompt the share of predicted tokens that
        are the same, and in ``generated`` 1 where the generated texts are the same.
    """
    locality = dict(post["locality"])
    for key, before in pre["locality"].items():
        pairs = zip(before, post["locality"][key], strict=True)
        name = f"{key.removesuffix('_output')}_acc"
        locality[name] = [token_agreement(one, other) for one, other in pairs]
    compared = {**post, "locality": locality}
    if "generated" in pre and "generated" in post:
        compared["generated"] = _compare_texts(pre["generated"], post["generated"])
    return compared


def merge(
    requests: Sequence[EditRequest],
    pre: Sequence[Mapping[str, Any]],
    post: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """Joins the scores before and after an edit, one dict a request.

    Returns:
        Per request ``pre``, ``case_id`` (its place), ``requested_rewrite`` and ``post``.
    """
    return [
        {
            "pre": dict(before),
            "case_id": place,
            "requested_rewrite": request.to_dict(),
            "post": compare(before, after),
        }
        for place, (request, before, after) in enumerate(zip(requests, pre, post, strict=True))
    ]


def _compare_texts(pre: Mapping[str, Any], post: Mapping[str, Any]) -> dict[str, Any]:
    locality = dict(post["locality"])
    for key, before in pre["locality"].items():
        pairs = zip(before, post["locality"][key], strict=True)
        name = f"{key.removesuffix('_text')}_acc"
        locality[name] = [float(same_text(one, other)) for one, other in pairs]
    return {**post, "locality": locality}


def _entry() -> dict[str, Any]:
    return {"rewrite_acc": [], "locality": {}, "portability": {}}


def _add_prediction(entry: dict[str, Any], row: Row, prediction: Prediction) -> None:
    section = _section(entry, row)
    if row.section == "locality":
        section.setdefault(f"{row.key}_output", []).append(prediction.tokens)
    elif prediction.accuracy is not None:
        section.setdefault(f"{row.key}_acc", []).append(prediction.accuracy)


def _add_text(entry: dict[str, Any], row: Row, text: str) -> None:
    section = _section(entry, row)
    section.setdefault(f"{row.key}_text", []).append(text)
    if row.section != "locality" and row.target is not None:
        section.setdefault(f"{row.key}_acc", []).append(float(begins_with(text, row.target)))


def _section(entry: dict[str, Any], row: Row) -> dict[str, Any]:
    """Where a row's scores stand: in the entry itself, or in one of its two nested mappings."""
    nested: dict[str, Any] = entry.get(row.section, entry)
    return nested


def _field(row: Row, *, in_answer: bool = False) -> str:
    """The field of a request that a row comes from; the answer of a probe is part of its field."""
    if row.section in ("rewrite", "rephrase") and in_answer:
        return "target_new"
    plain = {"rewrite": "prompt", "rephrase": "rephrase_prompt"}
    return plain.get(row.section, f"{row.section}.{row.key}")


def _new_tokens(rows: Sequence[Row], batch: TokenBatch) -> NDArray[np.int64]:
    """How many tokens to generate for each row [n]."""
    assert batch.labels is not None
    answers = (batch.labels != IGNORED_LABEL).sum(axis=1)
    answers[[row.target is None for row in rows]] = 0
    wanted: NDArray[np.int64] = np.maximum(answers + _SPARE_TOKENS, _NEW_TOKENS)
    return wanted
