"""The routes of the edit memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from easyedit_fast.errors import EditStateError
from easyedit_fast.serac.store import json_line
from easyedit_fast.serving import schemas
from easyedit_fast.serving.errors import ApiError
from easyedit_fast.serving.prompts import is_one_prompt

if TYPE_CHECKING:
    from easyedit_fast.serac.store import StoredEdit
    from easyedit_fast.serving.limits import Limits
    from easyedit_fast.serving.memory import SharedMemory
    from easyedit_fast.serving.prompts import PromptReader

_PAGE = 20
Limit = Annotated[int, Field(ge=1)]
After = Annotated[int, Field(ge=0, lt=1 << 63)]


class EditRoutes:
    """Adds, lists, removes and finds edits."""

    def __init__(self, memory: SharedMemory, prompts: PromptReader, limits: Limits) -> None:
        """Takes the memory, what reads prompts that are routed, and the limits."""
        self._memory, self._prompts, self._limits = memory, prompts, limits

    def add(self, body: schemas.NewEdits) -> dict[str, Any]:
        """Add one edit or several: all of them, or none. They are on disk before the answer."""
        given = body if isinstance(body, list) else [body]
        self._require_few(len(given), "edits")
        records = [one.model_dump(exclude_none=True) for one in given]
        return _list([self._told(edit) for edit in self._memory.add(records)])

    def page(self, limit: Limit = _PAGE, after: After = 0) -> dict[str, Any]:
        """List the edits with a higher id than `after`, by rising ids."""
        self._require_few(limit, "edits", "limit")
        found = self._memory.after(after, limit + 1)
        return _list([self._told(edit) for edit in found[:limit]], has_more=len(found) > limit)

    def get(self, edit: schemas.EditId) -> dict[str, Any]:
        """Get an edit."""
        try:
            return self._told(self._memory.get(edit))
        except EditStateError:
            raise _not_there(edit) from None

    def remove(self, edit: schemas.EditId) -> dict[str, Any]:
        """Revert an edit: it is out of the memory before the answer."""
        try:
            self._memory.remove(edit)
        except EditStateError:
            raise _not_there(edit) from None
        return {"id": edit, "object": "edit", "deleted": True}

    def search(self, body: schemas.SearchRequest) -> dict[str, Any]:
        """Find the edits that are nearest to a prompt, the nearest first.

        A scope that is a cross-encoder tells the similarity of the first 64; the others' is null.
        """
        self._require_few(body.limit, "edits", "limit")
        found = self._memory.search(body.prompt, body.limit)
        return _list([{**self._told(edit), "similarity": value} for edit, value in found])

    def route(self, body: schemas.RouteRequest) -> dict[str, Any]:
        """Tell which edit answers each prompt, or a conversation; null: the base model does."""
        if isinstance(body, schemas.RouteConversation):
            queries = [self._asked(body.messages, "messages")]
        else:
            self._require_few(len(body.prompts), "prompts", most=self._limits.prompts)
            queries = [self._query(prompt) for prompt in body.prompts]
        data = [
            {"edit": None if one.edit is None else one.edit.id, "similarity": one.similarity}
            for one in self._memory.routes(queries)
        ]
        return {"object": "list", "data": data}

    def _query(self, prompt: schemas.RoutedPrompt) -> str:
        """What is routed of a prompt, as a completion or chat would route it."""
        if is_one_prompt(prompt):
            return self._prompts.query(self._prompts.tokens(prompt, "prompts"))
        return self._asked(prompt, "prompts")

    def _asked(self, messages: Sequence[schemas.Message], field: str) -> str:
        """What is routed of a conversation."""
        told = [message.plain() for message in messages]
        return self._prompts.query(self._prompts.conversation(told, field))

    def export(self) -> Iterator[str]:
        """All edits as JSON lines, in the form that ``read_requests`` reads."""
        edits = self._memory.after(0)  # here, where an error still has a status
        return (f"{json_line(one.request)}\n" for one in edits)

    def _told(self, edit: StoredEdit) -> dict[str, Any]:
        own = {"id": edit.id, "object": "edit", "added": edit.added, **edit.request.to_dict()}
        holder = self._memory.holder(edit.id)
        return {**own, "superseded_by": None if holder == edit.id else holder}

    def _require_few(
        self, count: int, what: str, param: str | None = None, most: int | None = None
    ) -> None:
        most = self._limits.edits if most is None else most
        if count > most:
            raise ApiError(
                400,
                f"{count} {what} are more than {most}, this server's most; ask for fewer at a time",
                param=param or what,
            )


def _list(data: list[dict[str, Any]], *, has_more: bool = False) -> dict[str, Any]:
    return {"object": "list", "data": data, "has_more": has_more}


def _not_there(edit: int) -> ApiError:
    return ApiError(
        404,
        f"edit {edit} is not in the memory; GET /v1/edits lists those that are",
        param="edit",
        code="edit_not_found",
    )
