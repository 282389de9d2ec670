"""Batcher: windows of many requests in, packed batches through one predictor, values out. Threads,
no event loop.

Clients share the model fairly, in tokens (fair.py). A request that cannot be answered in time, by
the speed of late, is refused when it comes; and if others have come since, before it is begun or
goes on, so that hardly any work is done for answers that come too late.

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
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from modernbert.text.windows import WindowBudgetError
from pipelines.inference.outputs import ValuesBuilder
from pipelines.inference.predictor import Predictor
from pipelines.serve.fair import Entry, FairQueue, OverloadedError, Speed
from pipelines.serve.protocol import MOST_NUMBERS
from pipelines.tasks.base import Task
from pipelines.tasks.outputs import Predictions

logger = logging.getLogger(__name__)
TURN_FRACTION = 4
"""A client gets a TURN_FRACTION-th of a batch before the next client has its turn."""
LINGER = 0.05
"""The wait after a batch, as a share of the time that the batch took."""


class PendingRequest:
    """The windows of a request, some of which are still in the queue."""

    def __init__(self, task: Task, input_ids: np.ndarray, cu_seqlens: np.ndarray, deadline: float):
        self.task = task
        self.deadline = deadline  # by time.perf_counter()
        self.input_ids = input_ids
        self.cu_seqlens = cu_seqlens
        self.windows = len(cu_seqlens) - 1
        self.collected = ValuesBuilder(task, input_ids, cu_seqlens)
        self.failed: dict[int, str] = {}
        self.next = 0  # the first window that is in no batch yet
        self.unanswered = self.windows
        self.arrived = self.started = time.perf_counter()
        self.batches = 0
        self.future: Future[Predictions] = Future()

    def count_next(self, turn: int, room: int, *, at_least_one: bool) -> int:
        """Return how many of its next windows a batch takes.

        Args:
            turn: the tokens that its client may still take in this turn; a single window may have
                more.
            room: the tokens for which the batch still has room.
            at_least_one: whether it takes a window for which there is no room, too.
        """
        count = self._count_fitting(min(turn, room))
        if count == 0 and at_least_one:
            return 1
        return count or min(self._count_fitting(room), 1)

    def _count_fitting(self, tokens: int) -> int:
        """Return how many of its next windows have at most `tokens` together."""
        ends = self.cu_seqlens[self.next :]
        return int(np.searchsorted(ends, ends[0] + tokens, side="right")) - 1

    def take(self, count: int) -> _Part:
        """Put its next `count` windows into a batch."""
        if self.next == 0:
            self.started = time.perf_counter()
        part = _Part(self, self.next, self.next + count)
        self.next = part.stop
        return part

    def finish(self, ended: float) -> None:
        """Answer, unless it was cancelled."""
        if not self.future.set_running_or_notify_cancel():
            return
        values, splits = self.collected.finish()
        predictions = Predictions(
            values,
            splits,
            self.failed,
            self.batches,
            seconds=ended - self.started,
            queue_s=self.started - self.arrived,
        )
        self.future.set_result(predictions)

    def refuse_size(self) -> None:
        """End with WindowBudgetError: the model gives more numbers than a request may have."""
        message = f"the model gives more than the {MOST_NUMBERS:,} numbers that a request may have"
        self.refuse(WindowBudgetError(f"{message}: send fewer or shorter texts at a time"))

    def refuse(self, error: Exception) -> None:
        """End with an error, unless it has ended."""
        if not self.future.done() and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


@dataclass(frozen=True)
class _Part:
    """What a batch has of a request: its windows from `first` to `stop`."""

    request: PendingRequest
    first: int
    stop: int

    @property
    def input_ids(self) -> np.ndarray:
        """The tokens of the windows, end to end."""
        cu_seqlens = self.request.cu_seqlens
        return self.request.input_ids[cu_seqlens[self.first] : cu_seqlens[self.stop]]

    @property
    def tokens(self) -> int:
        """The number of its tokens."""
        cu_seqlens = self.request.cu_seqlens
        return int(cu_seqlens[self.stop] - cu_seqlens[self.first])

    @property
    def lengths(self) -> np.ndarray:
        """The tokens in each window."""
        return np.diff(self.request.cu_seqlens[self.first : self.stop + 1])

    def collect(self, predictions: Predictions, offset: int) -> None:
        """Hand the values of its windows, from window `offset` of the batch on, to the request."""
        values = predictions.values
        splits = predictions.splits
        for window in range(self.first, self.stop):
            place = offset + window - self.first
            reason = predictions.failed.get(place)
            if reason is None:
                rows = values[splits[place] : splits[place + 1]]
                self.request.collected.put_one(window, rows)
            else:
                self.request.failed[window] = reason


@dataclass(frozen=True)
class _Batch:
    """What runs at a time."""

    parts: list[_Part]
    is_full: bool
    """Whether more waited than there was room for: only then its time tells the speed."""


class Batcher:
    """The queue of one predictor, and the threads that run it."""

    def __init__(
        self, predictor: Predictor, on_batch: Callable[[int, int, float], None] = lambda *_: None
    ):
        """`on_batch(windows, tokens, seconds)` is called after each packed batch."""
        self.predictor = predictor
        self._on_batch = on_batch
        self.succeeded = float("-inf")
        """When a batch last succeeded, by time.monotonic()."""
        turn_tokens = max(predictor.budget_tokens // TURN_FRACTION, 1)
        self._queue: FairQueue[PendingRequest] = FairQueue(turn_tokens)
        self._speed = Speed()
        self._changed = threading.Condition()
        self._closed = False
        # When the wait after the last batch is over, by time.perf_counter().
        self._wait_until = float("-inf")
        self._answered = 0  # requests that the last batch completed
        # A second thread prepares and launches a batch while the first one waits for the GPU.
        count = 1 if predictor.device.type == "cpu" else 2
        self._threads = [
            threading.Thread(target=self._work, name="batcher", daemon=True) for _ in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self,
        task: Task,
        input_ids: np.ndarray,
        cu_seqlens: np.ndarray,
        *,
        client: str | None = None,
        deadline: float = float("inf"),
        first: bool = False,
    ) -> Future[Predictions]:
        """Queue the windows of a request.

        Args:
            task: what is done with them.
            input_ids: (T,), the tokens of the windows, end to end.
            cu_seqlens: (W+1,), where each window starts, with T at the end.
            client: who asks; those without a name are one.
            deadline: when nobody waits for the answer any more, by time.perf_counter().
            first: whether they come before all others.

        Returns:
            A future, whose cancelling takes what has not run out of the queue. It raises
            WindowBudgetError where the model gives more than MOST_NUMBERS, and OverloadedError
            where others have come so that there is no time for it any more.

        Raises:
            OverloadedError: where there is no time for it.
            RuntimeError: after `close`.
        """
        request = PendingRequest(task, input_ids, cu_seqlens, deadline)
        tokens = len(input_ids)
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            if request.windows == 0:
                request.finish(request.started)
                return request.future
            self._check_time(client, tokens, deadline)
            number = self._queue.push(client, request, tokens, first=first)
            self._changed.notify()
        request.future.add_done_callback(lambda future: self._forget(client, number, future))
        return request.future

    def check_time(self, client: str | None, tokens: int, deadline: float) -> None:
        """Raise OverloadedError for a request of so many tokens that `submit` would refuse."""
        with self._changed:
            self._check_time(client, tokens, deadline)

    @property
    def queued(self) -> int:
        """The requests that have windows in the queue."""
        return len(self._queue)

    def close(self) -> None:
        """Answer what is in the queue, refuse more, and end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        """Run batches until the batcher is closed and its queue empty."""
        while True:
            batch = self._wait_for_batch()
            if not batch.parts:
                return
            self._run(batch)

    def _wait_for_batch(self) -> _Batch:
        """Return the next batch as soon as there is one; nothing after the end."""
        with self._changed:
            while True:
                batch = self._next_batch()
                if batch.parts or (self._closed and not self._queue):
                    return batch
                # What is in the queue waits for more to share its batch, but not for long.
                timeout_s = None
                if self._queue:
                    timeout_s = max(self._wait_until - time.perf_counter(), 0)
                self._changed.wait(timeout_s)

    def _next_batch(self) -> _Batch:
        """The next batch: clients take turns, a part of the batch each, until it is full.

        A request whose next window does not fit any more keeps its place, and the first of these
        comes first in the next batch. Only requests whose forward pass is the same share a batch.
        Nothing where it is better to wait for more.
        """
        parts: list[_Part] = []
        if self._is_better_to_wait():
            return _Batch(parts, is_full=False)
        room = self.predictor.budget_tokens
        now = time.perf_counter()
        for entry in self._queue.turns():
            request = entry.item
            if not self._is_in_time(entry, now):
                self._queue.remove(entry)
                continue
            count = 0
            if not parts or _share_a_pass(parts[0].request.task, request.task):
                # A window longer than the budget is a batch of its own.
                turn = self._queue.credit(entry)
                count = request.count_next(turn, room, at_least_one=not parts)
            if count == 0:
                continue
            part = request.take(count)
            parts.append(part)
            room -= part.tokens
            self._queue.take(entry, part.tokens)
            if room <= 0:
                break
        return _Batch(parts, is_full=len(self._queue) > 0)

    def _is_in_time(self, entry: Entry[PendingRequest], now: float) -> bool:
        """Tell whether a request can still be answered in time; else it is refused.

        One that was cancelled, or refused for its size, cannot.
        """
        request = entry.item
        if request.future.done():
            return False
        if request.deadline == float("inf"):
            return True
        try:
            self._speed.check(self._queue.cost_of_next(entry), now, request.deadline, promised=1.0)
        except OverloadedError as error:
            request.refuse(error)
            return False
        return True

    def _check_time(self, client: str | None, tokens: int, deadline: float) -> None:
        tokens_until = self._queue.cost_until(client, tokens)
        self._speed.check(tokens_until, time.perf_counter(), deadline)

    def _forget(self, client: str | None, number: int, future: Future[Predictions]) -> None:
        """Take a request that was cancelled out of the queue."""
        if not future.cancelled():
            return
        with self._changed:
            entry = self._queue.find(client, number)
            if entry is not None:
                self._queue.remove(entry)

    def _is_better_to_wait(self) -> bool:
        """Tell whether those whom the last batch answered may soon ask again and share the next."""
        if self._closed or time.perf_counter() >= self._wait_until:
            return False
        if len(self._queue) >= self._answered:
            return False
        return self._queue.backlog < self.predictor.budget_tokens

    def _run(self, batch: _Batch) -> None:
        """Run a batch and hand its values, or the reasons why there are none, to its requests."""
        parts = batch.parts
        ids = np.concatenate([part.input_ids for part in parts])
        lengths = np.concatenate([part.lengths for part in parts])
        windows = len(lengths)
        began = time.perf_counter()
        predictions = self._predict(parts[0].request.task, ids, lengths)
        # A model that fails every window is not healthy.
        if len(predictions.failed) < windows:
            self.succeeded = time.monotonic()
        offset = 0
        for part in parts:
            part.collect(predictions, offset)
            offset += part.stop - part.first
        ended = time.perf_counter()
        seconds = ended - began
        self._on_batch(windows, len(ids), seconds)
        # Another thread may have run other windows of the same requests.
        with self._changed:
            completed = _completed(parts)
            if batch.is_full:
                self._speed.record(len(ids), began, ended)
            self._answered = len(completed)
            self._wait_until = ended + LINGER * seconds
        for request in completed:
            request.finish(ended)

    def _predict(self, task: Task, ids: np.ndarray, lengths: np.ndarray) -> Predictions:
        """Return the model's values for windows; where it raises, all have failed."""
        cu_seqlens = np.concatenate(([0], np.cumsum(lengths)))
        try:
            return self.predictor.predict(ids, cu_seqlens, task=task)
        except Exception as error:
            windows = len(lengths)
            message = "a packed batch of %d windows and %d tokens failed"
            logger.exception(message, windows, len(ids))
            first_line = next(iter(str(error).splitlines()), "")
            reason = f"the model failed: {type(error).__name__}: {first_line}"
            failed = dict.fromkeys(range(windows), reason)
            no_values = np.empty((0, task.width), np.float32)
            return Predictions(no_values, np.zeros(windows + 1, np.int64), failed, 1, 0.0)


def _share_a_pass(task: Task, other: Task) -> bool:
    return task.forward_options == other.forward_options


def _completed(parts: list[_Part]) -> list[PendingRequest]:
    """Count the windows of a batch as answered, and return the requests that have no other."""
    completed = []
    for part in parts:
        request = part.request
        request.unanswered -= part.stop - part.first
        request.batches += 1
        if request.collected.numbers > MOST_NUMBERS:
            request.refuse_size()
        elif request.unanswered == 0:
            completed.append(request)
    return completed
