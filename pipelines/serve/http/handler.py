"""RequestHandler: from a request's inputs to a model's answers, as every dialect needs it."""

from __future__ import annotations

import base64
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from starlette.responses import Response

from modernbert.text.windows import Text
from pipelines.serve.admission import Admission
from pipelines.serve.http.access import USAGE
from pipelines.serve.http.bodies import Inputs
from pipelines.serve.http.errors import ApiError
from pipelines.serve.http.limits import CLIENT, HELD, MODEL, HttpLimits
from pipelines.serve.http.metrics import HttpMetrics
from pipelines.serve.http.model_paths import UNSPECIFIED
from pipelines.serve.http.responses import json_response
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

_LEAST_BYTES = 200  # of memory, of an answer to an input, before it is known
_LISTED = 100  # truncated inputs that the header names
_Input = Text | Sequence[int]
"""A text, a pair of texts, or token ids."""


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
        """Return what is known of a model, which is looked up once."""
        if name not in self._info:
            self._info[name] = await self.models.info(name)
        return self._info[name]

    def example_model(self, task: str) -> str:
        """Return the name of the first model that does `task`, for examples of requests."""
        return next(iter(self._models_for(task)), "none here")

    @property
    def visible(self) -> list[str]:
        """The models that the request may name: that of its path, or all."""
        model = MODEL.get()
        return list(self.models.tasks) if model is None else [model]

    async def pick(self, task: str, name: str | None = None) -> Info:
        """Return what is known of the model of the request's path, else of the one called `name`,
        else of the first that does `task`.

        Raises ApiError where the model is missing or does another task.
        """
        tasks = self.models.tasks
        fitting = self._models_for(task)
        # A body that names another model than the path is refused before.
        name = MODEL.get() or name
        if name is None or name == UNSPECIFIED:
            if not fitting:
                online = [f"{other} ({does})" for other, does in tasks.items()]
                message = f"no model here does {task}; online are {', '.join(online)}"
                raise ApiError("wrong_task", message)
            return await self.info(fitting[0])
        name = self.models.aliases.get(name, name)
        if name not in tasks:
            known = ", ".join(fitting) or "none"
            message = f"model {name[:60]!r} is unknown; for {task} there are: {known}"
            raise ApiError("unknown_model", message, field="model")
        if tasks[name] != task:
            message = f"model {name} does {tasks[name]}, not {task}"
            raise ApiError("wrong_task", message, field="model")
        return await self.info(name)

    async def predict(
        self,
        info: Info,
        documents: Sequence[Text],
        *,
        field: str,
        options: Mapping[str, object] | None = None,
        truncation: Truncation = CUT_OFF,
        token_vectors: bool = False,
    ) -> HandledRequest:
        """Answer documents.

        Args:
            info: of the model.
            documents: texts or pairs of texts.
            field: the field of the body that holds them, for messages.
            options: those of the task; None, or an option that is None: the model's own.
            truncation: what becomes of documents that are too long.
            token_vectors: whether an embed model gives a vector for each token.

        Raises:
            ApiError: names the first document without an answer as `field[i]`.
        """
        started = time.perf_counter()
        own_options = {name: value for name, value in (options or {}).items() if value is not None}
        request = PredictRequest(
            documents,
            own_options,
            truncate=truncation.truncate,
            truncation_side=truncation.side,
            timeout_s=self.limits.timeout_s,
            client=CLIENT.get(),
            token_vectors=token_vectors,
        )
        # A client that does not read its answers is refused before there is another one.
        self._hold(_LEAST_BYTES * len(documents))
        sent = time.time()
        with self._counted(documents, field):
            response = await self.models.predict(info.name, request)
        self._hold(response.held_bytes)
        trace = TRACE.get()
        if trace:
            trace.add_response(info.name, response, sent)
        # These wire formats have no place for the error of a single input.
        if response.failed:
            i = min(response.failed)
            error_type = "invalid" if i in response.invalid else "failed"
            raise ApiError(error_type, f"{field}[{i}]: {response.failed[i]}", field=field)
        handled = HandledRequest(
            info=info,
            response=response,
            characters=sum(map(_length, documents)),
            n_tokens=sum(response.n_tokens),
            truncated={i for i, truncated in enumerate(response.truncated) if truncated},
            started=started,
        )
        usage = USAGE.get()
        if usage:
            usage.model = info.name
            usage.documents += len(documents)
            usage.tokens += handled.n_tokens
        self.metrics.record_documents(
            info.name, len(documents), handled.n_tokens, len(handled.truncated)
        )
        return handled

    async def texts(self, info: Info, inputs: Inputs, field: str) -> list[str]:
        """Return the texts that inputs are, or that their token ids stand for.

        Raises ApiError for ids that no text has.
        """
        if isinstance(inputs, str):
            return [inputs]
        if isinstance(inputs[0], str):
            return inputs
        is_one_text = isinstance(inputs[0], int)
        id_lists = cast("list[list[int]]", [inputs] if is_one_text else inputs)
        texts = await self.decode(info, id_lists, field)
        # The model reads texts. The ids are those of a text where it gives them again, with or
        # without special tokens.
        all_tokens = await self.tokenize(info, texts, field)
        for i, (ids, tokens) in enumerate(zip(id_lists, all_tokens, strict=True)):
            bare_ids = tokens.ids[tokens.offsets[:, 0] >= 0]
            if ids not in (tokens.ids.tolist(), bare_ids.tolist()):
                message = f"{field}[{i}]: no text has just these token ids; send the text"
                raise ApiError("invalid", message, field=field)
        return texts

    async def tokenize(
        self, info: Info, texts: Sequence[str], field: str, special: bool = True
    ) -> list[Tokens]:
        """Return the tokens of each text."""
        self._hold(_LEAST_BYTES * len(texts))
        with self._counted(texts, field):
            all_tokens = await self.models.tokenize(info.name, texts, special, CLIENT.get())
        self._hold(sum(tokens.held_bytes for tokens in all_tokens))
        return all_tokens

    async def decode(
        self, info: Info, ids: Sequence[Sequence[int]], field: str, skip_special_tokens: bool = True
    ) -> list[str]:
        """Return the text of each list of token ids."""
        self._hold(_LEAST_BYTES * len(ids))
        with self._counted(ids, field):
            texts = await self.models.decode(info.name, ids, skip_special_tokens, CLIENT.get())
        self._hold(sum(map(sys.getsizeof, texts)))
        return texts

    def _models_for(self, task: str) -> list[str]:
        return [name for name, does in self.models.tasks.items() if does == task]

    @contextmanager
    def _counted(self, inputs: Sequence[_Input], field: str) -> Iterator[None]:
        """Count inputs as under way; ApiError where they, or all under way, are too many."""
        client = CLIENT.get()
        self._check_size(inputs, field, client)
        claim = self._inputs.claim(client)
        if not claim.resize(len(inputs)):
            message = (
                f"{self._inputs.used:,} inputs are being answered; {self.limits.max_documents:,} "
                "may be at a time, at most half of them of one client"
            )
            raise ApiError("overloaded", message, retry_after_s=1)
        try:
            yield
        finally:
            claim.release()

    def _hold(self, answer_bytes: int) -> None:
        """Count the bytes of an answer until it is sent; ApiError where too many are held."""
        held = HELD.get()
        if held is not None and not held.resize(answer_bytes):
            message = (
                f"answers of {self.limits.max_answers_bytes:,} bytes may wait to be read, at most "
                "half of them of one client: read those that came, or ask for less at a time"
            )
            raise ApiError("overloaded", message, retry_after_s=1)

    def _check_size(self, inputs: Sequence[_Input], field: str, client: str | None) -> None:
        """Raise ApiError for too many inputs in a request, and for too long ones."""
        most_inputs = min(self.limits.max_inputs, self._inputs.most_of(client))
        if len(inputs) > most_inputs:
            message = f"{field} holds {len(inputs):,} inputs; a request may hold {most_inputs:,}"
            raise ApiError("invalid", message, field=field)
        most_characters = self.limits.max_characters
        all_ids = 0
        for i, each in enumerate(inputs):
            length = _length(each)
            unit = "characters"
            if isinstance(each, list):
                unit = "ids"
                all_ids += length
            if length > most_characters:
                message = f"{field}[{i}] has {length:,} {unit}; an input may have "
                raise ApiError("invalid", f"{message}{most_characters:,}", field=field)
        if all_ids > MOST_RESULTS:
            message = f"{field} holds {all_ids:,} token ids; a request may hold {MOST_RESULTS:,}"
            raise ApiError("invalid", message, field=field)


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

    @property
    def base64_vectors(self) -> Iterator[str]:
        """The vectors of an embed model, each in base64: of little-endian float32, or of bytes."""
        rows = np.asarray(self.response.results)
        if rows.dtype.kind == "f":
            rows = rows.astype("<f4", copy=False)
        return (base64.b64encode(row.tobytes()).decode() for row in rows)

    @property
    def chunks(self) -> Iterator[Iterator[dict[str, object]]]:
        """For each input its chunks, {start, end, embedding}, as they are sent."""
        return (chunks_of(spans, vectors) for spans, vectors in self.response.results)

    @property
    def token_vectors(self) -> Iterator[Iterator[list[float]]]:
        """For each input the vectors of its tokens, each a list as it is sent."""
        return ((row.tolist() for row in vectors) for vectors in self.response.results)

    @property
    def usage(self) -> dict[str, int]:
        """The tokens of the request, as OpenAI and Jina count them."""
        return {"prompt_tokens": self.n_tokens, "total_tokens": self.n_tokens}

    def reply(self, content: object) -> Response:
        """Make a response of JSON with TEI's headers.

        Iterators in `content` are lists whose items are made as they are sent. A document whose
        answer holds NaN has failed, so that there is none.
        """
        trace = TRACE.get()
        if trace:
            trace.parts.append(("serialise", time.time(), None))
        response = self.response
        times = {
            "total": time.perf_counter() - self.started,
            "compute": response.tokenise_s + response.forward_s,
            "tokenization": response.tokenise_s,
            "queue": response.queue_s,
            "inference": response.forward_s,
        }
        headers = {f"x-{name}-time": str(round(seconds * 1e3)) for name, seconds in times.items()}
        headers["x-compute-type"] = "cpu" if self.info.device.startswith("cpu") else "gpu"
        headers["x-compute-characters"] = str(self.characters)
        headers["x-compute-tokens"] = str(self.n_tokens)
        if self.truncated:
            headers["x-truncated"] = self._truncated_numbers()
        return json_response(content, headers)

    def _truncated_numbers(self) -> str:
        """List the inputs that were cut off; of many the rest is counted."""
        numbers = [str(i) for i in sorted(self.truncated)]
        listed = numbers[:_LISTED]
        if len(numbers) > _LISTED:
            listed.append(f"+{len(numbers) - _LISTED}")
        return ",".join(listed)


def _length(document: _Input) -> int:
    """Return the characters of a text or a pair, or the number of ids."""
    return sum(map(len, document)) if isinstance(document, tuple) else len(document)


def chunks_of(spans: np.ndarray, vectors: np.ndarray) -> Iterator[dict[str, object]]:
    """Yield the chunks of an input, whose characters are `spans`."""
    for (start, end), vector in zip(spans.tolist(), vectors, strict=True):
        yield {"start": start, "end": end, "embedding": vector.tolist()}
