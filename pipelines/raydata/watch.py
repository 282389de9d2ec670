"""What the model actors of a job do, kept in an actor of its own: what one was at when its process
ended is known here.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import Any, TypeAlias

WatchHandle: TypeAlias = Any
"""Ray's handle of a Watch, whose methods Ray makes when the program runs."""
Way: TypeAlias = tuple[str, int]
"""How attention is computed on a CPU: torch_attention.CpuWay without torch."""
MAX_UNCOMMITTED = 2
"""The shards of an actor that are begun and not committed: so many are lost at most with a job."""
SHORT_S = 2.0
"""An actor may have more of them as long as it began the first less than so many seconds ago:
the commit of a shard that takes milliseconds would take longer than the shard.
"""
MAX_WAIT_S = 60.0
"""How long an actor waits for commits: one whose process or node is lost is never reported."""

# What an actor that asks for a shard is answered.
GO_ON = "go on"
WAIT = "wait"
STOP = "stop"


class Watch:
    """The starts of the model actors of a round, the shards that they are at, whether they stop.

    Each call names its round. One of a new round begins it; one of a past round, in which only
    actors that are about to end are, changes nothing. All begins again where the node of the watch
    is lost.
    """

    def __init__(
        self, ways: dict[str, Way] | None = None, fusions: dict[str, str] | None = None
    ) -> None:
        """`ways`, `fusions`: those of an earlier attempt of the job."""
        self._stops = False
        self._ways = dict(ways or {})
        self._fusions = dict(fusions or {})
        self._held_s = 0.0  # by the actors of past rounds
        self._held_since: dict[str, float] = {}
        self._begin_round(0)

    def _begin_round(self, number: int) -> None:
        self._held_s = self.held_s()
        self._held_since = {}
        self._round = number
        self._starts: Counter[str] = Counter()
        self._failing: dict[str, bool] = {}
        self._ready: set[str] = set()
        self._running: dict[str, str | None] = {}
        self._node_of: dict[str, str] = {}  # by actor, and by the shard that it is at
        self._begun: set[str] = set()
        self._uncommitted: dict[str, dict[str, float]] = {}  # by actor: when each was begun
        self._waits_since: dict[str, float] = {}

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

    def start(self, round_number: int, actor: str, node: str = "") -> int:
        """Note that an actor starts on a node; return how often it has since it was last ready."""
        if not self._is_current(round_number):
            return 1
        self._held_since.setdefault(actor, time.monotonic())
        self._node_of[actor] = node
        self._failing[actor] = False
        self._starts[actor] += 1
        self._ready.discard(actor)
        self._forget_uncommitted(actor)  # its last process may have ended in a shard's middle
        return self._starts[actor]

    def any_start(self, round_number: int) -> bool:
        """Tell whether any actor has had a place, and begun to start."""
        return self._is_current(round_number) and bool(self._starts)

    def started(self, round_number: int, actor: str) -> None:
        """Note that an actor is ready: its model has answered the probe."""
        if self._is_current(round_number):
            self._starts[actor] = 0
            self._failing[actor] = False
            self._ready.add(actor)

    def ready(self) -> int:
        """Return how many actors are ready; one that is gone for good counts to the round's end."""
        return len(self._ready)

    def held_s(self) -> float:
        """Return the seconds that actors have held their places, from when each began to start.

        One that is gone for good counts to its round's end.
        """
        now = time.monotonic()
        return self._held_s + sum(now - since for since in self._held_since.values())

    def start_failed(self, round_number: int, actor: str) -> bool:
        """Note that an actor fails to start again and again; tell whether all the others do."""
        if not self._is_current(round_number):
            return False
        self._failing[actor] = True
        return all(self._failing.values())

    def agree(self, processor: str, way: Way) -> Way:
        """Return how actors on this kind of processor compute attention: as their first one does,
        whose way this is.
        """
        return self._ways.setdefault(processor, way)

    def ways(self) -> dict[str, Way]:
        """Return how attention is computed on each kind of processor."""
        return self._ways

    def agree_on_fusions(self, gpu: str, fusions: str) -> str:
        """Return how actors on this kind of GPU run layers: as their first one does, whose
        `tiles.Fusions` these are.
        """
        return self._fusions.setdefault(gpu, fusions)

    def fusions(self) -> dict[str, str]:
        """Return how layers run on each kind of GPU."""
        return self._fusions

    def begin(self, round_number: int, actor: str, shard: str) -> str:
        """Note that an actor that is ready begins a shard, and let it GO_ON.

        It is to STOP where the job does, and to WAIT and ask again while MAX_UNCOMMITTED of its
        shards are not committed.
        """
        if self._stops:
            return STOP
        if not self._is_current(round_number):
            return GO_ON
        now = time.monotonic()
        if self._has_enough_uncommitted(actor, now):
            waits_since = self._waits_since.setdefault(actor, now)
            if now - waits_since < MAX_WAIT_S:
                return WAIT
            self._forget_uncommitted(actor)
        self._waits_since.pop(actor, None)
        self._uncommitted.setdefault(actor, {})[shard] = now
        self._running[shard] = None
        self._node_of[shard] = self._node_of.get(actor, "")
        self._begun.add(shard)
        return GO_ON

    def _has_enough_uncommitted(self, actor: str, now: float) -> bool:
        begun_at = self._uncommitted.get(actor, {})
        if len(begun_at) < MAX_UNCOMMITTED:
            return False
        return now - min(begun_at.values()) > SHORT_S

    def _forget_uncommitted(self, actor: str) -> None:
        self._uncommitted.pop(actor, None)
        self._waits_since.pop(actor, None)

    def committed(self, round_number: int, shard: str) -> None:
        """Note that the commit of a shard has ended, whatever came of it."""
        if self._is_current(round_number):
            for begun_at in self._uncommitted.values():
                begun_at.pop(shard, None)

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

    def interrupted(self, round_number: int) -> dict[str, tuple[str | None, str]]:
        """Return the shards in whose middle a process ended, each with the reason from `broke` and
        the node.
        """
        if not self._is_current(round_number):
            return {}
        # A watch that has begun again, its node being lost, may not have seen a shard begin.
        return {
            shard: (reason, self._node_of.get(shard, "")) for shard, reason in self._running.items()
        }
