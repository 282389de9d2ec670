"""A model online, in this process: documents are checked and tokenised in threads, batched, and
answered.

Shapes: T packed tokens, W windows, D documents, H hidden.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, ParamSpec, TypeVar

from modernbert.text.tokenizer import Tokenizer
from modernbert.text.windows import WindowBudgetError, Windows
from pipelines.checkpoints import Checkpoint
from pipelines.inference.loading import cpu_budget, device_here
from pipelines.inference.predictor import Predictor
from pipelines.serve.admission import Admission, half
from pipelines.serve.answers import PreparedRequest, response_of
from pipelines.serve.batcher import Batcher
from pipelines.serve.config import ServedModel
from pipelines.serve.encoding import (
    ID_BYTES,
    check_size,
    decode,
    encode_request,
    text_bytes,
    tokenize,
)
from pipelines.serve.fair import OverloadedError
from pipelines.serve.freed_memory import record_freed
from pipelines.serve.metrics import Metrics
from pipelines.serve.protocol import (
    SMALL_REQUEST,
    ErrorType,
    Info,
    PredictRequest,
    PredictResponse,
    ServeError,
    Tokens,
)
from pipelines.serve.step_pool import StepPool, Steps, Work
from pipelines.tasks.base import Task, task_class
from pipelines.tasks.outputs import Predictions

_THREADS = min(8, max(2, os.cpu_count() or 1))  # for checking, tokenising and decoding
_TASKS_KEPT = 256  # tasks for the options of calls
_OPTIONS_KEPT = 1024  # characters of the options of a call whose task is kept
_RECENT_S = 5.0  # with an answer as recent as this the model is healthy
_FIRST_WINDOW_S = 0.01  # what a window is thought to take before any has run
_FEW_RESULTS = 256  # whose decoding takes some 0.2 ms
_LATEST_SHARE = 0.1  # of the latest batch or request, in what is a mean of all
_BYTES_PER_BYTE = 32  # of memory that a byte of a text takes on its way to windows, about
_CERTAIN_SHARE = 0.5  # of the tokens that its bytes make likely, that a request has before all else
# The seconds after which a refused client is asked to come back.
_LEAST_WAIT_S = 1.0
_MOST_WAIT_S = 60.0
_MOST_WAIT_OF_SMALL_S = 5.0  # small requests have places of their own, which are soon free
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


@dataclass
class _Admitted:
    """A request that is being answered."""

    client: str | None
    deadline: float
    """By time.perf_counter()."""
    work: Work[Any] | None = None
    """What is done for it in threads, of whatever result."""
    text_bytes: int = 0


class ModelServer:
    """One model with its queue; its methods are those of OnlineModel."""

    def __init__(self, options: ServedModel, checkpoint: Checkpoint | None = None):
        """Load the model; ValueError if checkpoint and options do not fit.

        `checkpoint`: the one that the service was deployed with; None: what the options name, as it
        is now.
        """
        self.task_cls = task_class(options.task)
        options = self.task_cls.read_files(options)
        self.options = options
        self.checkpoint = checkpoint or Checkpoint.open(
            options.model, options.revision, options.route
        )
        self.task_cls.check(self.checkpoint)
        self.task = self.task_cls.from_checkpoint(self.checkpoint, options)
        self._kept_task = lru_cache(_TASKS_KEPT)(self._make_task)
        device = device_here(options.device)
        self.predictor = Predictor(
            self.checkpoint,
            self.task,
            device=device,
            dtype=options.dtype,
            budget_tokens=options.budget_tokens or cpu_budget(device, online=True),
            threads=max(1, int(options.cpus)),
            graphs=True,
        )
        self.metrics = Metrics(options.name)
        self._pool = StepPool(_THREADS)
        self._admission = Admission(options.max_queued_documents, SMALL_REQUEST)
        self._window_s = _FIRST_WINDOW_S
        self._tokens_per_byte = 0.0
        self._probe = self.task.encode(self.checkpoint.tokenizer, [self.task.probe])
        self.batcher = Batcher(self.predictor, self._record_batch)

    async def predict(self, request: PredictRequest) -> PredictResponse:
        """Answer a request; what the caller cancels leaves the queue."""
        limit_s = min(request.timeout_s or self.options.timeout_s, self.options.timeout_s)
        async with self._admitted(request.client, len(request.documents), limit_s) as admitted:
            response = await self._answer(request, admitted)
        self.metrics.record_response(response)
        return response

    async def check_health(self) -> None:
        """Raise ServeError unless the model has just answered, or answers a probe at once."""
        if time.monotonic() - self.batcher.succeeded < _RECENT_S:
            return
        name = self.options.name
        limit_s = self.options.batch_timeout_s
        try:
            probe = self._submit(self.task, self._probe)
            predictions = await asyncio.wait_for(asyncio.wrap_future(probe), limit_s)
        except TimeoutError:
            message = f"model {name} gave no answer within {limit_s:g} s"
            raise ServeError("unhealthy", message) from None
        if predictions.failed:
            raise ServeError("unhealthy", f"model {name}: {predictions.failed[0]}")

    async def info(self) -> Info:
        """Return what is known of the model."""
        options = self.options
        is_address = "://" in options.model  # it may hold credentials, which the checkpoint's not
        return Info(
            name=options.name,
            model=self.checkpoint.name if is_address else options.model,
            revision=options.revision,
            task=options.task,
            device=str(self.predictor.device),
            dtype=self.predictor.dtype,
            attention=self.predictor.attention,
            fusions=self.predictor.fusions,
            max_length=self.task.max_length,
            budget_tokens=self.predictor.budget_tokens,
            max_documents=half(options.max_queued_documents),
            windows=self.task.stride is not None,
            openai_truncate=options.openai_truncate,
            openai_token_ids=options.openai_token_ids,
            **self.task.info(self.checkpoint),
        )

    async def tokenize(
        self, texts: Sequence[str], special: bool = True, client: str | None = None
    ) -> list[Tokens]:
        """Tokenise texts, as OnlineModel does."""
        tokenizer = self.checkpoint.tokenizer
        size = sum(map(text_bytes, texts))
        async with self._admitted(client, len(texts), self.options.timeout_s) as admitted:
            return await self._checked(admitted, tokenize(tokenizer, texts, special), size)

    async def decode(
        self,
        ids: Sequence[Sequence[int]],
        skip_special_tokens: bool = True,
        client: str | None = None,
    ) -> list[str]:
        """Decode lists of token ids, as OnlineModel does."""
        tokenizer = self.checkpoint.tokenizer
        size = ID_BYTES * sum(map(len, ids))
        async with self._admitted(client, len(ids), self.options.timeout_s) as admitted:
            return await self._checked(admitted, decode(tokenizer, ids, skip_special_tokens), size)

    def close(self) -> None:
        """Answer what is in the queue and refuse more."""
        self.batcher.close()
        self._pool.close()

    @property
    def documents_under_way(self) -> int:
        """The documents that are taken in and not yet answered, or still held by a thread."""
        return self._admission.used

    @asynccontextmanager
    async def _admitted(
        self, client: str | None, count: int, limit_s: float
    ) -> AsyncIterator[_Admitted]:
        """Hold places for documents while they are worked on; ServeError where there are none."""
        most = self._admission.most_of(client)
        if count > most:
            message = f"{count} documents in a request; at most {most} are taken"
            raise self._refused("too_large", message)
        claim = self._admission.claim(client)
        if not claim.resize(count):
            raise self._refused_as_full(count)
        admitted = _Admitted(client, time.perf_counter() + limit_s)
        try:
            async with asyncio.timeout(limit_s):
                yield admitted
        except OverloadedError as error:
            raise self._refused_as_late(error, limit_s) from None
        except TimeoutError:
            raise self._refused("timeout", f"no answer within {limit_s:g} s") from None
        finally:
            # A thread cannot be cancelled: it ends after its step, and holds the places so long.
            if admitted.work is None:
                claim.release()
            else:
                self._pool.abandon(admitted.work)
                record_freed(_BYTES_PER_BYTE * admitted.text_bytes)
                admitted.work.future.add_done_callback(lambda _: claim.release())

    def _refused_as_full(self, count: int) -> ServeError:
        """Return the error of a request for which there is no place, with when there may be one."""
        under_way = self.documents_under_way
        most = self.options.max_queued_documents
        message = (
            f"{under_way} documents are being answered; at most {most} are taken at a time, at "
            "most half of them of one client"
        )
        longest_s = _MOST_WAIT_OF_SMALL_S if count <= SMALL_REQUEST else _MOST_WAIT_S
        wait_s = max(under_way * self._window_s, _LEAST_WAIT_S)
        return self._refused("overloaded", message, min(wait_s, longest_s))

    def _refused_as_late(self, error: OverloadedError, limit_s: float) -> ServeError:
        """Return the error of a request that cannot be answered in time."""
        message = (
            f"an answer would take {error.wait_s:.0f} s, with what waits before it; a request may "
            f"take {limit_s:g} s: try again later, or send fewer texts at a time"
        )
        retry_after_s = min(max(error.retry_after_s, _LEAST_WAIT_S), _MOST_WAIT_S)
        return self._refused("overloaded", message, retry_after_s)

    def _refused(
        self, error_type: ErrorType, message: str, retry_after_s: float | None = None
    ) -> ServeError:
        """Count a refusal and return its error."""
        self.metrics.record_refusal(error_type)
        return ServeError(error_type, f"model {self.options.name}: {message}", retry_after_s)

    async def _answer(self, request: PredictRequest, admitted: _Admitted) -> PredictResponse:
        """Tokenise in a thread, wait for the batches, and decode, in a thread unless that takes
        longer than the decoding.
        """
        size = sum(map(text_bytes, request.documents))
        self._check_time(len(request.documents), size, admitted)
        prepared = await self._checked(admitted, self._prepare(request), size)
        tokens = len(prepared.windows.input_ids)
        self._tokens_per_byte += _LATEST_SHARE * (tokens / max(size, 1) - self._tokens_per_byte)
        try:
            windows = self._submit(prepared.task, prepared.windows, admitted)
            predictions = await asyncio.wrap_future(windows)
            if _is_soon_decoded(prepared):
                return response_of(prepared, predictions, self.checkpoint.tokenizer)
            decoding = _in_one_step(response_of, prepared, predictions, self.checkpoint.tokenizer)
            return await self._in_steps(admitted, decoding, ID_BYTES * tokens)
        except WindowBudgetError as error:
            raise self._refused("too_large", str(error)) from error

    def _check_time(self, documents: int, size: int, admitted: _Admitted) -> None:
        """Raise OverloadedError for a request that can hardly be answered in time, before any work
        is done for it.
        """
        tokens = _CERTAIN_SHARE * self._tokens_per_byte * size
        if self.task.stride is None:
            tokens = min(tokens, documents * self.task.max_length)
        self.batcher.check_time(admitted.client, int(tokens), admitted.deadline)

    def _submit(
        self, task: Task, windows: Windows, admitted: _Admitted | None = None
    ) -> Future[Predictions]:
        """Queue windows: those of a request, or else of a probe, which comes first."""
        ids, cu_seqlens = windows.input_ids, windows.cu_seqlens
        try:
            if admitted is None:
                return self.batcher.submit(task, ids, cu_seqlens, first=True)
            return self.batcher.submit(
                task, ids, cu_seqlens, client=admitted.client, deadline=admitted.deadline
            )
        except RuntimeError as error:
            raise self._refused("unhealthy", str(error)) from error

    async def _in_steps(
        self,
        admitted: _Admitted,
        steps: Steps[_Result],
        size: int,
        deadline: float = float("inf"),
    ) -> _Result:
        """Do work on texts of `size` bytes in threads."""
        admitted.work = self._pool.submit(admitted.client, steps, size, deadline)
        return await asyncio.wrap_future(admitted.work.future)

    async def _checked(self, admitted: _Admitted, steps: Steps[_Result], size: int) -> _Result:
        """Do work in threads that refuses what is wrong with the request by a ValueError."""
        admitted.text_bytes = size
        try:
            return await self._in_steps(admitted, steps, size, admitted.deadline)
        except WindowBudgetError as error:
            raise self._refused("too_large", str(error)) from error
        except ValueError as error:
            raise self._refused("invalid", str(error)) from error

    def _task_with(self, options: Mapping[str, object], token_vectors: bool) -> Task:
        """The model's task with the options of a call; those of few characters are kept."""
        text = json.dumps(options, sort_keys=True)
        make_task = self._kept_task if len(text) <= _OPTIONS_KEPT else self._make_task
        return make_task(text, token_vectors)

    def _make_task(self, options: str, token_vectors: bool) -> Task:
        """Make the task with the options of a call, given as JSON, which a cache can compare."""
        own_options = self.options.override(json.loads(options))
        task = self.task_cls.from_checkpoint(self.checkpoint, own_options)
        longest = self.options.max_length
        if longest is not None and task.max_length > longest:
            message = f"max_length {task.max_length} is above the {longest} that this service reads"
            raise ValueError(message)
        return task.for_tokens(self.checkpoint) if token_vectors else task

    @cached_property
    def _truncating_elsewhere(self) -> Tokenizer:
        """The tokenizer with the truncation side that is not the checkpoint's."""
        tokenizer = self.checkpoint.tokenizer
        other_side = "right" if tokenizer.truncation_side == "left" else "left"
        return tokenizer.truncating(other_side)

    def _prepare(self, request: PredictRequest) -> Steps[PreparedRequest]:
        """Check and tokenise a request; ValueError for what is wrong with it."""
        started = time.time()
        began = time.perf_counter()
        task = self._task_with(request.options, request.token_vectors)
        tokenizer = self.checkpoint.tokenizer
        if request.truncation_side not in (None, tokenizer.truncation_side):
            tokenizer = self._truncating_elsewhere
        windows, too_long = yield from encode_request(
            task,
            tokenizer,
            request.documents,
            truncate=request.truncate,
            most_tokens=self.options.max_request_tokens,
        )
        check_size(task, tokenizer, windows)
        numbered = zip(request.documents, too_long, strict=True)
        documents = [document for document, is_too_long in numbered if not is_too_long]
        seconds = time.perf_counter() - began
        return PreparedRequest(task, documents, windows, too_long, started, seconds)

    def _record_batch(self, windows: int, tokens: int, seconds: float) -> None:
        """Count a packed batch, and learn from it how long a window takes."""
        latest_s = seconds / windows
        self._window_s += _LATEST_SHARE * (latest_s - self._window_s)
        self.metrics.record_batch(tokens, tokens / self.predictor.budget_tokens, seconds)


def _is_soon_decoded(prepared: PreparedRequest) -> bool:
    """Tell whether decoding takes as long as waking a thread: some scores or vectors, no texts."""
    task = prepared.task
    windows = prepared.windows
    if task.shows_texts or len(windows.document) > _FEW_RESULTS:
        return False
    results = task.most_results(windows)
    return results is not None and results <= _FEW_RESULTS


def _in_one_step(
    function: Callable[_Arguments, _Result],
    *arguments: _Arguments.args,
    **named: _Arguments.kwargs,
) -> Steps[_Result]:
    """Work that has no second step."""
    yield from ()
    return function(*arguments, **named)
