"""Errors as the API tells of them: in the shape of OpenAI's."""

from __future__ import annotations

import logging
from typing import Any

from easyedit_fast.errors import DataFileError, EasyEditFastError, EditStateError, OutOfMemoryError

logger = logging.getLogger(__name__)


class StoppingError(EasyEditFastError, RuntimeError):
    """The server is ending and answers nothing more."""

    def __init__(self) -> None:
        super().__init__("the server is stopping; ask again when it is back")


_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that gets no answer.

    Attributes:
        status: HTTP's status.
        message: What is wrong, where, and what to do about it, in one line.
        param: The field at fault.
        code: A word that programs tell it by.
    """

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code

    def body(self) -> dict[str, Any]:
        """The JSON object."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": _KINDS.get(self.status, kind),
                "param": self.param,
                "code": self.code,
            }
        }


def api_error(error: BaseException) -> ApiError:
    """What is told of an error of the package, or of another one, whose text is kept back."""
    if isinstance(error, ApiError):
        return error
    text = " ".join(str(error).split())
    if isinstance(error, DataFileError):  # it names files of the server
        logger.error("%s", text)
        return ApiError(503, "the memory cannot be read or written; the server's log says why")
    if isinstance(error, OutOfMemoryError | StoppingError):
        return ApiError(503, text)
    if isinstance(error, EditStateError):
        return ApiError(409, text)
    if isinstance(error, EasyEditFastError):
        field = getattr(error, "field", None)
        return ApiError(400, text, param=None if field is None else str(field))
    return ApiError(500, "the server failed; its log says how")
