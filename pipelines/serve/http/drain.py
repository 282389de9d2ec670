"""The requests under way in an application, which ends once they are answered."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.serve.http.errors import ApiError

_LOOKS_EVERY_S = 0.05


class UnderWay:
    """Counts the requests under way, and refuses new ones once it drains."""

    def __init__(self) -> None:
        self.count = 0
        self.is_draining = False

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count a request as under way until the end of the block."""
        self.count += 1
        try:
            yield
        finally:
            self.count -= 1

    def check(self) -> None:
        """Raise ApiError for a request that comes after the end has begun."""
        if self.is_draining:
            raise ApiError("ending", "the service ends; ask another one, or later", retry_after_s=1)

    async def drain(self) -> None:
        """Take no new request from now on, and wait until those under way are answered."""
        self.is_draining = True
        while self.count:
            await asyncio.sleep(_LOOKS_EVERY_S)
