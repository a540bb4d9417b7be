"""The records that SERAC learns from: prompts for the scope, tokens for the adapter."""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from easyedit_fast.models.limits import context_length
from easyedit_fast.serac.answers import Answered, BaseAnswers, answered
from easyedit_fast.serac.continuations import Continuations
from easyedit_fast.serac.counterfactual import edit_context
from easyedit_fast.serac.forms import Forms
from easyedit_fast.training.records import locality_texts

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from easyedit_fast.requests import EditRequest


class SeracData:
    """Records, and their prompts as tokens.

    Attributes:
        requests: The records.
        rewrites: The rewrite prompt of each record, with its target.
        rephrase_prompts: Of each record, the texts of its rephrase prompts; the rewrite prompt
            where it has none.
        rephrases: The same with its target.
        locality_prompts: Of each record, the texts of its locality prompts.
        localities: Of each record, the places of its locality prompts in `probes`.
        probes: All locality prompts, each with its answer where one is known.
        base: What the unedited model answers: to the locality prompts, to the others, and after
            the targets.
        forms: Other forms of its prompts.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        requests: Sequence[EditRequest],
        unedited: PreTrainedModel | None = None,
        *,
        chats: bool = False,
    ) -> None:
        """Tokenises the prompts.

        Args:
            model: The model that answers from edits, before it has its adapter.
            tokenizer: Its (fast) tokenizer.
            requests: The records.
            unedited: Answers prompts in no edit's scope, in the same tokens; None: `model`.
            chats: Whether the model is asked in chats, too.

        Raises:
            RequestError: A record has no locality prompt, or does not fit the model.
        """
        self.requests = list(requests)
        texts = [_texts(place, request) for place, request in enumerate(requests)]
        self.rephrase_prompts = [[text for _, text, _ in own[1]] for own in texts]
        self.locality_prompts = [[text for _, text, _ in own[2]] for own in texts]
        kinds = [list(itertools.chain.from_iterable(own[kind] for own in texts)) for kind in (0, 1)]
        self.rewrites = answered(model, tokenizer, kinds[0])
        made = iter(answered(model, tokenizer, kinds[1]))
        self.rephrases = [[next(made) for _ in own[1]] for own in texts]
        probes = answered(model, tokenizer, [text for own in texts for text in own[2]])
        numbers = iter(range(len(probes)))
        self.localities = [[next(numbers) for _ in own[2]] for own in texts]
        self.probes = probes
        self._known = [*probes, *self.rewrites, *itertools.chain.from_iterable(self.rephrases)]
        self.base = BaseAnswers(unedited or model, self._known)
        self._continued: dict[int, int | None] = {}
        self._word_ends: dict[int, int] = {}
        self._continuations = Continuations(self.base.model, tokenizer)
        self._limit = min(context_length(one) or sys.maxsize for one in (model, self.base.model))
        numbers = iter(range(len(probes), len(self._known)))
        self._base_rewrites = [next(numbers) for _ in self.rewrites]
        self._base_rephrases = [[next(numbers) for _ in own] for own in self.rephrases]
        self._tokenizer = tokenizer
        self.forms = Forms(model, tokenizer, ends=self._continuations.ends, chats=chats)
        self._other_forms: dict[int, list[Answered]] = {}

    def __len__(self) -> int:
        return len(self.requests)

    def with_edit(self, row: Answered, place: int) -> Answered:
        """A row after the edit of a record."""
        context = edit_context(self._tokenizer, self.requests[place])
        return row.after(context, self._tokenizer.bos_token_id)

    def inside(self, place: int, iteration: int, chosen: int) -> tuple[str, Answered, int]:
        """What a batch asks of a record's target: the rewrite prompt, or one of the rephrase ones.

        Returns:
            The prompt, the same with the target, and its place in `base`.
        """
        if iteration % 2 == 0:
            return self.requests[place].prompt, self.rewrites[place], self._base_rewrites[place]
        prompt, row = self.rephrase_prompts[place][chosen], self.rephrases[place][chosen]
        return prompt, row, self._base_rephrases[place][chosen]

    def other_forms(self, place: int) -> list[Answered]:
        """A record's target as it is asked for in other forms than its prompts have."""
        if place not in self._other_forms:
            request = self.requests[place]
            context = edit_context(self._tokenizer, request)
            self._other_forms[place] = self.forms.of(request, len(context))
        return self._other_forms[place]

    def locality(self, place: int, chosen: int) -> tuple[str, Answered, int]:
        """The same of one of its locality prompts."""
        probe = self.localities[place][chosen]
        return self.locality_prompts[place][chosen], self.probes[probe], probe

    def ended(self, place: int, row: Answered) -> Answered:
        """A row with a record's target, and the token that ends its last word.

        That is the unedited model's most probable one after the rewrite prompt and its target. The
        row stays as it is in a chat, whose sentence has its end, where the target ends the text,
        and where there is no room.
        """
        has_end = row.place is not None or row.tokens[-1] in self._continuations.ends
        if has_end or len(self.with_edit(row, place).tokens) > self._limit:
            return row
        return Answered([*row.tokens, self._end(place)], row.start)

    def continued(self, places: Sequence[int], tokens: int) -> list[tuple[int, Answered, int]]:
        """Rewrite prompts with their targets, and what the unedited model says after them.

        It chooses the most probable tokens. Each row is made once, and alone: so it does not matter
        when.

        Args:
            places: The records.
            tokens: So many of its tokens, after the one that ends the target's last word; fewer
                where a text ends, or a model reads no more.

        Returns:
            Record, the row whose answer is those tokens, and its place in `base`; of the records
            that leave room for one.

        Raises:
            ModelError: The model keeps more of the past than keys and values.
        """
        for place in places:
            if place not in self._continued:
                self._continued[place] = self._continue(place, tokens)
        found = [(place, self._continued[place]) for place in places]
        return [(place, self._known[at], at) for place, at in found if at is not None]

    def _continue(self, place: int, tokens: int) -> int | None:
        row, ends = self.rewrites[place], self._continuations.ends
        room = self._limit - len(self.with_edit(row, place).tokens)
        if room < 1 or row.tokens[-1] in ends or self._end(place) in ends:
            return None
        begun = [*row.tokens, self._end(place)]
        told = self._continuations.after(begun, min(tokens, room))
        self._known.append(Answered([*begun, *told], len(begun)))
        return len(self._known) - 1

    def _end(self, place: int) -> int:
        if place not in self._word_ends:
            self._word_ends[place] = self._continuations.word_end(self.rewrites[place].tokens)
        return self._word_ends[place]

    def digest(self) -> str:
        """SHA-256 over all records."""
        found = hashlib.sha256()
        for request in self.requests:
            found.update(json.dumps(request.to_dict(), sort_keys=True).encode() + b"\0")
        return found.hexdigest()


_Text = tuple[int, str, "str | None"]


def _texts(place: int, request: EditRequest) -> tuple[list[_Text], list[_Text], list[_Text]]:
    """A record's rewrite prompt, its rephrase prompts and its locality prompts, with answers."""
    rewrite: list[_Text] = [(place, request.prompt, request.target_new)]
    rephrases: list[_Text] = [
        (place, prompt, request.target_new) for prompt in request.rephrase_prompt
    ]
    return rewrite, rephrases or rewrite, locality_texts(place, request)


def unfair_pairs(prompts: Sequence[str], requests: Sequence[EditRequest]) -> Tensor:
    """``[prompts, requests]`` bool: where a prompt speaks of the very subject of an edit.

    Such a pair is no wrong answer to learn from: the prompt may well be in the edit's scope.
    """
    subjects = [request.subject.casefold() for request in requests]
    folded = [prompt.casefold() for prompt in prompts]
    return torch.tensor([[subject in text for subject in subjects] for text in folded])
