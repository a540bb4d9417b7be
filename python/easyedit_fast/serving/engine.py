"""One thread that runs the model, for all who wait for answers."""

from __future__ import annotations

import collections
import logging
import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList

from easyedit_fast.errors import ModelError
from easyedit_fast.models.generation import end_ids
from easyedit_fast.models.limits import context_length
from easyedit_fast.models.memory import is_out_of_memory, make_room_after, out_of_memory
from easyedit_fast.serac.whole_answers import WholeAnswersModel
from easyedit_fast.serving.errors import ApiError, StoppingError
from easyedit_fast.serving.rows import Row, RowDraws, RowEnds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from easyedit_fast.serac.model import SeracModel
    from easyedit_fast.serving.limits import Limits
    from easyedit_fast.serving.memory import SharedMemory

logger = logging.getLogger(__name__)


class Engine:
    """Answers rows in batches: whatever waits when a batch ends makes up the next.

    The rows of a batch may go different ways and have different settings: each draws by itself.
    """

    def __init__(
        self,
        model: SeracModel,
        tokenizer: PreTrainedTokenizerBase,
        memory: SharedMemory,
        limits: Limits,
    ) -> None:
        """Takes the model, which routes by `memory` from now on, and starts the thread."""
        model.router = memory
        self._model, self._tokenizer, self._memory = model, tokenizer, memory
        self._limits = limits
        # Of rows without an edit, and of those that an edit answers.
        limits_of = (context_length(one) for one in (model.base, model.adapter.model))
        self._longest, self._longest_edited = (
            math.inf if one is None else one for one in limits_of
        )
        self._ends = frozenset(end_ids(model.base, tokenizer))
        self._waiting: collections.deque[Row] = collections.deque()
        self._running: list[Row] = []
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="easyedit-fast", daemon=True)
        self._thread.start()

    def submit(self, rows: Iterable[Row]) -> None:
        """Has rows answered; each of them tells.

        Raises:
            StoppingError: The engine is closed.
        """
        with self._changed:
            if self._closing:
                raise StoppingError
            self._waiting.extend(rows)
            self._changed.notify()

    def stop(self) -> int:
        """Ends what runs and what waits without an answer; gives their number."""
        with self._changed:
            self._closing = True
            left = [row for row in [*self._waiting, *self._running] if not row.is_over]
            for row in left:
                row.fail(StoppingError())
            self._changed.notify()
        return len(left)

    def close(self) -> None:
        """As `stop`, and waits for the end of the thread."""
        self.stop()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._running = []
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if self._closing:
                    return
                rows = self._running = self._taken()
            try:
                with self._memory.deciding():
                    for batch in self._fitting(rows):
                        self._answer(batch)
            except Exception as error:  # noqa: BLE001  the rows are told of it
                _fail(rows, error)

    def _taken(self) -> list[Row]:
        """The rows that have waited longest, as many as may run together, and at least one."""
        rows: list[Row] = []
        while self._waiting and len(rows) < self._limits.batch_rows:
            row = self._waiting[0]
            if not row.is_over:
                width = max(len(one.tokens) + one.room for one in [*rows, row])
                if rows and width * (len(rows) + 1) > self._limits.batch_tokens:
                    break
                rows.append(row)
            self._waiting.popleft()
        return rows

    def _fitting(self, rows: Sequence[Row]) -> list[list[Row]]:
        """Routes the rows, and parts those that would be too long for a model together."""
        if not rows:
            return []
        routes = self._model.routes(*self._padded(rows))
        sizes: dict[int, int] = {}
        for row, route in zip(rows, routes, strict=True):
            row.route = route
            sizes[id(row)] = self._size(row)
        batches: list[list[Row]] = []
        for row in rows:
            size = sizes[id(row)]
            limit = self._longest if row.route.edit is None else self._longest_edited
            if size >= limit:
                row.fail(_too_long(row, size, int(limit)))
                continue
            row.room = int(min(row.room, limit - size))
            for batch in batches:
                if self._fits([*batch, row], sizes):
                    batch.append(row)
                    break
            else:
                batches.append([row])
        return batches

    def _size(self, row: Row) -> int:
        """How many tokens of a row, its edit's among them, the model reads that answers it."""
        edit = row.route.edit
        if edit is None:
            return len(row.tokens)
        context = self._model.adapter.context(edit.request)
        if isinstance(self._model, WholeAnswersModel):
            return len(self._model.asked(row.tokens, context))
        return len(row.tokens) + len(context)

    def _fits(self, rows: Sequence[Row], sizes: Mapping[int, int]) -> bool:
        """Whether rows can go on together until the last has ended."""
        room = max(row.room for row in rows)
        longest = {False: 0, True: 0}  # with an edit
        for row in rows:
            edited = row.route.edit is not None
            longest[edited] = max(longest[edited], sizes[id(row)])
        return (
            longest[False] + room <= self._longest and longest[True] + room <= self._longest_edited
        )

    def _answer(self, rows: list[Row]) -> None:
        """Generates; where that fails before the first token, in smaller batches, if they help."""
        rows = [row for row in rows if not row.is_over]
        if not rows:
            return
        try:
            self._generate(rows)
        except Exception as error:  # noqa: BLE001  the rows are told of it
            make_room_after(error)
            smaller = _smaller(rows, error)
            if not smaller:
                _fail(rows, out_of_memory(error) if is_out_of_memory(error) else error)
        else:
            return
        for part in smaller:
            self._answer(part)

    def _generate(self, rows: list[Row]) -> None:
        ids, mask = self._padded(rows)
        self._model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=max(row.room for row in rows),
            do_sample=False,
            num_beams=1,
            temperature=1.0,
            top_p=1.0,
            top_k=50,
            pad_token_id=self._tokenizer.pad_token_id,
            logits_processor=LogitsProcessorList([RowDraws(rows)]),
            stopping_criteria=StoppingCriteriaList([RowEnds(rows, self._tokenizer, self._ends)]),
        )

    def _padded(self, rows: Sequence[Row]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask, ``[rows, columns]``, padded on the left."""
        width = max(len(row.tokens) for row in rows)
        pad = self._tokenizer.pad_token_id
        gaps = [width - len(row.tokens) for row in rows]
        ids = [[pad] * gap + row.tokens for gap, row in zip(gaps, rows, strict=True)]
        mask = [[0] * gap + [1] * (width - gap) for gap in gaps]
        device = self._model.base.get_input_embeddings().weight.device
        return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _smaller(rows: list[Row], error: Exception) -> list[list[Row]]:
    """Batches that may be answered where one has failed; none: it would be of no use."""
    if len(rows) == 1 or any(row.made for row in rows):
        return []
    if is_out_of_memory(error):
        half = len(rows) // 2
        return [rows[:half], rows[half:]]
    return [[row] for row in rows] if isinstance(error, ModelError) else []


def _fail(rows: Sequence[Row], error: Exception) -> None:
    """Ends rows without an answer; the log tells what is no fault of theirs."""
    if not isinstance(error, ModelError):
        logger.error("a batch failed", exc_info=error)
    for row in rows:
        row.fail(error)


def _too_long(row: Row, size: int, limit: int) -> ApiError:
    edit = row.route.edit
    after, remedy = ("", "") if edit is None else (f" after edit {edit.id}", " or the edit")
    return ApiError(
        400,
        f"{row.name} takes {size} tokens{after}, and the model that answers it reads {limit} at "
        f"most, new ones included; shorten it{remedy}",
        code="context_length_exceeded",
    )
