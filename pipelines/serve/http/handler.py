"""From a request's inputs to a model's answers: what every dialect does the same way."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag
from pydantic_core import from_json, to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response

from modernbert.windows import Text
from pipelines.serve.http.errors import ApiError, Dialect, error_responses
from pipelines.serve.http.metrics import HttpMetrics
from pipelines.serve.http.middleware import HttpLimits
from pipelines.serve.protocol import Info, ModelClient, PredictRequest, PredictResponse, Tokens

_LISTED = 100  # truncated inputs that the header names


class Body(BaseModel):
    """A request's body: types as they are, no other fields."""

    model_config = ConfigDict(strict=True, extra="forbid")


def _so(value: Any) -> str:
    first = value[0] if isinstance(value, list) and value else value
    if not isinstance(value, list):
        return "<text>"
    return "<batch>" if isinstance(first, list) else "<ids>" if isinstance(first, int | float) else "<texts>"


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Int = Annotated[int, BeforeValidator(_whole)]
"""A whole number: to JSON 2.0 is one."""
Id = Annotated[Int, Field(ge=0, lt=1 << 31)]
Ids = Annotated[list[Id], Field(min_length=1)]
NonEmpty = Annotated[str, Field(min_length=1)]
Inputs = Annotated[
    Annotated[NonEmpty, Tag("<text>")]
    | Annotated[list[NonEmpty], Tag("<texts>"), Field(min_length=1)]
    | Annotated[Ids, Tag("<ids>")]
    | Annotated[list[Ids], Tag("<batch>"), Field(min_length=1)],
    Discriminator(_so),
    Field(description="a text, several, or their token ids"),
]
Texts = Annotated[
    Annotated[NonEmpty, Tag("<text>")] | Annotated[list[NonEmpty], Tag("<texts>"), Field(min_length=1)],
    Discriminator(lambda value: "<texts>" if isinstance(value, list) else "<text>"),
]
Direction = Literal["Left", "Right", "left", "right"]


class JsonRoute(APIRoute):
    """A route whose body is parsed strictly: no NaN, no half surrogates, no bottomless nesting."""

    def get_route_handler(self) -> Any:
        """As of every route, on a request with our parser."""
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handle(_JsonRequest(request.scope, request.receive))

        return strict


def new_router(*dialects: Dialect) -> APIRouter:
    """A router whose routes parse strictly, and answer errors as `dialects` say them."""
    return APIRouter(route_class=JsonRoute, responses=error_responses(*dialects))


def route_docs(answer: Any, example: dict[str, Any], *dialects: Dialect) -> dict[str, Any]:
    """What the OpenAPI document says of a route: the answer's type, and an example of a request."""
    body = {"requestBody": {"content": {"application/json": {"example": example}}}}
    return {"response_model": answer, "openapi_extra": body, "responses": error_responses(*dialects)}


def json_response(content: Any, headers: dict[str, str] | None = None) -> Response:
    """`content` as JSON: floats with the digits that give the same number again."""
    return Response(to_json(content), headers=headers, media_type="application/json")


class _JsonRequest(Request):
    async def json(self) -> Any:
        try:
            return from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            raise HTTPException(400, f"the body is not valid JSON: {error}") from None


