"""What the model actors of a job do, kept in an actor of its own: what one was at when its process
ended is known here.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, TypeAlias

WatchHandle: TypeAlias = Any
"""Ray's handle of a Watch, whose methods Ray makes when the program runs."""


class Watch:
    """The starts of the model actors of a round, the shards that they are at, whether they stop.

    Each call names its round. One of a new round begins it; one of a past round, in which only
    actors that are about to end are, changes nothing. All begins again where the node of the watch
    is lost.
    """

    def __init__(self) -> None:
        self._stops = False
        self._begin_round(0)

    def _begin_round(self, number: int) -> None:
        self._round = number
        self._starts: Counter[str] = Counter()
        self._failing: dict[str, bool] = {}
        self._running: dict[str, str | None] = {}
        self._begun: set[str] = set()

    def _is_current(self, round_number: int) -> bool:
        if round_number > self._round:
            self._begin_round(round_number)
        return round_number == self._round

    def stop(self) -> None:
        """Let no actor begin another shard."""
        self._stops = True

    def is_stopping(self) -> bool:
        """Tell whether the job stops."""
        return self._stops

    def start(self, round_number: int, actor: str) -> int:
        """Note that an actor starts; return how often it has since it was last ready."""
        if not self._is_current(round_number):
            return 1
        self._failing[actor] = False
        self._starts[actor] += 1
        return self._starts[actor]

    def any_start(self, round_number: int) -> bool:
        """Tell whether any actor has had a place, and begun to start."""
        return self._is_current(round_number) and bool(self._starts)

    def started(self, round_number: int, actor: str) -> None:
        """Note that an actor is ready: its model has answered the probe."""
        if self._is_current(round_number):
            self._starts[actor] = 0
            self._failing[actor] = False

    def start_failed(self, round_number: int, actor: str) -> bool:
        """Note that an actor fails to start again and again; tell whether all the others do."""
        if not self._is_current(round_number):
            return False
        self._failing[actor] = True
        return all(self._failing.values())

    def begin(self, round_number: int, shard: str) -> bool:
        """Note that an actor that is ready begins a shard; False if the job stops instead."""
        if self._stops:
            return False
        if self._is_current(round_number):
            self._running[shard] = None
            self._begun.add(shard)
        return True

    def begun(self, round_number: int) -> set[str]:
        """Return the shards that actors have begun."""
        return self._begun if self._is_current(round_number) else set()

    def end(self, round_number: int, shard: str) -> None:
        """Note that the actor has come to the end of the shard: an answer or an error."""
        if self._is_current(round_number):
            self._running.pop(shard, None)

    def broke(self, round_number: int, shard: str, reason: str) -> None:
        """Note why a shard has no answer, before its actor is probed.

        A process that ends during the probe was broken before.
        """
        if self._is_current(round_number):
            self._running[shard] = reason

    def interrupted(self, round_number: int) -> dict[str, str | None]:
        """Return the shards in whose middle a process ended, with the reasons from `broke`."""
        return self._running if self._is_current(round_number) else {}
