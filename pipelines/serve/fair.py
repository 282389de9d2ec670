"""FairQueue: clients take turns, fair in tokens; Speed: how long so many tokens take.

Both are pure: whoever shares them has the lock and the clock.

What is counted is tokens in the batcher, and bytes of texts before it.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, TypeVar

_Item = TypeVar("_Item")
_MEMORY_S = 10.0  # after which what was measured counts a third
_LEAST_MEASURED_S = 0.1  # of work, below which the speed is not known
PROMISED = 0.8
"""The share of the time left that is promised to requests: more clients may come."""


class OverloadedError(Exception):
    """A request that cannot be answered in time.

    Args:
        wait_s: what it would take, with those before it.
        retry_after_s: the seconds after which it could be, if no others come.
    """

    def __init__(self, wait_s: float, retry_after_s: float):
        super().__init__(f"it would take {wait_s:.1f} s")
        self.wait_s = wait_s
        self.retry_after_s = retry_after_s


@dataclass(order=True)
class Entry(Generic[_Item]):
    """What a client waits for."""

    rank: int
    """Among the entries of its client, the smallest first."""
    number: int
    client: str | None = field(compare=False)
    item: _Item = field(compare=False)
    cost: int = field(compare=False)
    """What is left of it."""


class _Client(Generic[_Item]):
    """A client in the round: its entries in order, and what it may still take in this turn."""

    def __init__(self, name: str | None, credit: int):
        self.name = name
        self.credit = credit  # below 0: it has taken more, and turns pass it over until it is paid
        self.served = 0
        self.backlog = 0
        self.entries: list[Entry[_Item]] = []


class FairQueue(Generic[_Item]):
    """Deficit round robin by client (Shreedhar and Varghese 1995).

    A turn gives a client `quantum`, and lasts until that is taken; what an entry takes beyond it is
    missing in the client's next turns. So of two clients for whom something waits all the time,
    neither gets more than 2 * (quantum + the largest take) more than the other, however many
    entries they have (and what fills the room that others leave is made up for later), and
    a client waits for one turn of each other client at most.

    Of a client's entries a short one comes before a longer one, but not for ever: an entry comes
    as if it were done by what the client has been served when it came, and its own cost on top.
    """

    def __init__(self, quantum: int):
        self.quantum = quantum
        self._round: list[_Client[_Item]] = []  # in the order of their turns
        self._clients: dict[str | None, _Client[_Item]] = {}
        self._numbers = count()
        # Of each client what was passed over in its turn, which comes before all turns.
        self._due: dict[str | None, Entry[_Item]] = {}
        self._size = 0
        self.backlog = 0
        """What is left of all entries."""

    def __len__(self) -> int:
        return self._size

    def push(self, client: str | None, item: _Item, cost: int, *, first: bool = False) -> int:
        """Add an entry and return its number; `first`: before all others, once."""
        known = self._clients.get(client)
        if known is None:
            known = _Client(client, self.quantum)
            self._clients[client] = known
            self._round.append(known)
        entry = Entry(known.served + cost, next(self._numbers), client, item, cost)
        insort(known.entries, entry)
        known.backlog += cost
        self.backlog += cost
        self._size += 1
        if first:
            self._due.pop(client, None)
            self._due = {client: entry, **self._due}
        return entry.number

    def turns(self) -> Iterator[Entry[_Item]]:
        """Yield entries in turn, again and again, until each that is left has been passed over.

        Whoever iterates may `take` of an entry or `remove` it; one of which nothing is taken is
        passed over and keeps its place, and the first one of each client comes before all turns
        when there are some again.
        """
        for entry in list(self._due.values()):
            if self._due.get(entry.client) is entry:
                yield entry
        passed_over = 0
        # Those of each client are its first ones.
        passed_by: dict[str | None, int] = {}
        place = 0
        while passed_over < self._size:
            client = self._round[place]
            passed = passed_by.get(client.name, 0)
            if passed_over and passed == len(client.entries):
                place += 1
                continue
            # While something was passed over whose turn it is, nobody has another turn: what room
            # it leaves is taken at the expense of turns to come.
            if not passed_over and (client.credit <= 0 or not client.entries):
                self._end_turn(place)
                continue
            entry = client.entries[passed]
            size = self._size
            cost = entry.cost
            yield entry
            if self._size == size and entry.cost == cost:
                passed_by[client.name] = passed + 1
                passed_over += 1
                if client.credit > 0:
                    self._due.setdefault(client.name, entry)
        if not self._size:
            self._forget_all()

    def credit(self, entry: Entry[_Item]) -> int:
        """Return what its client may take in this turn: as much as a turn gives, where it comes
        before all turns.
        """
        credit = self._clients[entry.client].credit
        return credit if credit > 0 else self.quantum

    def take(self, entry: Entry[_Item], cost: int) -> None:
        """Take `cost` of an entry, at its client's expense; an entry of which nothing is left is
        removed.
        """
        client = self._clients[entry.client]
        client.credit -= cost
        client.served += cost
        client.backlog -= cost
        self.backlog -= cost
        entry.cost -= cost
        self._clear_due(entry)
        if entry.cost <= 0:
            self.remove(entry)

    def charge(self, client: str | None, cost: int) -> None:
        """Take `cost` off a client for what is not in the queue."""
        known = self._clients.get(client)
        if known is not None:
            known.credit -= cost
            known.served += cost

    def find(self, client: str | None, number: int) -> Entry[_Item] | None:
        """Return the entry with a number, if it is in the queue."""
        known = self._clients.get(client)
        entries = known.entries if known else []
        return next((entry for entry in entries if entry.number == number), None)

    def remove(self, entry: Entry[_Item]) -> None:
        """Remove an entry that is in the queue."""
        client = self._clients[entry.client]
        client.entries.remove(entry)
        client.backlog -= entry.cost
        self.backlog -= entry.cost
        self._size -= 1
        self._clear_due(entry)

    def cost_until(self, client: str | None, cost: int) -> int:
        """Return what is taken in all until an entry of `client` that has `cost` left, and comes
        now, is done, if no others come.
        """
        if not self._size:
            return cost
        own = cost
        known = self._clients.get(client)
        if known is not None:
            rank = known.served + cost
            own += sum(entry.cost for entry in known.entries if entry.rank <= rank)
        return own + self._taken_by_others(client, own)

    def cost_of_next(self, entry: Entry[_Item]) -> int:
        """Return what is taken in all until an entry is done that is its client's next one."""
        # Most entries are short, for which the sum over all clients is not needed.
        most = entry.cost * len(self._round)
        if most <= self.quantum:
            return most
        return entry.cost + self._taken_by_others(entry.client, entry.cost)

    def _taken_by_others(self, client: str | None, own: int) -> int:
        """Return what other clients take until `client` has taken `own`."""
        return sum(min(other.backlog, own) for other in self._round if other.name != client)

    def _end_turn(self, place: int) -> None:
        """Put a client behind all others with the credit of its next turn; one for which nothing
        waits leaves, once it has paid for what it has taken.
        """
        client = self._round.pop(place)
        if not client.entries and client.credit >= 0:
            del self._clients[client.name]
            return
        client.credit += self.quantum
        self._round.append(client)

    def _clear_due(self, entry: Entry[_Item]) -> None:
        if self._due.get(entry.client) is entry:
            del self._due[entry.client]

    def _forget_all(self) -> None:
        self._round.clear()
        self._clients.clear()


