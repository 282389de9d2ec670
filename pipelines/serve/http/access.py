"""What a request has asked of the models, and the log of requests: no texts, no keys."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from dataclasses import dataclass

_log = logging.getLogger(__name__)


@dataclass
class Usage:
    """What the models have done for a request."""

    model: str | None = None
    documents: int = 0
    tokens: int = 0


USAGE: ContextVar[Usage | None] = ContextVar("usage", default=None)
"""What has been done for the request that is being answered."""


def start_log() -> None:
    """Let the log of requests be written: on stderr, unless a handler of logging is there."""
    _log.setLevel(logging.INFO)
    if not _log.hasHandlers():
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        _log.addHandler(handler)


def log_request(
    request_id: str, client: str | None, method: str, route: str, status: int, seconds: float
) -> None:
    """Log a request that is over as a line of JSON, where anybody wants it.

    Args:
        request_id: its id.
        client: the name of its key, or its address.
        method: of HTTP.
        route: the path of its route; "none" where it has none, since its own path may be a text.
        status: of its response.
        seconds: from its head to the end of its response.
    """
    if not _log.isEnabledFor(logging.INFO):
        return
    usage = USAGE.get() or Usage()
    line = {
        "id": request_id,
        "client": client,
        "method": method,
        "route": route,
        "status": status,
        "ms": round(seconds * 1e3, 1),
        "model": usage.model,
        "documents": usage.documents,
        "tokens": usage.tokens,
    }
    _log.info("%s", json.dumps(line))
