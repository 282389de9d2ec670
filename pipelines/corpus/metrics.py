"""What a run reports to Prometheus through Ray: counts and times, never a text.

Ray puts ray_ before each name, and _total behind that of a counter. Without Ray nothing is sent.
"""

from __future__ import annotations

from datetime import datetime
from functools import cache

import ray
from ray.util.metrics import Counter, Gauge

from pipelines.output.status import RUNNING_STATES, Status

_TAGS = ("task", "output")


@cache
def _counters() -> dict[str, Counter]:
    """Make the counters, once a process."""
    counters: dict[str, Counter] = {}
    for name, description in {
        "rows": "Rows committed, rejected ones among them",
        "tokens": "Tokens of committed rows",
        "commits": "Shards committed",
        "failures": "Files and shards that failed for good",
    }.items():
        counters[name] = Counter(f"modernbert_job_{name}", description, _TAGS)
    counters["rejected_rows"] = Counter(
        "modernbert_job_rejected_rows",
        "Rejected rows, by the class of their reason",
        (*_TAGS, "reason"),
    )
    return counters


@cache
def _gauges() -> dict[str, Gauge]:
    """Make the gauges, once a process."""
    gauges: dict[str, Gauge] = {}
    for name, description in {
        "running": "1 while the job runs, then 0",
        "rows_todo": "Rows that the job has to do",
        "rows_done": "Those of them that are committed",
        "last_commit_timestamp_seconds": "When a shard was last committed; first the start",
        "lease_lost": "1 where another run has taken the output over",
        "drift": "The largest change of a label's share since the run before, at the end of a run",
    }.items():
        gauges[name] = Gauge(f"modernbert_job_{name}", description, _TAGS)
    return gauges


class JobMetrics:
    """The metrics of a run, which follow its status."""

    def __init__(self, task: str, output: str):
        """`output`: without credentials; with the task it tells the jobs of a cluster apart."""
        self._tags = {"task": task, "output": output}
        self._recorded: dict[tuple[str, str], int] = {}  # by counter and reason

    def record(self, status: Status, lease_lost: bool = False) -> None:
        """Report what is new in a status."""
        if not ray.is_initialized():
            return
        for name in ("rows", "tokens", "commits", "failures"):
            self._count(name, getattr(status, name))
        for reason, count in status.rejects.items():
            self._count("rejected_rows", count, reason)
        last_commit = datetime.fromisoformat(status.last_commit or status.started)
        gauges = _gauges()
        gauges["last_commit_timestamp_seconds"].set(last_commit.timestamp(), self._tags)
        gauges["rows_todo"].set(status.rows_todo or 0, self._tags)
        gauges["rows_done"].set(status.rows, self._tags)
        if status.drift is not None:
            gauges["drift"].set(status.drift, self._tags)
        is_running = status.state in RUNNING_STATES and not lease_lost
        gauges["running"].set(int(is_running), self._tags)
        gauges["lease_lost"].set(int(lease_lost), self._tags)

    def _count(self, name: str, count: int, reason: str = "") -> None:
        """Raise a counter to a count of the run."""
        more = count - self._recorded.get((name, reason), 0)
        if more > 0:
            tags = self._tags | ({"reason": reason} if reason else {})
            _counters()[name].inc(more, tags)
            self._recorded[name, reason] = count
