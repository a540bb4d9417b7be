"""The app: all routes, and what errors look like."""

# The annotations of handlers are read at run time, where only these names are known: no
# `from __future__ import annotations`.

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from easyedit_fast.errors import EasyEditFastError, MissingPackageError
from easyedit_fast.serving import schemas
from easyedit_fast.serving.completions import Completions
from easyedit_fast.serving.edits import EditRoutes
from easyedit_fast.serving.errors import ApiError, api_error
from easyedit_fast.serving.guard import Guard
from easyedit_fast.serving.limits import Limits
from easyedit_fast.serving.running import ClientGoneError
from easyedit_fast.version import __version__

if TYPE_CHECKING:
    from fastapi import FastAPI

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.ErrorBody, "description": text}
    for status, text in (
        ("4XX", "The request cannot be used."),
        ("5XX", "The server cannot answer."),
    )
}
_GONE = 499
_MOST_FAULTS = 5
_LONGEST_NAME = 100
# A proxy that gathers answers would hand on a stream when it has ended.
_STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def require_packages() -> None:
    """Checks that what serves is installed.

    Raises:
        MissingPackageError: It is not.
    """
    try:
        import fastapi
        import uvicorn

        _ = fastapi, uvicorn
    except ImportError as error:
        raise MissingPackageError(
            f'serving needs the package {error.name}; run: pip install "easyedit-fast[serve]"'
        ) from None


def make_app(
    completions: Completions, edits: EditRoutes, limits: Limits, token: str | None
) -> "FastAPI":
    """The ASGI app.

    Args:
        completions: Answers completion and chat requests.
        edits: The routes of the memory.
        limits: The limits.
        token: The bearer token, or None.

    Raises:
        MissingPackageError: FastAPI is not installed.
    """
    require_packages()
    from fastapi import FastAPI

    # The pages of documentation would load scripts from elsewhere.
    app = FastAPI(
        title="easyedit-fast", version=__version__, docs_url=None, redoc_url=None, responses=_ERRORS
    )
    _add_errors(app)
    _add_completions(app, completions)
    _add_models(app, completions.model)
    _add_edits(app, edits)
    app.add_middleware(Guard, limits=limits, token=token)
    return app


def _add_completions(app: "FastAPI", completions: Completions) -> None:
    from fastapi import Request, Response
    from fastapi.responses import JSONResponse, StreamingResponse

    async def answered(
        body: schemas.CompletionRequest | schemas.ChatRequest, request: Request
    ) -> Response:
        try:
            answer = await completions.answer(body, request.receive)
        except ClientGoneError:
            return Response(status_code=_GONE)
        if isinstance(answer, AsyncIterator):
            return StreamingResponse(
                answer, media_type="text/event-stream", headers=_STREAM_HEADERS
            )
        return JSONResponse(answer)

    async def complete(body: schemas.CompletionRequest, request: Request) -> Response:
        """Continue prompts; each in the scope of an edit is answered from it."""
        return await answered(body, request)

    async def chat(body: schemas.ChatRequest, request: Request) -> Response:
        """Answer a conversation; the user message that ends it tells the edit, if any."""
        return await answered(body, request)

    for path, handler, model in (
        ("/v1/completions", complete, schemas.Completion),
        ("/v1/chat/completions", chat, schemas.ChatCompletion),
    ):
        told = {"model": model, "content": {"text/event-stream": {"schema": {"type": "string"}}}}
        app.add_api_route(
            path, handler, methods=["POST"], response_model=None, responses={200: told}
        )


def _add_models(app: "FastAPI", name: str) -> None:
    described = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "user"}

    def models() -> dict[str, Any]:
        """List the model that is served."""
        return {"object": "list", "data": [described]}

    def model(model: str) -> dict[str, Any]:
        """Describe the model that is served."""
        if model != name:
            raise ApiError(
                404,
                f"there is no model {model!r}; this server has {name!r}",
                param="model",
                code="model_not_found",
            )
        return described

    async def health() -> dict[str, Any]:
        """Tell that the server answers; needs no token."""
        return {"status": "ok"}

    app.add_api_route("/v1/models", models, response_model=schemas.Models)
    app.add_api_route("/v1/models/{model:path}", model, response_model=schemas.Model)
    app.add_api_route("/health", health, response_model=schemas.Health)


