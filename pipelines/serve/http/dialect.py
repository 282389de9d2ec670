"""Dialect: what a family of clients speaks, and how errors are answered in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from modernbert.stored import Json
from pipelines.serve.http.errors import ERROR_TYPES, ApiError, first_mistake
from pipelines.serve.http.handler import RequestHandler
from pipelines.serve.protocol import ServeError

_TYPE_OF_STATUS = {400: "malformed", 404: "not_found", 405: "not_allowed"}
_BODY_UNREAD = (
    "slow",
    "body_too_large",
    "bodies_full",
    "media_type",
    "misdirected",
    "unauthorized",
    "ending",
)
"""Errors that come before the body is read: the connection cannot be used again."""
_RETRIED = ("overloaded", "bodies_full", "unhealthy", "ending", "timeout")
"""Errors after which a client may send the same request again."""


def _no_routes(handler: RequestHandler) -> Sequence[APIRouter]:  # noqa: ARG001
    return ()


def _no_model_routes(handler: RequestHandler, name: str) -> Sequence[APIRouter]:  # noqa: ARG001
    return ()


@dataclass(frozen=True)
class Dialect:
    """What a family of clients speaks: its routes, and the shape and status of its errors."""

    name: str
    error_model: type[BaseModel]
    """The shape of its errors, for the OpenAPI document."""
    format_error: Callable[[ApiError], Json]
    statuses: Mapping[str, int] = field(default_factory=dict)
    """The status codes of error types where they are not those of ERROR_TYPES."""
    prefixes: tuple[str, ...] = ()
    """The paths, with all below them, whose errors it shapes; the longest prefix of all dialects
    wins.
    """
    routes: Callable[[RequestHandler], Sequence[APIRouter]] = _no_routes
    """Its routes that name no model in their path."""
    model_routes: Callable[[RequestHandler, str], Sequence[APIRouter]] = _no_model_routes
    """Its routes below /models/{name} for a model."""

    def status(self, error_type: str) -> int:
        """Return the status code of an error."""
        return self.statuses.get(error_type, ERROR_TYPES[error_type])


def path_of(scope: Scope) -> str:
    """Return the path below that of the application."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def dialect_of(path: str, dialects: Sequence[Dialect]) -> Dialect:
    """Find the dialect of a path: the first one where no prefix fits."""
    best = dialects[0]
    longest = 0
    for dialect in dialects:
        for prefix in dialect.prefixes:
            is_below = path == prefix or path.startswith(f"{prefix}/")
            if is_below and len(prefix) > longest:
                best = dialect
                longest = len(prefix)
    return best


def error_response(scope: Scope, error: ApiError) -> Response:
    """Answer with an error in the request's dialect, which the middleware puts in `scope`."""
    dialect: Dialect = scope["dialect"]
    headers = {}
    if error.error_type in _RETRIED:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s or 1)))
    if error.error_type == "unauthorized":
        headers["www-authenticate"] = "Bearer"
    if error.error_type in _BODY_UNREAD:
        headers["connection"] = "close"
    content = to_json(dialect.format_error(error))
    return Response(content, dialect.status(error.error_type), headers, "application/json")


def install_error_handlers(app: FastAPI) -> None:
    """Let `app` answer every error in the request's dialect."""

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return error_response(request.scope, error)

    @app.exception_handler(ServeError)
    async def serve_error(request: Request, error: ServeError) -> Response:
        same = ApiError(error.error_type, error.message, retry_after_s=error.retry_after_s)
        return error_response(request.scope, same)

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> Response:
        return error_response(request.scope, first_mistake(error))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        error_type = _TYPE_OF_STATUS.get(error.status_code, "invalid")
        path = request.url.path
        if error_type == "not_found":
            message = f"there is nothing at {path!r}; /docs lists the routes"
        elif error_type == "not_allowed":
            message = f"{request.method} is not for {path!r}"
        else:
            message = str(error.detail)
        response = error_response(request.scope, ApiError(error_type, message))
        response.headers.update(error.headers or {})
        return response


# `responses` of FastAPI, which has no narrower type for them.
def error_responses(*dialects: Dialect) -> dict[int | str, Json]:
    """Describe the errors of a route of these dialects, as FastAPI takes `responses`."""
    responses: dict[int | str, Json] = {}
    for error_type in ERROR_TYPES:
        description = error_type.replace("_", " ")
        for dialect in dialects:
            status = dialect.status(error_type)
            if status not in responses:
                responses[status] = {"description": description, "model": dialect.error_model}
            responses[status]["model"] |= dialect.error_model
    return responses