@dataclass
class RequestHandler:
    """The models, and what is kept of requests under way."""

    models: ModelClient
    limits: HttpLimits
    metrics: HttpMetrics
    documents: int = 0
    _info: dict[str, Info] = field(default_factory=dict)

    async def info(self, name: str) -> Info:
        """What is told of a model, asked once."""
        if name not in self._info:
            self._info[name] = await self.models.info(name)
        return self._info[name]

    def first(self, task: str) -> str | None:
        """The name of the first model that does `task`."""
        return next((name for name, does in self.models.tasks.items() if does == task), None)

    async def pick(self, task: str, name: str | None = None) -> Info:
        """The model called `name`, which must do `task`; without a name the first that does."""
        tasks = self.models.tasks
        if name is None:
            fits = [other for other, does in tasks.items() if does == task]
            if not fits:
                handler = ", ".join(f"{other} ({does})" for other, does in tasks.items())
                raise ApiError("wrong_task", f"no model here does {task}; online are {handler}")
            name = fits[0]
        if name not in tasks:
            fits = [other for other, does in tasks.items() if does == task]
            message = ", ".join(fits) or "none"
            raise ApiError(
                "unknown_model", f"model {name[:60]!r} is unknown; for {task} there are: {message}", field="model"
            )
        if tasks[name] != task:
            raise ApiError("wrong_task", f"model {name} does {tasks[name]}, not {task}", field="model")
        return await self.info(name)

    async def predict(
        self,
        info: Info,
        documents: Sequence[Text],
        *,
        place: str,
        options: dict[str, Any] | None = None,
        truncate: bool = True,
        direction: str | None = None,
        token_vectors: bool = False,
    ) -> HandledRequest:
        """An answer for each document, or a Refusal that names one as `place[i]`."""
        started = time.perf_counter()
        left = (direction or "right").lower() == "left"
        given = {name: value for name, value in (options or {}).items() if value is not None}
        request = PredictRequest(documents, given, truncate and not left, self.limits.timeout_s, token_vectors)
        with self._taken(documents, place):
            answers = await self.models.predict(info.name, request)
        if answers.failed:
            i = min(answers.failed)
            message = f"{place}[{i}]: {answers.failed[i]}"
            if left and truncate and i in answers.invalid:
                message += " (truncation_direction left is not available here; right is)"
            raise ApiError("invalid" if i in answers.invalid else "failed", message, field=place)
        handled = HandledRequest(
            info=info,
            answers=answers,
            characters=sum(map(_length, documents)),
            n_tokens=sum(answers.n_tokens),
            cut={i for i, cut in enumerate(answers.truncated) if cut},
            started=started,
        )
        self.metrics.record_documents(info.name, len(documents), handled.n_tokens, len(handled.cut))
        return handled

    async def texts(self, info: Info, inputs: str | list[Any], place: str) -> list[str]:
        """The texts that are given, or that token ids stand for; Refusal for ids that no text has."""
        if isinstance(inputs, str):
            return [inputs]
        if isinstance(inputs[0], str):
            return inputs
        given: list[list[int]] = [inputs] if isinstance(inputs[0], int) else inputs
        texts = await self.decode(info, given, place)
        for i, (ids, whole) in enumerate(zip(given, await self.tokenize(info, texts, place), strict=True)):
            bare = [token for token, span in zip(whole.ids, whole.offsets, strict=True) if span is not None]
            if ids not in (whole.ids, bare):
                raise ApiError("invalid", f"{place}[{i}]: no text has just these token ids; send the text", field=place)
        return texts

    async def tokenize(self, info: Info, texts: Sequence[str], place: str, special: bool = True) -> list[Tokens]:
        """The tokens of each text."""
        with self._taken(texts, place):
            return await self.models.tokenize(info.name, texts, special)

    async def decode(
        self, info: Info, ids: Sequence[Sequence[int]], place: str, skip_special_tokens: bool = True
    ) -> list[str]:
        """The text of each list of token ids."""
        with self._taken(ids, place):
            return await self.models.decode(info.name, ids, skip_special_tokens)

    @contextmanager
    def _taken(self, inputs: Sequence[Any], place: str) -> Iterator[None]:
        """Count inputs as under way; Refusal for too many in a request, too long ones, and too many under way."""
        limits, count = self.limits, len(inputs)
        if count > (most := min(limits.max_inputs, limits.max_documents)):
            message = f"{place} holds {count:,} inputs; a request may hold {most:,}"
            raise ApiError("invalid", message, field=place)
        for i, given in enumerate(inputs):
            if (length := _length(given)) > limits.max_characters:
                what = "ids" if isinstance(given, list) else "characters"
                message = f"{place}[{i}] has {length:,} {what}; an input may have {limits.max_characters:,}"
                raise ApiError("invalid", message, field=place)
        if self.documents + count > limits.max_documents:
            message = f"{self.documents:,} inputs are being answered; {limits.max_documents:,} may be at a time"
            raise ApiError("overloaded", message, retry_after_s=1)
        self.documents += count
        self.metrics.in_flight.set(self.documents)
        try:
            yield
        finally:
            self.documents -= count
            self.metrics.in_flight.set(self.documents)


@dataclass
class HandledRequest:
    """What a model said of a request's documents."""

    info: Info
    answers: PredictResponse
    characters: int
    n_tokens: int
    cut: set[int]
    """Inputs that were truncated."""
    started: float

    @property
    def vectors(self) -> list[list[float]]:
        """Of embed."""
        return self.answers.results.tolist()  # type: ignore[attr-defined]

    def reply(self, content: Any) -> Response:
        """`content` as JSON; NaN cannot be in it, since a document with one is a failed one."""
        answers = self.answers
        times = {
            "total": time.perf_counter() - self.started,
            "compute": answers.tokenise_s + answers.forward_s,
            "tokenization": answers.tokenise_s,
            "queue": answers.queue_s,
            "inference": answers.forward_s,
        }
        headers = {f"x-{name}-time": str(round(seconds * 1e3)) for name, seconds in times.items()}
        headers |= {
            "x-compute-type": "cpu" if self.info.device.startswith("cpu") else "gpu",
            "x-compute-characters": str(self.characters),
            "x-compute-tokens": str(self.n_tokens),
        }
        if cut := sorted(self.cut):
            more = [f"+{len(cut) - _LISTED}"] if len(cut) > _LISTED else []
            headers["x-truncated"] = ",".join([*map(str, cut[:_LISTED]), *more])
        return json_response(content, headers)


def _length(given: Text | list[int]) -> int:
    """Characters of a text or of both of a pair, or the number of ids."""
    return sum(map(len, given)) if isinstance(given, tuple) else len(given)
