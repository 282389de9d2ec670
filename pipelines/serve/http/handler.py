"""RequestHandler: from a request's inputs to a model's answers, as every dialect needs it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response

from modernbert.text.windows import Text
from pipelines.serve.admission import Admission
from pipelines.serve.http.bodies import Body, Inputs, json_response, new_router
from pipelines.serve.http.errors import ApiError
from pipelines.serve.http.metrics import HttpMetrics
from pipelines.serve.http.middleware import CLIENT, HttpLimits
from pipelines.serve.http.tracing import TRACE
from pipelines.serve.protocol import (
    MOST_RESULTS,
    SMALL_REQUEST,
    Info,
    ModelClient,
    PredictRequest,
    PredictResponse,
    Tokens,
)

__all__ = [
    "CUT_OFF",
    "Body",
    "HandledRequest",
    "Inputs",
    "RequestHandler",
    "Truncation",
    "json_response",
    "new_router",
]
_UNSPECIFIED = "default/not-specified"  # what Infinity's client sends where no model is named
_LISTED = 100  # truncated inputs that the header names


@dataclass(frozen=True)
class Truncation:
    """What a client wants of inputs that are longer than the model reads."""

    truncate: bool = True
    """False: they are refused."""
    side: str | None = None
    """left or right: where they are cut off; None: where the checkpoint says."""


CUT_OFF = Truncation()
"""What clients that say nothing of it get."""


@dataclass
class RequestHandler:
    """The models behind HTTP, and the count of inputs under way."""

    models: ModelClient
    limits: HttpLimits
    metrics: HttpMetrics
    _info: dict[str, Info] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._inputs = Admission(self.limits.max_documents, SMALL_REQUEST)
        self.metrics.documents_in_flight = lambda: self._inputs.used

    async def info(self, name: str) -> Info:
        """Return what is known of a model; it is asked once."""
        if name not in self._info:
            self._info[name] = await self.models.info(name)
        return self._info[name]

    def first(self, task: str) -> str | None:
        """Return the name of the first model that does `task`."""
        return next((name for name, does in self.models.tasks.items() if does == task), None)

    async def pick(self, task: str, name: str | None = None) -> Info:
        """Return the model called `name`, or the first that does `task`; ApiError if it is missing
        or does another.
        """
        tasks = self.models.tasks
        name = None if name == _UNSPECIFIED else self.models.aliases.get(name or "", name)
        fitting = [other for other, does in tasks.items() if does == task]
        if name is None:
            if not fitting:
                online = ", ".join(f"{other} ({does})" for other, does in tasks.items())
                raise ApiError("wrong_task", f"no model here does {task}; online are {online}")
            name = fitting[0]
        if name not in tasks:
            known = ", ".join(fitting) or "none"
            message = f"model {name[:60]!r} is unknown; for {task} there are: {known}"
            raise ApiError("unknown_model", message, field="model")
        if tasks[name] != task:
            raise ApiError(
                "wrong_task", f"model {name} does {tasks[name]}, not {task}", field="model"
            )
        return await self.info(name)

    async def predict(
        self,
        info: Info,
        documents: Sequence[Text],
        *,
        field: str,
        options: dict[str, Any] | None = None,
        truncation: Truncation = CUT_OFF,
        token_vectors: bool = False,
    ) -> HandledRequest:
        """Answer documents; ApiError names the first one without an answer as `field[i]`.

        `options`: those of the task, None for the model's own.
        """
        started = time.perf_counter()
        given = {name: value for name, value in (options or {}).items() if value is not None}
        truncate, side, timeout_s = truncation.truncate, truncation.side, self.limits.timeout_s
        client = CLIENT.get()
        request = PredictRequest(documents, given, truncate, side, timeout_s, client, token_vectors)
        with self._counted(documents, field):
            response = await self.models.predict(info.name, request)
        if trace := TRACE.get():
            trace.add_response(info.name, response)
        if response.failed:
            i = min(response.failed)
            message = f"{field}[{i}]: {response.failed[i]}"
            raise ApiError("invalid" if i in response.invalid else "failed", message, field=field)
        handled = HandledRequest(
            info=info,
            response=response,
            characters=sum(map(_length, documents)),
            n_tokens=sum(response.n_tokens),
            truncated={i for i, truncated in enumerate(response.truncated) if truncated},
            started=started,
        )
        self.metrics.record_documents(
            info.name, len(documents), handled.n_tokens, len(handled.truncated)
        )
        return handled

    async def texts(self, info: Info, inputs: str | list[Any], field: str) -> list[str]:
        """Return the texts that inputs are, or that their token ids stand for; ApiError for ids
        that no text has.
        """
        if isinstance(inputs, str):
            return [inputs]
        if isinstance(inputs[0], str):
            return inputs
        given: list[list[int]] = [inputs] if isinstance(inputs[0], int) else inputs
        texts = await self.decode(info, given, field)
        for i, (ids, whole) in enumerate(
            zip(given, await self.tokenize(info, texts, field), strict=True)
        ):
            bare = [
                token
                for token, span in zip(whole.ids, whole.offsets, strict=True)
                if span is not None
            ]
            if ids not in (whole.ids, bare):
                raise ApiError(
                    "invalid",
                    f"{field}[{i}]: no text has just these token ids; send the text",
                    field=field,
                )
        return texts

    async def tokenize(
        self, info: Info, texts: Sequence[str], field: str, special: bool = True
    ) -> list[Tokens]:
        """Return the tokens of each text."""
        with self._counted(texts, field):
            return await self.models.tokenize(info.name, texts, special, CLIENT.get())

    async def decode(
        self, info: Info, ids: Sequence[Sequence[int]], field: str, skip_special_tokens: bool = True
    ) -> list[str]:
        """Return the text of each list of token ids."""
        with self._counted(ids, field):
            return await self.models.decode(info.name, ids, skip_special_tokens, CLIENT.get())

    @contextmanager
    def _counted(self, inputs: Sequence[Any], field: str) -> Iterator[None]:
        """Count inputs as under way; ApiError for too many, in the request or under way, and for
        too long ones.
        """
        limits, count, client = self.limits, len(inputs), CLIENT.get()
        if count > (most := min(limits.max_inputs, self._inputs.most_of(client))):
            message = f"{field} holds {count:,} inputs; a request may hold {most:,}"
            raise ApiError("invalid", message, field=field)
        for i, given in enumerate(inputs):
            if (length := _length(given)) > limits.max_characters:
                what = "ids" if isinstance(given, list) else "characters"
                message = (
                    f"{field}[{i}] has {length:,} {what}; an input may have "
                    f"{limits.max_characters:,}"
                )
                raise ApiError("invalid", message, field=field)
        ids = sum(len(given) for given in inputs if isinstance(given, list))
        if ids > MOST_RESULTS:
            message = f"{field} holds {ids:,} token ids; a request may hold {MOST_RESULTS:,}"
            raise ApiError("invalid", message, field=field)
        claim = self._inputs.claim(client)
        if not claim.resize(count):
            message = (
                f"{self._inputs.used:,} inputs are being answered; {limits.max_documents:,} may be "
                "at a time"
            )
            raise ApiError(
                "overloaded", f"{message}, at most half of them of one client", retry_after_s=1
            )
        try:
            yield
        finally:
            claim.release()


@dataclass
class HandledRequest:
    """A request's documents with their answers."""

    info: Info
    response: PredictResponse
    characters: int
    n_tokens: int
    truncated: set[int]
    """Inputs whose end was cut off."""
    started: float

    @property
    def vectors(self) -> Iterator[list[float]]:
        """The vectors of an embed model, each a list as it is sent."""
        return (row.tolist() for row in self.response.results)

    def reply(self, content: Any) -> Response:
        """Make a response of JSON with TEI's headers; a document with NaN has failed, so that there
        is none.

        Iterators in `content` are lists whose items are made as they are sent.
        """
        response = self.response
        if trace := TRACE.get():
            trace.parts.append(("serialise", time.time(), None))
        times = {
            "total": time.perf_counter() - self.started,
            "compute": response.tokenise_s + response.forward_s,
            "tokenization": response.tokenise_s,
            "queue": response.queue_s,
            "inference": response.forward_s,
        }
        headers = {f"x-{name}-time": str(round(seconds * 1e3)) for name, seconds in times.items()}
        headers |= {
            "x-compute-type": "cpu" if self.info.device.startswith("cpu") else "gpu",
            "x-compute-characters": str(self.characters),
            "x-compute-tokens": str(self.n_tokens),
        }
        if truncated := sorted(self.truncated):
            more = [f"+{len(truncated) - _LISTED}"] if len(truncated) > _LISTED else []
            headers["x-truncated"] = ",".join([*map(str, truncated[:_LISTED]), *more])
        return json_response(content, headers)


def _length(given: Text | list[int]) -> int:
    """Return the characters of a text or a pair, or the number of ids."""
    return sum(map(len, given)) if isinstance(given, tuple) else len(given)
