"""Routes whose bodies are JSON, parsed strictly and checked without FastAPI's dependencies."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from inspect import signature
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from modernbert.stored import Json
from pipelines.serve.http.bodies import Body, check_counts, parse_json
from pipelines.serve.http.dialect import Dialect, error_responses

_NO_NAME = re.compile(r"[^\w.-]", re.ASCII)
_NAME_LENGTH = 60  # characters of an unknown field that a header shows
_CHOOSE_DIALECT = "choose_dialect"  # the attribute of an endpoint
_Endpoint = TypeVar("_Endpoint", bound="Callable[..., Awaitable[Response]]")


class JsonRoute(APIRoute):
    """A route whose body is parsed strictly: no NaN, no half surrogates, no bottomless nesting.

    The header `x-ignored` of its response names the fields of the body that are passed over.
    """

    # `options` are FastAPI's, which names and types them.
    def __init__(
        self, path: str, endpoint: Callable[..., Awaitable[Response]], **options: Any
    ) -> None:
        super().__init__(path, endpoint, **options)
        self._is_literal = "{" not in path
        parameters = signature(endpoint, eval_str=True).parameters
        if "body" in parameters:
            annotation = parameters["body"].annotation
            self.app = _body_app(endpoint, TypeAdapter(annotation), "request" in parameters)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match as Starlette does, after a look that rules most of the routes out."""
        if self._is_literal and not scope["path"].endswith(self.path):
            return Match.NONE, {}
        return super().matches(scope)


def _body_app(
    endpoint: Callable[..., Awaitable[Response]], adapter: TypeAdapter[object], with_request: bool
) -> ASGIApp:
    """Make what runs an endpoint of a body, and of the request where it wants it."""
    choose_dialect = getattr(endpoint, _CHOOSE_DIALECT, None)

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        content = parse_json(await request.body())
        if content is None:
            raise RequestValidationError([{"type": "missing", "loc": ("body",)}])
        # Before the body is checked, since its mistakes are answered in the dialect.
        if choose_dialect:
            scope["dialect"] = choose_dialect(content)
        check_counts(content, scope["most_inputs"])
        if "check_body" in scope:
            scope["check_body"](content)
        try:
            body = adapter.validate_python(content)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            first["loc"] = ("body", *first["loc"])
            raise RequestValidationError([first]) from None
        response = await (endpoint(body, request) if with_request else endpoint(body))
        ignored = body.ignored if isinstance(body, Body) else []
        if ignored:
            names = [_NO_NAME.sub("?", name)[:_NAME_LENGTH] for name in ignored]
            response.headers["x-ignored"] = ",".join(names)
        await response(scope, receive, send)

    return run


def shared_path(choose_dialect: Callable[[object], Dialect]) -> Callable[[_Endpoint], _Endpoint]:
    """Mark an endpoint whose path dialects share: `choose_dialect` tells which one a body is of.

    Example:
        >>> @router.post("/rerank")
        ... @shared_path(lambda body: JINA if is_jina(body) else TEI)
        ... async def rerank_texts(body: RerankRequest) -> Response: ...
    """

    def mark(endpoint: _Endpoint) -> _Endpoint:
        setattr(endpoint, _CHOOSE_DIALECT, choose_dialect)
        return endpoint

    return mark


def new_router(*dialects: Dialect, **options: Any) -> APIRouter:
    """Make a router whose routes parse strictly and answer errors as `dialects` do.

    `options`: FastAPI's, such as `prefix` and `tags`.
    """
    return APIRouter(route_class=JsonRoute, responses=error_responses(*dialects), **options)


def route_docs(response: Any, example: Json, *dialects: Dialect) -> Json:
    """Describe a route for the OpenAPI document, as arguments of `router.post`.

    `response`: the type of its response. `example`: a request. `dialects`: those of its errors.
    """
    body = {"requestBody": {"content": {"application/json": {"example": example}}}}
    return {
        "response_model": response,
        "openapi_extra": body,
        "responses": error_responses(*dialects),
    }
