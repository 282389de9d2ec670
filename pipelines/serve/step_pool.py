"""StepPool: threads that check, tokenise and decode, a step of a request at a time, in turns of
their clients.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Generic, TypeAlias, TypeVar

from pipelines.serve.fair import Entry, FairQueue, Speed

_QUANTUM_BYTES = 1 << 16  # about 20 ms of tokenising
_Result = TypeVar("_Result")
Steps: TypeAlias = Generator[int, None, _Result]
"""Work in steps: each but the last one yields the bytes of texts that it has done."""


class AbandonedError(Exception):
    """Nobody waits for the work any more."""


@dataclass(eq=False)
class Work(Generic[_Result]):
    """What is done in steps, and its result."""

    client: str | None
    steps: Steps[_Result]
    bytes_left: int
    future: Future[_Result]
    number: int = -1
    """Of its entry in the queue."""
    is_abandoned: bool = False


class StepPool:
    """Threads that take steps of the work of clients in turn."""

    def __init__(self, threads: int):
        # Of results of any type, as the threads do not look at them.
        self._queue: FairQueue[Work[Any]] = FairQueue(_QUANTUM_BYTES)
        self._speed = Speed()
        self._lock = threading.Lock()
        # One for each entry that was queued: it wakes a thread sooner than a condition does.
        self._wakes: SimpleQueue[None] = SimpleQueue()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run, name="tokenise", daemon=True) for _ in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self,
        client: str | None,
        steps: Steps[_Result],
        size: int,
        deadline: float = float("inf"),
    ) -> Work[_Result]:
        """Queue work on `size` bytes of texts.

        `deadline`: when nobody waits for it any more, by time.perf_counter(). Raises
        OverloadedError where there is no time for it, and RuntimeError after `close`.
        """
        work = Work(client, steps, max(size, 1), Future())
        # Work cannot be cancelled, only abandoned: its future is done when no thread is at it.
        work.future.set_running_or_notify_cancel()
        with self._lock:
            if self._closed:
                raise RuntimeError("the threads are closed")
            bytes_until = self._queue.cost_until(client, size)
            self._speed.check(bytes_until, time.perf_counter(), deadline)
            work.number = self._queue.push(client, work, work.bytes_left)
        self._wakes.put(None)
        return work

    def abandon(self, work: Work[Any]) -> None:
        """End work for which nobody waits: at once, or where a thread is at it, after its step."""
        with self._lock:
            work.is_abandoned = True
            entry = self._queue.find(work.client, work.number)
            if entry is not None:
                self._queue.remove(entry)
        if entry is not None:
            work.future.set_exception(AbandonedError())

    def close(self) -> None:
        """End the threads, and abandon what waits."""
        with self._lock:
            self._closed = True
            waiting = [entry.item for entry in self._queue.turns()]
        for work in waiting:
            self.abandon(work)
        for _ in self._threads:
            self._wakes.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (entry := self._wait()) is not None:
            work = entry.item
            began = time.perf_counter()
            done_bytes, is_over = _step(work)
            ended = time.perf_counter()
            with self._lock:
                self._queue.charge(work.client, done_bytes)
                if len(self._queue):
                    self._speed.record(done_bytes, began, ended)
                if not is_over and not work.is_abandoned:
                    work.bytes_left = max(work.bytes_left - done_bytes, 1)
                    work.number = self._queue.push(work.client, work, work.bytes_left)
                    self._wakes.put(None)
                    continue
            if not is_over:
                work.steps.close()
                work.future.set_exception(AbandonedError())

    def _wait(self) -> Entry[Work[Any]] | None:
        """Return the next work, taken out of the queue; None after the end."""
        while True:
            self._wakes.get()
            with self._lock:
                if self._closed:
                    return None
                entry = next(self._queue.turns(), None)
                if entry is not None:
                    self._queue.remove(entry)
                    return entry


def _step(work: Work[Any]) -> tuple[int, bool]:
    """Do a step; return the bytes that it has done, and whether the work is over."""
    try:
        return next(work.steps), False
    except StopIteration as end:
        work.future.set_result(end.value)
    except BaseException as error:
        work.future.set_exception(error)
    return work.bytes_left, True
