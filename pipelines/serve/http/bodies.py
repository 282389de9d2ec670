"""Bodies and responses of JSON: what a body may hold, counted before it is checked, and answers
sent in parts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from inspect import signature
from itertools import chain
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError, from_json, to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response, StreamingResponse
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from pipelines.serve.http.errors import Dialect, error_responses

MOST_ITEMS = 1 << 16
"""Items in a list of a body; HttpLimits.max_inputs is at most this."""
_MOST_IDS = 1 << 17  # in a list of token ids: some times what a model reads
_MOST_FIELDS = 50  # in an object
_MOST_CONTAINERS = 2 * MOST_ITEMS  # lists and objects in a body
_STRING = re.compile(
    rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL
)  # one without an end goes on to the end of the body
_PART_BYTES = (
    1 << 16
)  # of a response that is made at once on the event loop, and of the parts of a longer one
_NO_NAME = re.compile(r"[^\w.-]", re.ASCII)
_NAME_LENGTH = 60  # characters of an unknown field that a header shows
_T = TypeVar("_T")


class Body(BaseModel):
    """An object in the body of a request: types are strict, unknown fields are refused, and null is
    absent.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    @property
    def ignored(self) -> list[str]:
        """The paths of unknown fields, here and in the objects below."""
        names = [*(self.model_extra or {})]
        for name in self.model_fields_set:
            value = getattr(self, name, None)
            first = (
                next((item for item in value if isinstance(item, Body)), None)
                if isinstance(value, list)
                else value
            )
            names += (
                [f"{name}.{below}" for below in first.ignored] if isinstance(first, Body) else []
            )
        return names

    @model_validator(mode="before")
    @classmethod
    def _count_fields(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if len(value) > _MOST_FIELDS:
            message = "has {count} fields; an object of a request may have {most}"
            raise PydanticCustomError(
                "too_many_fields", message, {"count": len(value), "most": _MOST_FIELDS}
            )
        return {
            name: given
            for name, given in value.items()
            if given is not None or name not in cls.model_fields
        }


class TolerantBody(Body):
    """An object whose unknown fields are passed over, as the dialect's own server does; the
    response names them.
    """

    model_config = ConfigDict(extra="allow")


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _whole_ids(value: Any) -> Any:
    """Convert whole floats among ids; most lists hold none, so that no Python runs for each id."""
    if isinstance(value, list) and len(value) <= _MOST_IDS and float in set(map(type, value)):
        return [_whole(item) for item in value]
    return value


Many = Annotated[list[_T], Field(fail_fast=True, min_length=1, max_length=MOST_ITEMS)]
"""A list that holds something; it is checked up to its first mistake, and only so far as it is not
too long.
"""
Int = Annotated[int, BeforeValidator(_whole)]
"""A whole number, which in JSON may be written 2.0."""
Ids = Annotated[
    list[Annotated[int, Field(ge=0, lt=1 << 31)]],
    Field(fail_fast=True, min_length=1, max_length=_MOST_IDS),
    BeforeValidator(_whole_ids),
]
NonEmpty = Annotated[str, Field(min_length=1)]
Direction = Literal["Left", "Right", "left", "right"]


def _input_tag(value: Any) -> str:
    first = value[0] if isinstance(value, list) and value else value
    if not isinstance(value, list):
        return "<text>"
    return (
        "<batch>"
        if isinstance(first, list)
        else "<ids>"
        if isinstance(first, int | float)
        else "<texts>"
    )


Inputs = Annotated[
    Annotated[NonEmpty, Tag("<text>")]
    | Annotated[Many[NonEmpty], Tag("<texts>")]
    | Annotated[Ids, Tag("<ids>")]
    | Annotated[Many[Ids], Tag("<batch>")],
    Discriminator(_input_tag),
    Field(description="a text, several, or their token ids"),
]
Texts = Annotated[
    Annotated[NonEmpty, Tag("<text>")] | Annotated[Many[NonEmpty], Tag("<texts>")],
    Discriminator(lambda value: "<texts>" if isinstance(value, list) else "<text>"),
]


class JsonRoute(APIRoute):
    """A route whose body is parsed strictly: no NaN, no half surrogates, no bottomless nesting.

    The header `x-ignored` of its response names the fields of the body that are passed over.
    """

    def __init__(self, path: str, endpoint: Any, **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        self._is_literal = "{" not in path
        parameters = signature(endpoint, eval_str=True).parameters
        if "body" in parameters:
            self.app = _body_app(endpoint, parameters["body"].annotation, "request" in parameters)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match as Starlette does, after a look that is enough for most of the routes that a
        request is tried on.
        """
        if self._is_literal and not scope["path"].endswith(self.path):
            return Match.NONE, {}
        return super().matches(scope)


def _body_app(endpoint: Any, annotation: Any, with_request: bool) -> ASGIApp:
    """Make what runs an endpoint of a body, and of the request where it wants it, without FastAPI's
    dependencies.
    """
    adapter = TypeAdapter(annotation)

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        given = _parse(await request.body())
        if given is None:
            raise RequestValidationError([{"type": "missing", "loc": ("body",)}])
        try:
            body = adapter.validate_python(given)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise RequestValidationError(
                [first | {"loc": ("body", *first["loc"])}], body=given
            ) from None
        response = await (endpoint(body, request) if with_request else endpoint(body))
        if isinstance(body, Body) and (ignored := body.ignored):
            response.headers["x-ignored"] = ",".join(
                _NO_NAME.sub("?", name)[:_NAME_LENGTH] for name in ignored
            )
        await response(scope, receive, send)

    return run


def new_router(*dialects: Dialect, **options: Any) -> APIRouter:
    """Make a router whose routes parse strictly and answer errors as `dialects` do; `options` are
    FastAPI's.
    """
    return APIRouter(route_class=JsonRoute, responses=error_responses(*dialects), **options)


def route_docs(response: Any, example: dict[str, Any], *dialects: Dialect) -> dict[str, Any]:
    """Describe a route for the OpenAPI document: the type of its response, and an example of a
    request.
    """
    body = {"requestBody": {"content": {"application/json": {"example": example}}}}
    return {
        "response_model": response,
        "openapi_extra": body,
        "responses": error_responses(*dialects),
    }


def json_response(content: Any, headers: dict[str, str] | None = None) -> Response:
    """Make a response of JSON; floats have the digits that give the same number again.

    Iterators in `content` are lists whose items are made as they are sent. Of a large answer no
    more than a part is made at a time, and all but the first one in a thread, so that the event
    loop answers others meanwhile.
    """
    parts = _joined(_pieces(content))
    first = next(parts, b"")
    second = next(parts, None)
    if second is None:
        return Response(first, headers=headers, media_type="application/json")
    return StreamingResponse(
        chain((first, second), parts), headers=headers, media_type="application/json"
    )


def _pieces(content: Any) -> Iterator[bytes]:
    """Yield the JSON of a value in pieces, each of an item that holds no list of objects."""
    if isinstance(content, dict) and any(
        isinstance(value, list | dict | Iterator) for value in content.values()
    ):
        for i, (name, value) in enumerate(content.items()):
            yield (b"," if i else b"{") + to_json(name) + b":"
            yield from _pieces(value)
        yield b"}"
    elif isinstance(content, Iterator) or (
        isinstance(content, list) and content and _is_nested(content[0])
    ):
        opening = b"["
        for item in content:
            yield opening
            yield from _pieces(item)
            opening = b","
        yield b"[]" if opening == b"[" else b"]"
    else:
        yield to_json(content)


def _is_nested(item: Any) -> bool:
    return isinstance(item, list | dict | str)


def _joined(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Join pieces to parts of about _PART_BYTES."""
    part = bytearray()
    for piece in pieces:
        part += piece
        if len(part) >= _PART_BYTES:
            yield bytes(part)
            part.clear()
    yield bytes(part)


def _containers(body: bytes) -> int:
    """Return how many lists and objects begin in JSON, less those in strings where that matters."""
    count = body.count(b"[") + body.count(b"{")
    if count > _MOST_CONTAINERS:
        body = _STRING.sub(b"", body)
        count = body.count(b"[") + body.count(b"{")
    return count


def _parse(body: bytes) -> Any:
    """Parse JSON; nothing is None, as null is."""
    # Each is an object of Python, which its garbage collector visits again and again while they are
    # made.
    if (count := _containers(body)) > _MOST_CONTAINERS:
        message = (
            f"the body holds {count:,} lists and objects; a request may hold {_MOST_CONTAINERS:,}"
        )
        raise HTTPException(400, message)
    try:
        return from_json(body, allow_inf_nan=False) if body else None
    except ValueError as error:
        raise HTTPException(400, f"the body is not valid JSON: {error}") from None
