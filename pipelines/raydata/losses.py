"""What a job has lost of its processes and nodes, as Ray Data logs it: counted by the reason."""

from __future__ import annotations

import logging
import re
import threading
from collections import Counter

import ray
from ray.exceptions import RayError

_ADDRESS = re.compile(r"\b(?:ip|IP): ?(\d+(?:\.\d+){3}|[\da-f]*(?::[\da-f]*){2,})")
_REASONS = {
    "low on memory": "a process was ended, since its node had too little memory",
    "OutOfMemory": "a process was ended, since its node had too little memory",
    "node has died": "a node was lost",
    "NodeDied": "a node was lost",
    "ActorDied": "a process ended, killed or by a fault of its own",
    "ActorUnavailable": "a process ended, killed or by a fault of its own",
    "WorkerCrashed": "a process ended, killed or by a fault of its own",
}
"""By what the type or the text of an error of Ray's holds; the first that fits."""


class Losses(logging.Filter):
    """Counts the losses that are logged, and lets the first one of each reason into the log."""

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._addresses: dict[str, str] = {}

    def clear(self) -> None:
        """Begin anew, for another job of this process."""
        with self._lock:
            self._counts.clear()
            self._addresses.clear()

    def filter(self, record: logging.LogRecord) -> bool:
        """Count a record if it tells of a loss; tell whether it is to be logged."""
        error = record.exc_info[1] if record.exc_info else None
        reason = _reason(error) if isinstance(error, RayError) else None
        if reason is None:
            return True
        address = _ADDRESS.search(str(error))
        with self._lock:
            self._counts[reason] += 1
            if address:
                self._addresses.setdefault(reason, address[1])
            return self._counts[reason] == 1

    def described(self, elsewhere: str | None = None) -> list[tuple[int, str]]:
        """Return how often something was lost, and the reason with the node of the first time.

        `elsewhere`: what names a node at the end of a message (cluster.on_node), for the reasons
        whose errors name none.
        """
        with self._lock:
            return [
                (count, reason + (_example(self._addresses.get(reason)) or elsewhere or ""))
                for reason, count in self._counts.most_common()
            ]


def _reason(error: RayError) -> str | None:
    text = f"{type(error).__name__} {error}"
    return next((reason for part, reason in _REASONS.items() if part in text), None)


def _example(address: str | None) -> str:
    """Name the node of the first loss, where the cluster has had several."""
    nodes = ray.nodes() if ray.is_initialized() else []
    if address is None or len(nodes) < 2:
        return ""
    names = {node["NodeManagerAddress"]: node["NodeManagerHostname"] for node in nodes}
    return f", on node {names.get(address, 'unknown')} ({address})"


losses = Losses()
"""Those of the job that this process runs."""