def _add_edits(app: "FastAPI", edits: EditRoutes) -> None:
    from fastapi.responses import StreamingResponse

    def export() -> StreamingResponse:
        """Export all edits as JSON lines."""
        return StreamingResponse(edits.export(), media_type="application/jsonl")

    lines = {200: {"content": {"application/jsonl": {"schema": {"type": "string"}}}}}
    app.add_api_route(
        "/v1/edits/export",
        export,
        response_model=None,
        response_class=StreamingResponse,
        responses=lines,  # type: ignore[arg-type]
    )
    for path, handler, method, model in (
        ("/v1/edits", edits.add, "POST", schemas.EditList),
        ("/v1/edits", edits.page, "GET", schemas.EditList),
        ("/v1/edits/search", edits.search, "POST", schemas.EditList),
        ("/v1/edits/{edit}", edits.get, "GET", schemas.Edit),
        ("/v1/edits/{edit}", edits.remove, "DELETE", schemas.RemovedEdit),
        ("/v1/route", edits.route, "POST", schemas.Routes),
    ):
        app.add_api_route(
            path,
            handler,
            methods=[method],
            response_model=model,
            response_model_exclude_unset=True,
        )


def _add_errors(app: "FastAPI") -> None:
    from fastapi import Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException

    def told(error: ApiError, headers: Any = None) -> JSONResponse:
        return JSONResponse(error.body(), error.status, headers)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        of_edits = request.url.path.startswith("/v1/edits")
        return told(_invalid(error.errors(), {} if of_edits else schemas.ADVICE))

    async def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        asked = f"{request.method} {request.url.path}"
        text = f"{str(error.detail).lower()}: {asked}; /openapi.json lists what there is"
        return told(ApiError(error.status_code, text), error.headers)

    async def failed(_: Request, error: Exception) -> JSONResponse:
        return told(api_error(error))

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, refused)
    for kind in (ApiError, EasyEditFastError, Exception):
        app.add_exception_handler(kind, failed)


def _invalid(errors: Sequence[Any], advice: Mapping[str, str]) -> ApiError:
    """One line for the fields that cannot be used; the first of them is the error's.

    Args:
        errors: Pydantic's.
        advice: What is said of fields, in the place of Pydantic's words.
    """
    said: dict[str, str] = {}
    first: str | None = None
    for error in errors:
        place = [part for part in error["loc"][1:] if part not in ("one", "several")]
        if error["type"] == "json_invalid":
            place = []  # a place in the text, no field
        record = place.pop(0) if place and isinstance(place[0], int) else None
        names = [str(part)[:_LONGEST_NAME] for part in place]
        field = names[0] if names else None
        where = [] if record is None else [f"record {record}"]
        # A form that a field may have is no name of a field.
        inner = [name for name in names if name.isidentifier() or name.isdecimal()]
        if inner[1:] and inner[-1] == "str":
            inner.pop()
        speaks = error["type"] in ("missing", "surrogate", "extra_forbidden")
        if field is not None and field in advice and not speaks:
            inner, reason = [field], advice[field]
        else:
            reason = _reason(error)
        if inner:
            where.append(f"field {'.'.join(inner)!r}")
        first = first or field
        said.setdefault(", ".join(where) or "the body", reason)
    told = [f"{where}: {reason}" for where, reason in said.items()]
    if len(told) > _MOST_FAULTS:
        told[_MOST_FAULTS:] = [f"and {len(told) - _MOST_FAULTS} more"]
    return ApiError(400, "; ".join(told), param=first)


def _reason(error: Any) -> str:
    """What is said of an error, in the body's fields or of the body itself."""
    if error["type"] == "missing":
        return "is missing; add it"
    if error["type"] == "extra_forbidden":
        return "is not known or not supported; leave it out"
    if error["type"] == "json_invalid":
        return f"is no JSON ({error.get('ctx', {}).get('error', '')}); send a JSON object"
    if error["type"] == "model_attributes_type":
        return "must be a JSON object"
    text = str(error["msg"])
    return text[:1].lower() + text[1:]
