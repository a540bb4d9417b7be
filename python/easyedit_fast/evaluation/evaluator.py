"""Scores a model on edit requests, in EasyEdit's nesting."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from easyedit_fast.data import RequestTokenizer
from easyedit_fast.errors import RequestError
from easyedit_fast.evaluation.decoding import Decoder, Passage
from easyedit_fast.evaluation.generation import TopFive, text_of
from easyedit_fast.evaluation.other_tokens import (
    predicted_in,
    prompts_in_other_tokens,
    rows_in_other_tokens,
)
from easyedit_fast.evaluation.passages import RowTokens, after_contexts, tokens_of
from easyedit_fast.evaluation.routing import RoutedRows, Routing
from easyedit_fast.evaluation.rows import Row, rows_of
from easyedit_fast.failures import numbered
from easyedit_fast.metrics import begins_with, n_gram_entropy, same_text, token_agreement
from easyedit_fast.models.adapters import refuse_answers_from_edits
from easyedit_fast.models.generation import end_ids
from easyedit_fast.models.limits import context_length, find_token, tokens_without_embedding

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from easyedit_fast.evaluation.isolation import Updates
    from easyedit_fast.requests import EditRequest

_FLUENCY_TOKENS = 100  # of the prompt and its continuation, as in EasyEdit


class Evaluator:
    """Runs the prompts of edit requests through a model.

    The scores of a prompt do not depend on the prompts that share its batch.

    Attributes:
        model: The model.
        tokenizer: Its tokenizer.
        batch_size: Prompts that run together; fewer where memory runs out.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 256
    ) -> None:
        """Takes a model and its (fast) tokenizer; the model's state is left as it is.

        Raises:
            ModelError: The model answers from edits; its base model is wanted.
        """
        refuse_answers_from_edits(model)
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size

    def score(
        self,
        requests: Sequence[EditRequest],
        *,
        updates: Sequence[Updates] | None = None,
        routing: Routing | None = None,
        generate: bool = True,
        fluency: bool = False,
    ) -> list[dict[str, Any]]:
        """Scores the model as it is, or each request in a model of its own.

        Args:
            requests: The requests.
            updates: One edit a request, added while its prompts run; the weights stay as they
                are. None: the model as it is.
            routing: In place of updates, where each prompt goes.
            generate: Whether to score greedy generations too.
            fluency: Whether to measure the n-gram entropy of a text of 100 tokens that begins
                with the prompt.

        Returns:
            One dict a request: ``rewrite_acc`` [one score], ``rephrase_acc`` [one a prompt],
            ``locality`` {``<key>_output``: token ids of each prompt}, ``portability``
            {``<key>_acc``: one a prompt with a known answer}. Under ``generated`` the same with
            greedy generations: ``…_acc`` is 1 where the text begins with the answer, and
            ``…_text`` is the text. ``fluency`` {``ngram_entropy``}: see `metrics.n_gram_entropy`.
            Whether locality holds is told by `compare`.

        Raises:
            RequestError: A prompt is longer than the model's context, or holds a token that the
                model has no embedding for.
            OutOfMemoryError: One prompt alone takes more memory than there is.
        """
        rows = rows_of(requests)
        if not rows:
            return []
        tokenizer = RequestTokenizer.from_transformers(self.tokenizer)
        with numbered([row.request for row in rows]):
            tokens = tokens_of(tokenizer, rows, generate=generate)
        self._require_embeddings(rows, tokens)
        routed = None
        if routing is not None:
            owners = [row.request for row in rows]
            contexts = routing.contexts([row.prompt for row in rows], owners)
            routed = RoutedRows(routing, [context is not None for context in contexts])
            if routing.tokenizer is not self.tokenizer:
                tokens = rows_in_other_tokens(routed, rows, tokens, generate=generate)
            tokens = after_contexts(tokens, contexts, routing.tokenizer.bos_token_id)
        self._require_room(rows, tokens, routed)
        edits = None if updates is None else [updates[row.request] for row in rows]
        scores = [_entry() for _ in requests]
        for score in scores if generate else ():
            score["generated"] = _entry()
        for row, each, (predicted, text) in zip(
            rows, tokens, self._run(rows, tokens, edits, routed), strict=True
        ):
            _add_prediction(scores[row.request], row, predicted, each.passages[0].answer)
            if generate:
                _add_text(scores[row.request]["generated"], row, text)
        if fluency:
            entropies = self._entropies(requests, updates, routing)
            for score, entropy in zip(scores, entropies, strict=True):
                score["fluency"] = {"ngram_entropy": entropy}
        return scores

    def _run(
        self,
        rows: Sequence[Row],
        tokens: Sequence[RowTokens],
        edits: Sequence[Updates] | None,
        routed: RoutedRows | None,
    ) -> Iterator[tuple[list[int], str]]:
        """For each row what is predicted of its answer, and its continuation."""
        owners = [place for place, each in enumerate(tokens) for _ in each.passages]
        ends = self._ends(self)
        with numbered([rows[place].request for place in owners]):
            outcomes = Decoder(self.model, ends, self.batch_size).run(
                [passage for each in tokens for passage in each.passages],
                None if edits is None else [edits[place] for place in owners],
                None if routed is None else routed.of(owners),
            )
        left = iter(outcomes)
        for place, (row, each) in enumerate(zip(rows, tokens, strict=True)):
            own = [next(left) for _ in each.passages]
            who = self._answering(routed, place)
            predicted = own[0].predicted
            if who.tokenizer is not self.tokenizer and row.section == "locality":
                predicted = predicted_in(self.tokenizer, row, text_of(who.tokenizer, predicted))
            yield predicted, text_of(who.tokenizer, own[-1].continuation, self._ends(who))

    def _answering(self, routed: RoutedRows | None, row: int) -> Evaluator | Routing:
        """What has the model and the tokenizer that answer a row."""
        return self if routed is None or not routed.routed[row] else routed.routing

    @staticmethod
    def _ends(who: Evaluator | Routing) -> frozenset[int]:
        return frozenset(end_ids(who.model, who.tokenizer))

    def _entropies(
        self,
        requests: Sequence[EditRequest],
        updates: Sequence[Updates] | None,
        routing: Routing | None,
    ) -> list[float]:
        """The fluency of each request's prompt with a sampled continuation."""
        tokenizer = RequestTokenizer.from_transformers(self.tokenizer)
        texts = [request.prompt for request in requests]
        prompts = tokenizer.encode_prompts(texts)
        routed = contexts = None
        if routing is not None:
            contexts = routing.contexts(texts, range(len(texts)))
            routed = RoutedRows(routing, [context is not None for context in contexts])
            if routing.tokenizer is not self.tokenizer:
                prompts = prompts_in_other_tokens(routed, texts, prompts)
        most = min(_FLUENCY_TOKENS, context_length(self.model) or _FLUENCY_TOKENS)
        rows = [
            RowTokens((Passage(prompt, len(prompt), max(0, most - len(prompt))),), most)
            for prompt in prompts
        ]
        if routing is not None and contexts is not None:
            rows = after_contexts(rows, contexts, routing.tokenizer.bos_token_id)
        passages = [self._within(row.passages[0], routed, at) for at, row in enumerate(rows)]
        # The text goes on after an end-of-sequence, as there.
        decoder = Decoder(self.model, batch_size=self.batch_size, choose=TopFive(most))
        outcomes = decoder.run(passages, updates, routed)
        whole = [
            [*prompt, *one.continuation] for prompt, one in zip(prompts, outcomes, strict=True)
        ]
        return [
            n_gram_entropy(text_of(self._answering(routed, row).tokenizer, tokens))
            for row, tokens in enumerate(whole)
        ]

    def _within(self, passage: Passage, routed: RoutedRows | None, row: int) -> Passage:
        """A passage that keeps to what its model reads: a context takes some of the room."""
        limit = context_length(self._answering(routed, row).model)
        room = passage.new_tokens if limit is None else max(0, limit - passage.start)
        return dataclasses.replace(passage, new_tokens=min(passage.new_tokens, room))

    def _require_embeddings(self, rows: Sequence[Row], tokens: Sequence[RowTokens]) -> None:
        unknown = tokens_without_embedding(self.model, self.tokenizer)
        if not unknown:
            return
        for row, each in zip(rows, tokens, strict=True):
            scored = each.passages[0]
            found = find_token(np.array([scored.tokens]), unknown)
            if found is not None:
                _, column, reason = found
                field = _field(row, in_answer=column >= scored.start)
                raise RequestError(reason, record=row.request, field=field)

    def _require_room(
        self, rows: Sequence[Row], tokens: Sequence[RowTokens], routed: RoutedRows | None
    ) -> None:
        for place in sorted(range(len(rows)), key=lambda place: -tokens[place].length):
            limit = context_length(self._answering(routed, place).model)
            length, row = tokens[place].length, rows[place]
            if limit is not None and length > limit:
                raise RequestError(
                    f"{row.prompt[:40]!r}… needs {length} tokens with its answer, and the model "
                    f"takes {limit}; shorten it",
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


def _add_prediction(
    entry: dict[str, Any], row: Row, predicted: list[int], answer: Sequence[int]
) -> None:
    section = _section(entry, row)
    if row.section == "locality":
        section.setdefault(f"{row.key}_output", []).append(predicted)
    elif row.target is not None:
        section.setdefault(f"{row.key}_acc", []).append(token_agreement(predicted, answer))


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
