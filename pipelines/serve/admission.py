"""Admission: places that requests share, so that neither large ones nor one client keep others out.

The places are for whatever is counted: documents, or bytes of bodies.
"""

from __future__ import annotations

import threading
from collections import Counter

_SMALL_SHARE = 4  # small requests have a _SMALL_SHARE-th more places


class _Pool:
    """Places of which a client holds at most half, rounded up; who has no name holds any."""

    def __init__(self, most: int):
        self.most = most
        self.used = 0
        self.held: Counter[str] = Counter()

    def has_room(self, client: str | None, count: int) -> bool:
        if client is not None and self.held[client] + count > half(self.most):
            return False
        return self.used + count <= self.most

    def add(self, client: str | None, count: int) -> None:
        self.used += count
        if client is not None:
            self.held[client] += count
            if not self.held[client]:
                del self.held[client]


class Admission:
    """`most` places for all requests, and a quarter more for those of at most `small`.

    Example:
        >>> admission = Admission(4096, small=16)
        >>> claim = admission.claim("key 0")
        >>> claim.resize(100)
        True
        >>> claim.release()
    """

    def __init__(self, most: int, small: int):
        self.most = most
        self.small = small
        # Small requests may use either, the others the first alone.
        self._pools = [_Pool(most), _Pool(most // _SMALL_SHARE)]
        self._lock = threading.Lock()

    @property
    def used(self) -> int:
        """The places that are taken."""
        return sum(pool.used for pool in self._pools)

    def most_of(self, client: str | None) -> int:
        """Return how many places a request of this client may hold."""
        return self.most if client is None else half(self.most)

    def claim(self, client: str | None) -> Claim:
        """Return the claim of a request, which holds nothing yet.

        `client`: its key or address; None: not known.
        """
        return Claim(self, client)


class Claim:
    """The places of a request; any thread may change them."""

    def __init__(self, admission: Admission, client: str | None):
        self._admission = admission
        self._client = client
        self._pool: _Pool | None = None
        self._count = 0

    @property
    def count(self) -> int:
        """The places that it holds."""
        return self._count

    def resize(self, count: int) -> bool:
        """Hold `count` places in all; False where they are taken, and then what was held stays."""
        admission = self._admission
        with admission._lock:
            # Its own places are free for it; where there is no room, it takes them back.
            if self._pool:
                self._pool.add(self._client, -self._count)
            is_small = count <= admission.small
            pools = admission._pools if is_small else admission._pools[:1]
            fitting = next((pool for pool in pools if pool.has_room(self._client, count)), None)
            if fitting:
                self._pool = fitting
                self._count = count
            if self._pool:
                self._pool.add(self._client, self._count)
        return fitting is not None

    def release(self) -> None:
        """Give the places back."""
        self.resize(0)


def half(most: int) -> int:
    """Return half of some places, rounded up."""
    return most - most // 2
