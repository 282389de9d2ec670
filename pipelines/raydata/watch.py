"""What the model actors of a job do, kept outside their processes: what one was at when it ended is
known here.
"""

from __future__ import annotations

from collections import Counter
from typing import Any


class Watch:
    """The starts of the model actors of a round, the shards that they are at, and how much all have
    answered.

    All of it begins again where the node of the watch is lost.
    """

    def __init__(self) -> None:
        self._rows = self._tokens = 0
        self._begin_round(0)

    def _begin_round(self, number: int) -> None:
        self._round = number
        self._starts: Counter[str] = Counter()
        self._failing: dict[str, bool] = {}
        self._running: dict[str, str | None] = {}

    def call(self, round_number: int, method: str, *arguments: Any) -> Any:
        """Call a method for the last round; for an earlier one, which only actors about to end are
        in, do nothing.
        """
        if round_number > self._round:
            self._begin_round(round_number)
        return getattr(self, method)(*arguments) if round_number == self._round else None

    def add(self, rows: int, tokens: int) -> None:
        """Count rows and tokens that an actor has answered, in whatever round."""
        self._rows += rows
        self._tokens += tokens

    def counts(self) -> tuple[int, int]:
        """Return the rows and tokens that were answered in all rounds."""
        return self._rows, self._tokens

    def start(self, actor: str) -> int:
        """Note that an actor starts, and return how often it has begun to since it was last
        ready.
        """
        self._failing[actor] = False
        self._starts[actor] += 1
        return self._starts[actor]

    def any_start(self) -> bool:
        """Tell whether any actor has had a place, and begun to start."""
        return bool(self._starts)

    def started(self, actor: str) -> None:
        """Note that an actor is ready: its model has answered the probe."""
        self._starts[actor], self._failing[actor] = 0, False

    def start_failed(self, actor: str) -> bool:
        """Note that an actor has failed to start again and again, and tell whether all the others
        have, too.
        """
        self._failing[actor] = True
        return all(self._failing.values())

    def begin(self, shard: str) -> None:
        """Note that an actor that is ready begins a shard."""
        self._running[shard] = None

    def end(self, shard: str) -> None:
        """Note that the actor has come to the end of the shard: an answer or an error."""
        self._running.pop(shard, None)

    def broke(self, shard: str, reason: str) -> None:
        """Note why a shard has no answer, before its actor is probed: a process that ends then was
        broken before.
        """
        self._running[shard] = reason

    def interrupted(self) -> dict[str, str | None]:
        """Return the shards in whose middle a process ended, with the reason that `broke` has
        noted, if any.
        """
        return self._running
