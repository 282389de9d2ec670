"""Refusals, and how each dialect says them: status code, JSON shape, headers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from pipelines.serve.protocol import ServeError


class ApiError(Exception):
    """A request that is not answered, and why: `kind` is one of KINDS."""

    def __init__(self, error_type: str, message: str, *, field: str | None = None, retry_after_s: float | None = None):
        super().__init__(message)
        self.error_type, self.message, self.field, self.retry_after_s = error_type, message, field, retry_after_s


class ErrorType(NamedTuple):
    """What a kind of refusal is in TEI's words (with Hugging Face's), and in OpenAI's; the others go by OpenAI's."""

    tei_status: int
    tei_type: str
    status: int
    openai_type: str = "invalid_request_error"
    openai_code: str | None = None


ERROR_TYPES = {
    "malformed": ErrorType(400, "Validation", 400),
    "empty": ErrorType(400, "Empty", 400),
    "invalid": ErrorType(422, "Validation", 400),
    "too_large": ErrorType(422, "Validation", 400),
    "unauthorized": ErrorType(401, "Validation", 401, openai_code="invalid_api_key"),
    "unknown_model": ErrorType(404, "Validation", 404, openai_code="model_not_found"),
    "wrong_task": ErrorType(424, "Backend", 400),
    "not_found": ErrorType(404, "Validation", 404),
    "not_allowed": ErrorType(405, "Validation", 405),
    "slow": ErrorType(408, "Validation", 408),
    "body_too_large": ErrorType(413, "Validation", 413),
    "media_type": ErrorType(415, "Validation", 415),
    "overloaded": ErrorType(429, "Overloaded", 429, "rate_limit_error", "rate_limit_exceeded"),
    "failed": ErrorType(424, "Backend", 500, "server_error"),
    "internal": ErrorType(500, "Backend", 500, "server_error"),
    "unhealthy": ErrorType(503, "Unhealthy", 503, "server_error"),
    "timeout": ErrorType(504, "Overloaded", 504, "server_error"),
}
_OF_STATUS = {400: "malformed", 404: "not_found", 405: "not_allowed"}
_PLAIN = {
    "too_short": "is empty",
    "string_too_short": "is empty",
    "model_type": "must be a JSON object",
    "model_attributes_type": "must be a JSON object",
}
_UNREAD = ("slow", "body_too_large", "media_type", "unauthorized")
"""Refused before the body was read: the connection cannot be used again."""


class TeiError(BaseModel):
    """TEI's and Hugging Face's."""

    error: str
    error_type: str


class OpenAIDetails(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(BaseModel):
    """OpenAI's."""

    error: OpenAIDetails


class CohereError(BaseModel):
    """Cohere's."""

    message: str


class JinaError(BaseModel):
    """Jina's."""

    detail: str


@dataclass(frozen=True)
class Dialect:
    """How errors are said."""

    model: type[BaseModel]
    shape: Callable[[ApiError, ErrorType], dict[str, Any]]
    status: Callable[[ErrorType], int] = lambda kind: kind.status


def _openai(refusal: ApiError, kind: ErrorType) -> dict[str, Any]:
    message = {"message": refusal.message, "type": kind.openai_type, "param": refusal.field, "code": kind.openai_code}
    return {"error": message}


TEI = Dialect(
    TeiError,
    lambda refusal, kind: {"error": refusal.message, "error_type": kind.tei_type},
    lambda kind: kind.tei_status,
)
OPENAI = Dialect(OpenAIError, _openai)
COHERE = Dialect(CohereError, lambda refusal, _: {"message": refusal.message})
JINA = Dialect(JinaError, lambda refusal, _: {"detail": refusal.message})


def path_of(scope: Scope) -> str:
    """The path below that of the application."""
    return scope["path"].removeprefix(scope.get("root_path", ""))


def dialect_of(scope: Scope) -> Dialect:
    """The dialect that a request speaks: as its route found, else by its path."""
    path = path_of(scope)
    if "dialect" in scope:
        return scope["dialect"]
    if path.startswith("/v2/"):
        return COHERE
    if path.startswith("/v1/"):
        return JINA if path == "/v1/rerank" else OPENAI
    return TEI


def error_response(scope: Scope, refusal: ApiError) -> Response:
    """The answer that says `refusal`."""
    dialect, kind = dialect_of(scope), ERROR_TYPES[refusal.error_type]
    headers = {}
    if refusal.error_type in ("overloaded", "unhealthy", "timeout"):
        headers["retry-after"] = str(max(1, math.ceil(refusal.retry_after_s or 1)))
    if refusal.error_type == "unauthorized":
        headers["www-authenticate"] = "Bearer"
    if refusal.error_type in _UNREAD:
        headers["connection"] = "close"
    return Response(to_json(dialect.shape(refusal, kind)), dialect.status(kind), headers, "application/json")


def install(app: FastAPI) -> None:
    """Let `app` say every error in the request's dialect."""

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        return error_response(request.scope, error)

    @app.exception_handler(ServeError)
    async def not_served(request: Request, error: ServeError) -> Response:
        return error_response(
            request.scope, ApiError(error.error_type, error.message, retry_after_s=error.retry_after_s)
        )

    @app.exception_handler(RequestValidationError)
    async def not_valid(request: Request, error: RequestValidationError) -> Response:
        # TEI's and Jina's requests to /rerank differ by this field.
        if dialect_of(request.scope) is TEI and isinstance(error.body, dict) and "documents" in error.body:
            request.scope["dialect"] = JINA
        return error_response(request.scope, wrong_field(error))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        kind = _OF_STATUS.get(error.status_code, "invalid")
        message = {
            "not_found": f"there is nothing at {request.url.path!r}; /docs lists the routes",
            "not_allowed": f"{request.method} is not for {request.url.path!r}",
        }.get(kind, str(error.detail))
        response = error_response(request.scope, ApiError(kind, message))
        response.headers.update(error.headers or {})
        return response


def wrong_field(error: RequestValidationError) -> ApiError:
    """The first thing that is wrong with a body, named by its place."""
    first = error.errors()[0]
    # Places of a union's branches are written <so>; the client knows nothing of them.
    path = [part for part in first["loc"][1:] if not str(part).startswith("<")]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    field = next((part for part in path if isinstance(part, str)), None)
    if first["type"] == "extra_forbidden":
        return ApiError(
            "invalid", f"{place[:100]!r} is no field of this request; /docs lists those it has", field=field
        )
    if first["type"] == "missing":
        return ApiError("invalid", f"{place or 'the body'} is missing", field=field)
    kind = "empty" if first["type"] == "too_short" else "invalid"
    message = _PLAIN.get(first["type"]) or first["msg"].replace("Input should be", "must be")
    return ApiError(kind, f"{place or 'the body'} {message}", field=field)


def error_responses(*dialects: Dialect) -> dict[int | str, dict[str, Any]]:
    """The errors that a route can answer with, for its OpenAPI document."""
    out: dict[int | str, dict[str, Any]] = {}
    for name, kind in ERROR_TYPES.items():
        for dialect in dialects:
            said = out.setdefault(dialect.status(kind), {"description": name.replace("_", " "), "model": dialect.model})
            said["model"] |= dialect.model
    return out
