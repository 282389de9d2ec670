"""Batcher: windows of many requests in, packed batches through one predictor, values out. Threads,
no event loop.

An idle model runs what is there at once. While it runs, the queue fills, and the next batch takes
what is there then, so batches grow with the load. Clients that have just been answered ask again,
and else the first of them would run alone, which on a GPU takes as long as all of them: so after a
batch a model waits a twentieth of its time, unless as many requests are there as it has answered,
or enough for a whole batch.

Shapes: T packed tokens, W windows, R rows of values, C numbers a row.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np

from modernbert.text.windows import WindowBudgetError
from pipelines.inference.outputs import ValuesBuilder
from pipelines.inference.predictor import Predictor
from pipelines.serve.protocol import MOST_NUMBERS
from pipelines.tasks.base import Task
from pipelines.tasks.outputs import Predictions

logger = logging.getLogger(__name__)
TURN_FRACTION = 4
"""A request gets a TURN_FRACTION-th of a batch before the next request has its turn."""
LINGER = 0.05
"""The wait after a batch, as a share of the time that the batch took."""


class PendingRequest:
    """The windows of a request, some of which are still in the queue."""

    def __init__(self, task: Task, input_ids: np.ndarray, cu_seqlens: np.ndarray):
        self.task, self.input_ids, self.cu_seqlens = task, input_ids, cu_seqlens
        self.collected = ValuesBuilder(task, input_ids, cu_seqlens)
        self.failed: dict[int, str] = {}
        self.next = 0  # the first window that is in no batch yet
        self.unanswered = len(cu_seqlens) - 1
        self.arrived = self.started = time.perf_counter()
        self.batches = 0
        self.future: Future[Predictions] = Future()

    def fits(self, room: int, at_least_one: bool) -> int:
        """Return how many of its next windows have at most `room` tokens; with `at_least_one`, one
        of any length.
        """
        ends = self.cu_seqlens[self.next :]
        count = int(np.searchsorted(ends, ends[0] + room, side="right")) - 1
        return max(count, 1) if at_least_one else count

    def refuse_size(self) -> None:
        """End with WindowBudgetError, unless that is done: the model gives more numbers than a
        request may have.
        """
        if self.future.done() or not self.future.set_running_or_notify_cancel():
            return
        message = f"the model gives more than the {MOST_NUMBERS:,} numbers that a request may have"
        self.future.set_exception(
            WindowBudgetError(f"{message}: send fewer or shorter texts at a time")
        )


_Batch = list[tuple[PendingRequest, int, int]]
"""The windows from `first` to `stop` of several requests."""


class Batcher:
    """The queue of one predictor, and the threads that run it."""

    def __init__(
        self, predictor: Predictor, on_batch: Callable[[int, int, float], None] = lambda *_: None
    ):
        """`on_batch(windows, tokens, seconds)` is called after each packed batch."""
        self.predictor, self._on_batch = predictor, on_batch
        self.succeeded = float("-inf")
        """When a batch last succeeded, by time.monotonic()."""
        self._queue: deque[PendingRequest] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._wait_until = float(
            "-inf"
        )  # when the wait after the last batch is over, by time.perf_counter()
        self._answered = 0  # requests that the last batch completed
        # A second thread prepares and launches a batch while the first one waits for the GPU.
        count = 1 if predictor.device.type == "cpu" else 2
        self._threads = [
            threading.Thread(target=self._work, name="batcher", daemon=True) for _ in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self, task: Task, input_ids: np.ndarray, cu_seqlens: np.ndarray, *, first: bool = False
    ) -> Future[Predictions]:
        """Queue windows laid end to end, `input_ids` (T,) cut at `cu_seqlens` (W+1,).

        Cancelling the future takes what has not run out of the queue. It raises WindowBudgetError
        where the model gives more than MOST_NUMBERS. `first`: before all others. Raises
        RuntimeError after `close`.
        """
        waiting = PendingRequest(task, input_ids, cu_seqlens)
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            if not waiting.unanswered:
                waiting.future.set_result(Predictions(*waiting.collected.finish(), {}, 0, 0.0))
            elif first:
                self._queue.appendleft(waiting)
            else:
                self._queue.append(waiting)
            self._changed.notify()
        return waiting.future

    def close(self) -> None:
        """Answer what is in the queue, refuse more, and end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not (batch := self._next_batch()):
                    if self._closed and not self._queue:
                        return
                    self._changed.wait(
                        max(self._wait_until - time.perf_counter(), 0) if self._queue else None
                    )
            self._run(batch)

    def _next_batch(self) -> _Batch:
        """The next batch: requests take turns in the order of arrival, a part of the batch each,
        until it is full.

        A request whose next window does not fit any more keeps its place, and so comes first in the
        next batch; one that had a turn stands behind all others. Only requests whose forward pass
        is the same share a batch. Nothing where it is better to wait for more.
        """
        batch: _Batch = []
        waiting_for_more = time.perf_counter() < self._wait_until and not self._closed
        if waiting_for_more and len(self._queue) < self._answered and self._room_left():
            return batch
        kept: list[PendingRequest] = []
        room = self.predictor.budget_tokens
        turn = max(room // TURN_FRACTION, 1)
        while self._queue and room > 0:
            waiting = self._queue.popleft()
            if waiting.future.done():  # cancelled, or refused for its size
                continue
            count = 0
            if not batch or batch[0][0].task.forward_options == waiting.task.forward_options:
                count = waiting.fits(min(turn, room), not batch) or min(
                    waiting.fits(room, False), 1
                )
            if not count:
                kept.append(waiting)
                continue
            first, waiting.next = waiting.next, waiting.next + count
            if first == 0:
                waiting.started = time.perf_counter()
            batch.append((waiting, first, waiting.next))
            room -= int(waiting.cu_seqlens[waiting.next] - waiting.cu_seqlens[first])
            if waiting.next < len(waiting.cu_seqlens) - 1:
                self._queue.append(waiting)
        self._queue.extendleft(reversed(kept))
        return batch

    def _room_left(self) -> bool:
        room = self.predictor.budget_tokens
        for waiting in self._queue:
            room -= int(waiting.cu_seqlens[-1] - waiting.cu_seqlens[waiting.next])
            if room <= 0:
                return False
        return True

    def _run(self, batch: _Batch) -> None:
        """Run a batch and hand its values out; whatever goes wrong is the reason why its windows
        failed.
        """
        ids = np.concatenate(
            [w.input_ids[w.cu_seqlens[first] : w.cu_seqlens[stop]] for w, first, stop in batch]
        )
        lengths = np.concatenate(
            [np.diff(w.cu_seqlens[first : stop + 1]) for w, first, stop in batch]
        )
        began = time.perf_counter()
        try:
            outputs = self.predictor.predict(
                ids, np.concatenate(([0], np.cumsum(lengths))), task=batch[0][0].task
            )
            failed, values, splits = outputs.failed, outputs.values, outputs.splits
        except Exception as error:
            logger.exception(
                "a packed batch of %d windows and %d tokens failed", len(lengths), len(ids)
            )
            message = (
                f"the model failed: {type(error).__name__}: "
                f"{next(iter(str(error).splitlines()), '')}"
            )
            failed, values, splits = dict.fromkeys(range(len(lengths)), message), None, None
        if len(failed) < len(lengths):
            self.succeeded = time.monotonic()
        at = 0
        for waiting, first, stop in batch:
            for w in range(first, stop):
                if (reason := failed.get(at + w - first)) is not None:
                    waiting.failed[w] = reason
                elif values is not None and splits is not None:
                    waiting.collected.put_one(
                        w, values[splits[at + w - first] : splits[at + w - first + 1]]
                    )
            at += stop - first
        ended = time.perf_counter()
        self._on_batch(len(lengths), len(ids), ended - began)
        done = []
        with self._changed:
            for waiting, first, stop in batch:
                waiting.unanswered -= stop - first
                waiting.batches += 1
                if waiting.collected.numbers > MOST_NUMBERS:
                    waiting.refuse_size()
                elif not waiting.unanswered:
                    done.append(waiting)
            self._answered, self._wait_until = len(done), ended + LINGER * (ended - began)
        for waiting in done:
            if waiting.future.set_running_or_notify_cancel():
                queue_s, seconds = waiting.started - waiting.arrived, ended - waiting.started
                waiting.future.set_result(
                    Predictions(
                        *waiting.collected.finish(),
                        waiting.failed,
                        waiting.batches,
                        seconds,
                        queue_s,
                    )
                )