class Speed:
    """How fast work goes of late, where so much waits that it goes as fast as it can."""

    def __init__(self) -> None:
        self._cost = 0.0
        self._seconds = 0.0
        self._latest = 0.0

    def record(self, cost: int, began: float, ended: float) -> None:
        """Add work of `cost`, from `began` to `ended`; several threads may have some at a time."""
        # What overlaps with the work that ended before counts once.
        seconds = ended - max(began, self._latest)
        kept = self._kept(ended)
        self._cost = self._cost * kept + cost
        self._seconds = self._seconds * kept + max(seconds, 0.0)
        self._latest = ended

    def seconds(self, cost: int, now: float) -> float:
        """Return how long `cost` takes; 0 where that is not known, or not any more."""
        if self._seconds * self._kept(now) < _LEAST_MEASURED_S or self._cost == 0:
            return 0.0
        return cost * self._seconds / self._cost

    def check(self, cost: int, now: float, deadline: float, promised: float = PROMISED) -> None:
        """Raise OverloadedError where `cost` takes more than the share `promised` of the time that
        is left.
        """
        wait_s = self.seconds(cost, now)
        most_s = promised * (deadline - now)
        if wait_s > most_s:
            raise OverloadedError(wait_s, wait_s - most_s)

    def _kept(self, now: float) -> float:
        return math.exp(min(self._latest - now, 0.0) / _MEMORY_S)
