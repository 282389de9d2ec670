"""The status of a run: written into its output while the run holds it, and its metrics."""

from __future__ import annotations

import logging
import os
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace

from pipelines.corpus.execute import Execution
from pipelines.corpus.metrics import JobMetrics
from pipelines.corpus.plan import JobPlan
from pipelines.output.lease import Lease
from pipelines.output.record import Attempt
from pipelines.output.status import (
    STATUS,
    WRITTEN_EVERY_S,
    Status,
    timestamp,
    without_texts,
)
from pipelines.report.progress import repeated
from pipelines.signals import how_stopped
from pipelines.storage import one_line

_ENDS_WITHIN_S = 10.0
"""How long the last status waits for one that is being written."""
logger = logging.getLogger(__name__)


class JobStatus:
    """What is known of a run, and its status in the output.

    A status that cannot be written is said once; the job goes on.
    """

    def __init__(self, plan: JobPlan, held: Lease):
        self.state = "preparing"
        self.execution: Execution | None = None
        self.attempt: Attempt | None = None
        """The record of the run, once it holds what the run has used."""
        self.drift: float | None = None
        """RunRecord.largest_change, once it is known."""
        self._plan = plan
        self._held = held
        self._started = timestamp()
        self._started_at = time.monotonic()
        self._error: str | None = None
        self._metrics = JobMetrics(plan.options.task, str(plan.folder))
        self._was_said = False
        self._ended = False
        self._writing = threading.Lock()

    def write(self) -> bool:
        """Write the status, unless the run has ended; tell whether there are more to write."""
        with self._writing:
            if not self._ended:
                self._write()
        return not self._ended

    def end(self, state: str, error: str | None = None) -> None:
        """Write the last status."""
        # A write that hangs would replace the last status later: there is none then.
        if not self._writing.acquire(timeout=_ENDS_WITHIN_S):
            self._ended = True
            self._say(f"another write has not ended in {_ENDS_WITHIN_S:.0f} s")
            return
        try:
            self._ended = True
            self.state = state
            self._error = error
            self._write()
        finally:
            self._writing.release()

    def _write(self) -> None:
        lease_lost = self._held.lost.is_set()
        try:
            status = self.now()
            self._metrics.record(status, lease_lost)
            if not lease_lost:  # else the status is another run's now
                status.write(self._plan.folder)
        except Exception as error:  # whatever it is, the job is not to blame
            self._say(one_line(error))

    def _say(self, reason: str) -> None:
        if not self._was_said:
            self._was_said = True
            logger.warning(f"{STATUS} cannot be written: {reason}; the job goes on")

    def now(self) -> Status:
        """Return the status as it is now."""
        status = Status(
            state=self.state,
            run=self._plan.attempt_id,
            task=self._plan.options.task,
            node=platform.node(),
            process=os.getpid(),
            started=self._started,
            written=timestamp(),
            seconds=round(time.monotonic() - self._started_at, 1),
            last_error=without_texts(self._error) if self._error else None,
        )
        run = self.execution
        if run is None:
            return status
        failed = list(run.failed.items())
        last_error = status.last_error
        if last_error is None and failed:
            name, reason = failed[-1]
            last_error = f"{name}: {without_texts(reason)}"
        rows_per_s, tokens_per_s = run.tally.rates() or (None, None)
        left_s: float | None = None
        if rows_per_s:
            left_s = round(max(run.rows_todo - run.tally.rows, 0) / rows_per_s, 1)
        status = replace(
            status,
            shards=len(run.todo),
            rows_todo=run.rows_todo,
            commits=run.tally.shards,
            last_commit=run.tally.last_commit,
            rows=run.tally.rows,
            tokens=run.tally.tokens,
            rejected=run.tally.rejected,
            rejects=run.tally.rejects_by_class(),
            failures=len(failed),
            rows_per_s=rows_per_s,
            tokens_per_s=tokens_per_s,
            left_s=left_s,
            actors=run.actors_ready() if self.state == "running" else None,
            actors_wanted=run.actors_wanted,
            last_error=last_error,
            drift=self.drift,
        )
        if self.attempt is None:
            return status
        used = self.attempt
        return replace(status, gpu_s=used.gpu_s, cpu_s=used.cpu_s, cost=used.cost)


@contextmanager
def written_status(plan: JobPlan, held: Lease) -> Iterator[JobStatus]:
    """Keep the status of a run in its output: every ten seconds within the block, and at its end.

    The block sets `state` to how the run has ended; an error that leaves it says it otherwise.
    """
    status = JobStatus(plan, held)
    status.write()
    try:
        with repeated(WRITTEN_EVERY_S, status.write):
            yield status
    except BaseException as error:
        stopped = how_stopped(error)
        message = None if stopped else (str(error) or type(error).__name__)
        status.end(stopped or "error", message)
        raise
    status.end(status.state)


class Notice:
    """What is sent when a run has ended."""

    status: JobStatus | None = None
    """Of a run that has begun; nothing is sent of others."""


@contextmanager
def notified_at_end(plan: JobPlan) -> Iterator[Notice]:
    """Send the last status of a run to the URL of --notify, once the block has ended.

    Where that fails, it is said; the job has ended as it has.
    """
    notice = Notice()
    try:
        yield notice
    finally:
        if plan.webhook is not None and notice.status is not None:
            content = asdict(notice.status.now()) | {"output": str(plan.folder)}
            reason = plan.webhook.post(content)
            if reason is not None:
                logger.warning(f"--notify {plan.webhook}: {reason}; the job itself is not affected")
