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
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import cached_property, lru_cache
from typing import ParamSpec, TypeVar

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
    Work,
    check_size,
    decode,
    encode_request,
    tokenize,
)
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
from pipelines.tasks.base import Task, task_class
from pipelines.tasks.outputs import Predictions

_THREADS = min(8, max(2, os.cpu_count() or 1))  # for checking, tokenising and decoding
_TASKS_KEPT = 256  # tasks for the options of calls
_OPTIONS_KEPT = 1024  # characters of the options of a call whose task is kept
_RECENT_S = 5.0  # with an answer as recent as this the model is healthy
_FIRST_WINDOW_S = 0.01  # what a window is thought to take before any has run
_LATEST_SHARE = 0.1  # of the latest batch, in the mean time that a window takes
# The seconds after which a refused client is asked to come back.
_LEAST_WAIT_S = 1.0
_MOST_WAIT_S = 60.0
_MOST_WAIT_OF_SMALL_S = 5.0  # small requests have places of their own, which are soon free
_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


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
        self.checkpoint = checkpoint or Checkpoint.open(options.model, options.revision)
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
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="tokenise")
        self._admission = Admission(options.max_queued_documents, SMALL_REQUEST)
        self._window_s = _FIRST_WINDOW_S
        self._probe = self.task.encode(self.checkpoint.tokenizer, [self.task.probe])
        self.batcher = Batcher(self.predictor, self._record_batch)

    async def predict(self, request: PredictRequest) -> PredictResponse:
        """Answer a request; what the caller cancels leaves the queue."""
        limit_s = min(request.timeout_s or self.options.timeout_s, self.options.timeout_s)
        async with self._admitted(request.client, len(request.documents), limit_s) as work:
            response = await self._answer(request, work)
        self.metrics.record_response(response)
        return response

    async def check_health(self) -> None:
        """Raise ServeError unless the model has just answered, or answers a probe at once."""
        if time.monotonic() - self.batcher.succeeded < _RECENT_S:
            return
        name = self.options.name
        limit_s = self.options.batch_timeout_s
        try:
            probe = self._submit(self.task, self._probe, first=True)
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
        async with self._admitted(client, len(texts), self.options.timeout_s) as work:
            return await self._checked(work, tokenize, tokenizer, texts, special, work)

    async def decode(
        self,
        ids: Sequence[Sequence[int]],
        skip_special_tokens: bool = True,
        client: str | None = None,
    ) -> list[str]:
        """Decode lists of token ids, as OnlineModel does."""
        tokenizer = self.checkpoint.tokenizer
        async with self._admitted(client, len(ids), self.options.timeout_s) as work:
            return await self._checked(work, decode, tokenizer, ids, skip_special_tokens, work)

    def close(self) -> None:
        """Answer what is in the queue and refuse more."""
        self.batcher.close()
        self._pool.shutdown(cancel_futures=True)

    @property
    def documents_under_way(self) -> int:
        """The documents that are taken in and not yet answered, or still held by a thread."""
        return self._admission.used

    @asynccontextmanager
    async def _admitted(
        self, client: str | None, count: int, limit_s: float
    ) -> AsyncIterator[Work]:
        """Hold places for documents while they are worked on; ServeError where there are none."""
        most = self._admission.most_of(client)
        if count > most:
            message = f"{count} documents in a request; at most {most} are taken"
            raise self._refused("too_large", message)
        claim = self._admission.claim(client)
        if not claim.resize(count):
            raise self._refused_as_full(count)
        work = Work()
        try:
            async with asyncio.timeout(limit_s):
                yield work
        except TimeoutError:
            raise self._refused("timeout", f"no answer within {limit_s:g} s") from None
        finally:
            # A thread cannot be cancelled: it ends at its next check, and holds the places so long.
            work.abandoned.set()
            if work.thread is None:
                claim.release()
            else:
                work.thread.add_done_callback(lambda _: claim.release())

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

    def _refused(
        self, error_type: ErrorType, message: str, retry_after_s: float | None = None
    ) -> ServeError:
        """Count a refusal and return its error."""
        self.metrics.record_refusal(error_type)
        return ServeError(error_type, f"model {self.options.name}: {message}", retry_after_s)

    async def _answer(self, request: PredictRequest, work: Work) -> PredictResponse:
        """Tokenise in a thread, wait for the batches, and decode in a thread."""
        prepared = await self._checked(work, self._prepare, request, work)
        try:
            windows = self._submit(prepared.task, prepared.windows)
            predictions = await asyncio.wrap_future(windows)
            return await self._in_thread(
                work, response_of, prepared, predictions, self.checkpoint.tokenizer
            )
        except WindowBudgetError as error:
            raise self._refused("too_large", str(error)) from error

    def _submit(self, task: Task, windows: Windows, *, first: bool = False) -> Future[Predictions]:
        try:
            return self.batcher.submit(task, windows.input_ids, windows.cu_seqlens, first=first)
        except RuntimeError as error:
            raise self._refused("unhealthy", str(error)) from error

    async def _in_thread(
        self,
        work: Work,
        function: Callable[_Arguments, _Result],
        *arguments: _Arguments.args,
        **named: _Arguments.kwargs,
    ) -> _Result:
        thread = self._pool.submit(function, *arguments, **named)
        work.thread = thread
        return await asyncio.wrap_future(thread)

    async def _checked(
        self,
        work: Work,
        function: Callable[_Arguments, _Result],
        *arguments: _Arguments.args,
        **named: _Arguments.kwargs,
    ) -> _Result:
        """Run a function that refuses what is wrong with the request by a ValueError."""
        try:
            return await self._in_thread(work, function, *arguments, **named)
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

    def _prepare(self, request: PredictRequest, work: Work) -> PreparedRequest:
        """Check and tokenise a request; ValueError for what is wrong with it."""
        started = time.time()
        began = time.perf_counter()
        task = self._task_with(request.options, request.token_vectors)
        tokenizer = self.checkpoint.tokenizer
        if request.truncation_side not in (None, tokenizer.truncation_side):
            tokenizer = self._truncating_elsewhere
        windows, too_long = encode_request(
            task,
            tokenizer,
            request.documents,
            truncate=request.truncate,
            most_tokens=self.options.max_request_tokens,
            work=work,
        )
        check_size(task, windows)
        numbered = zip(request.documents, too_long, strict=True)
        documents = [document for document, is_too_long in numbered if not is_too_long]
        seconds = time.perf_counter() - began
        return PreparedRequest(task, documents, windows, too_long, started, seconds)

    def _record_batch(self, windows: int, tokens: int, seconds: float) -> None:
        """Count a packed batch, and learn from it how long a window takes."""
        latest_s = seconds / windows
        self._window_s += _LATEST_SHARE * (latest_s - self._window_s)
        self.metrics.record_batch(tokens, tokens / self.predictor.budget_tokens, seconds)
