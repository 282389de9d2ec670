"""Errors of the HTTP service, and how a dialect gives them: status code, JSON shape, headers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from pipelines.serve.protocol import ServeError

if TYPE_CHECKING:
    from pipelines.serve.http.handler import RequestHandler

ERROR_TYPES = {
    "malformed": 400,
    "empty": 400,
    "invalid": 400,
    "too_large": 400,
    "unauthorized": 401,
    "unknown_model": 404,
    "wrong_task": 400,
    "not_found": 404,
    "not_allowed": 405,
    "slow": 408,
    "body_too_large": 413,
    "media_type": 415,
    "misdirected": 421,
    "overloaded": 429,
    "bodies_full": 429,
    "failed": 500,
    "internal": 500,
    "unhealthy": 503,
    "timeout": 504,
}
"""The types of errors with their status codes; a dialect may have others."""
_TYPE_OF_STATUS = {400: "malformed", 404: "not_found", 405: "not_allowed"}
_PLAIN = {
    "too_short": "is empty",
    "string_too_short": "is empty",
    "model_type": "must be a JSON object",
    "model_attributes_type": "must be a JSON object",
}
_MOST_MESSAGE = 1000  # characters
_BODY_UNREAD = (
    "slow",
    "body_too_large",
    "bodies_full",
    "media_type",
    "misdirected",
    "unauthorized",
)
"""Errors that come before the body is read: the connection cannot be used again."""


class ApiError(Exception):
    """A request that has no answer; `error_type` is one of ERROR_TYPES."""

    def __init__(
        self,
        error_type: str,
        message: str,
        *,
        field: str | None = None,
        retry_after_s: float | None = None,
    ):
        message = (
            message if len(message) <= _MOST_MESSAGE else f"{message[:_MOST_MESSAGE]}…"
        )  # it quotes the request
        super().__init__(message)
        self.error_type, self.message, self.field, self.retry_after_s = (
            error_type,
            message,
            field,
            retry_after_s,
        )


def _no_routes(*_: Any) -> Sequence[APIRouter]:
    return ()


@dataclass(frozen=True)
class Dialect:
    """What a family of clients speaks: its routes, and the shape and status of its errors."""

    name: str
    error_model: type[BaseModel]
    """The shape of its errors, for the OpenAPI document."""
    format_error: Callable[[ApiError], dict[str, Any]]
    statuses: Mapping[str, int] = field(default_factory=dict)
    """The status codes of error types where they are not those of ERROR_TYPES."""
    prefixes: tuple[str, ...] = ()
    """The paths, with all below them, whose errors it shapes; the longest prefix of all dialects
    wins.
    """
    routes: Callable[[RequestHandler], Sequence[APIRouter]] = _no_routes
    """Its routes that name no model in their path."""
    model_routes: Callable[[RequestHandler, str], Sequence[APIRouter]] = _no_routes
    """Its routes below /models/{name} for a model."""
    dialect_of_body: Callable[[Any], Dialect | None] | None = None
    """On paths that it shares with another dialect: the one that a body is of, if it is the other.
    """

    def status(self, error_type: str) -> int:
        """Return the status code of an error."""
        return self.statuses.get(error_type, ERROR_TYPES[error_type])


def path_of(scope: Scope) -> str:
    """Return the path below that of the application."""
    return scope["path"].removeprefix(scope.get("root_path", ""))


def dialect_of(path: str, dialects: Sequence[Dialect]) -> Dialect:
    """Find the dialect of a path: the first one where no prefix fits."""
    fitting = [
        (len(prefix), -number)
        for number, dialect in enumerate(dialects)
        for prefix in dialect.prefixes
        if path == prefix or path.startswith(f"{prefix}/")
    ]
    return dialects[-max(fitting, default=(0, 0))[1]]


def error_response(scope: Scope, error: ApiError) -> Response:
    """Make the response of an error in the request's dialect, which the middleware puts in
    `scope`.
    """
    dialect: Dialect = scope["dialect"]
    headers = {}
    if error.error_type in ("overloaded", "bodies_full", "unhealthy", "timeout"):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s or 1)))
    if error.error_type == "unauthorized":
        headers["www-authenticate"] = "Bearer"
    if error.error_type in _BODY_UNREAD:
        headers["connection"] = "close"
    content = to_json(dialect.format_error(error))
    return Response(content, dialect.status(error.error_type), headers, "application/json")


def install(app: FastAPI) -> None:
    """Let `app` answer every error in the request's dialect."""

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return error_response(request.scope, error)

    @app.exception_handler(ServeError)
    async def serve_error(request: Request, error: ServeError) -> Response:
        return error_response(
            request.scope,
            ApiError(error.error_type, error.message, retry_after_s=error.retry_after_s),
        )

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> Response:
        dialect: Dialect = request.scope["dialect"]
        if dialect.dialect_of_body:
            request.scope["dialect"] = dialect.dialect_of_body(error.body) or dialect
        return error_response(request.scope, first_mistake(error))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        error_type = _TYPE_OF_STATUS.get(error.status_code, "invalid")
        message = {
            "not_found": f"there is nothing at {request.url.path!r}; /docs lists the routes",
            "not_allowed": f"{request.method} is not for {request.url.path!r}",
        }.get(error_type, str(error.detail))
        response = error_response(request.scope, ApiError(error_type, message))
        response.headers.update(error.headers or {})
        return response


def first_mistake(error: RequestValidationError) -> ApiError:
    """Name the first thing that is wrong with a body by its path in the body."""
    first = error.errors()[0]
    # The branches of a union are tagged <so>; the client does not know them.
    parts = [part for part in first["loc"][1:] if not str(part).startswith("<")]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(
        "."
    )
    field = next((part for part in parts if isinstance(part, str)), None)
    if first["type"] == "extra_forbidden":
        message = f"{path[:100]!r} is no field of this request; /docs lists those it has"
        return ApiError("invalid", message, field=field)
    if first["type"] == "missing":
        return ApiError("invalid", f"{path or 'the body'} is missing", field=field)
    error_type = "empty" if first["type"] == "too_short" else "invalid"
    if first["type"] == "too_long":
        message = f"holds more than {first['ctx']['max_length']:,} items"
    elif first["type"] == "string_too_long":
        message = f"has more than {first['ctx']['max_length']:,} characters"
    else:
        message = _PLAIN.get(first["type"]) or first["msg"].replace("Input should be", "must be")
    return ApiError(error_type, f"{path or 'the body'} {message}", field=field)


def error_responses(*dialects: Dialect) -> dict[int | str, dict[str, Any]]:
    """Describe the errors that a route of these dialects can answer with, for its OpenAPI
    document.
    """
    responses: dict[int | str, dict[str, Any]] = {}
    for error_type in ERROR_TYPES:
        for dialect in dialects:
            description = {
                "description": error_type.replace("_", " "),
                "model": dialect.error_model,
            }
            response = responses.setdefault(dialect.status(error_type), description)
            response["model"] |= dialect.error_model
    return responses
