"""What a run has committed so far, as the progress line, the status and the metrics show it."""

from __future__ import annotations

import time
from collections import Counter

from pipelines.output.shard_stats import Stats
from pipelines.output.status import ReasonClasses, timestamp


class Tally:
    """Counts of the shards that were committed. One thread adds to it, others read it."""

    def __init__(self) -> None:
        self.shards = 0
        self.rows = 0
        self.tokens = 0
        self.rejected = 0
        self.rejects: Counter[str] = Counter()
        """The rejected rows by reason."""
        self.last_commit: str | None = None
        """When, as ISO 8601 in UTC."""
        self._by_class: Counter[str] = Counter()
        self._classes = ReasonClasses()
        self._first: tuple[float, int, int] | None = None  # its time, and its rows and tokens

    def add(self, stats: Stats) -> Counter[str]:
        """Add a shard; return its rejected rows by the class of their reason."""
        self.shards += 1
        self.rows += stats["rows"]
        self.tokens += stats["tokens"]
        self.last_commit = timestamp()
        if self._first is None:
            self._first = (time.monotonic(), self.rows, self.tokens)
        by_class: Counter[str] = Counter()
        for reason, count in stats["rejects"].items():
            by_class[self._classes.name(reason)] += count
        self.rejected += by_class.total()
        self.rejects.update(stats["rejects"])
        self._by_class.update(by_class)
        return by_class

    def rejects_by_class(self) -> dict[str, int]:
        """Return the rejected rows by the class of their reason, the most frequent first."""
        return dict(self._by_class.copy().most_common())

    def rates(self) -> tuple[float, float] | None:
        """Return rows and tokens a second since the first commit; None before the second one.

        What comes before the first commit is the start.
        """
        if self._first is None or self.shards < 2:
            return None
        started_at, rows, tokens = self._first
        seconds = time.monotonic() - started_at
        if not seconds:
            return None
        return round((self.rows - rows) / seconds, 2), round((self.tokens - tokens) / seconds, 2)
