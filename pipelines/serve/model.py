"""A model online, in this process: documents are checked and tokenised in threads, batched, and
answered.

Shapes: T packed tokens, W windows, D documents, H hidden.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from modernbert.text.tokenizer import Tokenizer
from modernbert.text.windows import Text, WindowBudgetError, Windows
from pipelines.checkpoints import Checkpoint
from pipelines.inference.loading import cpu_budget, device_here
from pipelines.inference.outputs import model_outputs
from pipelines.inference.predictor import Predictor
from pipelines.serve.admission import Admission, half
from pipelines.serve.batcher import Batcher
from pipelines.serve.config import ServedModel
from pipelines.serve.encoding import (
    Work,
    check_results,
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
from pipelines.tasks.outputs import ModelOutputs, Predictions

_THREADS = min(8, max(2, os.cpu_count() or 1))  # for checking, tokenising and decoding
_TASKS_KEPT, _OPTIONS_KEPT = (
    256,
    1024,
)  # tasks for the options of calls, with the characters of these options
_RECENT_S = 5.0  # with an answer as recent as this the model is healthy


@dataclass(frozen=True)
class _Prepared:
    """The documents of a request, checked and tokenised."""

    task: Task
    documents: Sequence[Text]
    windows: Windows
    too_long: np.ndarray
    """(D,) bool: documents that would be truncated and are not answered; `documents` and `windows`
    are the others.
    """
    started: float
    """In seconds since 1970."""
    seconds: float


class ModelServer:
    """One model with its queue; its methods are those of ModelClient for one model."""

    def __init__(self, options: ServedModel, checkpoint: Checkpoint | None = None):
        """Load the model; ValueError if checkpoint and options do not fit.

        `checkpoint`: the one that the service was deployed with; None: what the options name, as it
        is now.
        """
        self.task_cls = task_class(options.task)
        self.options = options = self.task_cls.read_files(options)
        self.checkpoint = checkpoint or Checkpoint.open(options.model, options.revision)
        self.task_cls.check(self.checkpoint)
        self.task = self.task_cls.from_checkpoint(self.checkpoint, options)
        self._task = lru_cache(_TASKS_KEPT)(self._make_task)
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
        self._window_s = 0.01  # what a window has taken lately
        self._probe = self.task.encode(self.checkpoint.tokenizer, [self.task.probe])
        self.batcher = Batcher(self.predictor, self._ran)

    async def predict(self, request: PredictRequest) -> PredictResponse:
        """Answer a request; what the caller cancels leaves the queue."""
        limit_s = min(request.timeout_s or self.options.timeout_s, self.options.timeout_s)
        async with self._admitted(request.client, len(request.documents), limit_s) as work:
            answers = await self._answer(request, work)
        self.metrics.record_response(answers)
        return answers

    async def check_health(self) -> None:
        """Raise ServeError unless the model has just answered, or answers a probe that goes before
        all others.
        """
        if time.monotonic() - self.batcher.succeeded < _RECENT_S:
            return
        try:
            probe = self._submit(self.task, self._probe, first=True)
            predictions = await asyncio.wait_for(
                asyncio.wrap_future(probe), self.options.batch_timeout_s
            )
        except TimeoutError:
            limit_s = self.options.batch_timeout_s
            raise ServeError(
                "unhealthy", f"model {self.options.name} gave no answer within {limit_s:g} s"
            ) from None
        if predictions.failed:
            raise ServeError("unhealthy", f"model {self.options.name}: {predictions.failed[0]}")

    async def info(self) -> Info:
        return Info(
            name=self.options.name,
            model=self.checkpoint.name if "://" in self.options.model else self.options.model,
            revision=self.options.revision,
            task=self.options.task,
            device=str(self.predictor.device),
            dtype=self.predictor.dtype,
            max_length=self.task.max_length,
            budget_tokens=self.predictor.budget_tokens,
            max_documents=half(self.options.max_queued_documents),
            windows=self.task.stride is not None,
            openai_truncate=self.options.openai_truncate,
            openai_token_ids=self.options.openai_token_ids,
            **self.task.info(self.checkpoint),
        )

    async def tokenize(
        self, texts: Sequence[str], special: bool = True, client: str | None = None
    ) -> list[Tokens]:
        async with self._admitted(client, len(texts), self.options.timeout_s) as work:
            return await self._checked(
                work, tokenize, self.checkpoint.tokenizer, texts, special, work
            )

    async def decode(
        self,
        ids: Sequence[Sequence[int]],
        skip_special_tokens: bool = True,
        client: str | None = None,
    ) -> list[str]:
        async with self._admitted(client, len(ids), self.options.timeout_s) as work:
            return await self._checked(
                work, decode, self.checkpoint.tokenizer, ids, skip_special_tokens, work
            )

    def close(self) -> None:
        """Answer what is in the queue and refuse more."""
        self.batcher.close()
        self._pool.shutdown(cancel_futures=True)

    @property
    def _documents(self) -> int:
        """The documents that are taken in and not yet answered, or still held by a thread."""
        return self._admission.used

    @asynccontextmanager
    async def _admitted(
        self, client: str | None, count: int, limit_s: float
    ) -> AsyncIterator[Work]:
        """Hold places for documents until they are answered and no thread is busy with them;
        ServeError without.
        """
        most = self._admission.most_of(client)
        if count > most:
            raise self._refused(
                "too_large", f"{count} documents in a request; at most {most} are taken"
            )
        claim = self._admission.claim(client)
        if not claim.resize(count):
            most, longest_s = (
                self.options.max_queued_documents,
                5.0 if count <= SMALL_REQUEST else 60.0,
            )
            wait_s = min(max(self._documents * self._window_s, 1.0), longest_s)
            message = (
                f"{self._documents} documents are being answered; at most {most} are taken at a "
                "time"
            )
            raise self._refused(
                "overloaded", f"{message}, at most half of them of one client", wait_s
            )
        work = Work()
        try:
            async with asyncio.timeout(limit_s):
                yield work
        except TimeoutError:
            raise self._refused("timeout", f"no answer within {limit_s:g} s") from None
        finally:
            work.abandoned.set()
            if work.thread is None:
                claim.release()
            else:
                work.thread.add_done_callback(lambda _: claim.release())

    def _refused(
        self, error_type: ErrorType, message: str, retry_after_s: float | None = None
    ) -> ServeError:
        self.metrics.record_refusal(error_type)
        return ServeError(error_type, f"model {self.options.name}: {message}", retry_after_s)

    async def _answer(self, request: PredictRequest, work: Work) -> PredictResponse:
        ready = await self._checked(work, self._prepare, request, work)
        try:
            predictions = await asyncio.wrap_future(self._submit(ready.task, ready.windows))
            return await self._in_thread(work, self._answers, ready, predictions)
        except WindowBudgetError as error:
            raise self._refused("too_large", str(error)) from error

    def _submit(self, task: Task, windows: Windows, *, first: bool = False) -> Future[Predictions]:
        try:
            return self.batcher.submit(task, windows.input_ids, windows.cu_seqlens, first=first)
        except RuntimeError as error:
            raise self._refused("unhealthy", str(error)) from error

    async def _in_thread(self, work: Work, function: Any, *arguments: Any) -> Any:
        work.thread = self._pool.submit(function, *arguments)
        return await asyncio.wrap_future(work.thread)

    async def _checked(self, work: Work, function: Any, *arguments: Any) -> Any:
        """Run a function that refuses what is wrong with the request by a ValueError."""
        try:
            return await self._in_thread(work, function, *arguments)
        except WindowBudgetError as error:
            raise self._refused("too_large", str(error)) from error
        except ValueError as error:
            raise self._refused("invalid", str(error)) from error

    def _task_with(self, options: dict[str, Any], token_vectors: bool) -> Task:
        """The model's task with the options of a call; those of few characters are kept."""
        given = json.dumps(options, sort_keys=True)
        return (self._task if len(given) <= _OPTIONS_KEPT else self._make_task)(
            given, token_vectors
        )

    def _make_task(self, options: str, token_vectors: bool) -> Task:
        task = self.task_cls.from_checkpoint(
            self.checkpoint, self.options.override(json.loads(options))
        )
        longest = self.options.max_length
        if longest is not None and task.max_length > longest:
            raise ValueError(
                f"max_length {task.max_length} is above the {longest} that this service reads"
            )
        return task.for_tokens(self.checkpoint) if token_vectors else task

    @cached_property
    def _truncating_elsewhere(self) -> Tokenizer:
        """The tokenizer with the truncation side that is not the checkpoint's."""
        tokenizer = self.checkpoint.tokenizer
        return tokenizer.truncating("right" if tokenizer.truncation_side == "left" else "left")

    def _prepare(self, request: PredictRequest, work: Work) -> _Prepared:
        began, started = time.time(), time.perf_counter()
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
        kept = zip(request.documents, too_long, strict=True)
        documents = [document for document, long in kept if not long]
        return _Prepared(task, documents, windows, too_long, began, time.perf_counter() - started)

    def _answers(self, ready: _Prepared, predictions: Predictions) -> PredictResponse:
        """Make the response: the answers of documents that were run, in their places among those
        that were not.
        """
        task, windows, at = ready.task, ready.windows, np.flatnonzero(~ready.too_long)
        outputs = model_outputs(
            task,
            self.checkpoint.tokenizer,
            ready.documents,
            windows,
            predictions.values,
            predictions.splits,
        )
        failed = {
            int(d): f"text has more than the {task.max_length} tokens that the model reads"
            for d in np.flatnonzero(ready.too_long)
        }
        failed |= {int(at[d]): reason for d, reason in windows.rejected.items()}
        invalid = frozenset(failed)
        for w, reason in predictions.failed.items():
            failed.setdefault(int(at[windows.document[w]]), reason)
        results = _results(task, outputs, at, failed, len(ready.too_long))
        check_results(task, results)
        n_tokens, truncated = (
            np.zeros(len(ready.too_long), np.int64),
            np.zeros(len(ready.too_long), bool),
        )
        n_tokens[at], truncated[at] = windows.n_tokens, windows.truncated
        return PredictResponse(
            results=results,
            failed=failed,
            invalid=invalid,
            n_tokens=n_tokens.tolist(),
            truncated=truncated.tolist(),
            started=ready.started,
            tokenise_s=ready.seconds,
            queue_s=predictions.queue_s,
            forward_s=predictions.seconds,
        )

    def _ran(self, windows: int, tokens: int, seconds: float) -> None:
        self._window_s += 0.1 * (seconds / windows - self._window_s)
        self.metrics.record_batch(tokens, tokens / self.predictor.budget_tokens, seconds)


def _results(
    task: Task, outputs: ModelOutputs, at: np.ndarray, failed: dict[int, str], count: int
) -> Any:
    """Put the task's results in their places among `count` documents; failed ones are None, or
    zeros in an array.
    """
    response = task.response(outputs)
    if isinstance(response, np.ndarray):
        out = np.zeros((count, *response.shape[1:]), response.dtype)
        out[at] = response
        out[list(failed)] = 0
        return out
    results: list[Any] = [None] * count
    for place, result in zip(at.tolist(), response, strict=True):
        if place not in failed:
            results[place] = result
    return results
