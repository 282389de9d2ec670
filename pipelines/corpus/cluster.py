"""The Ray cluster that a job runs on: found or started, its noise turned down, its capacity checked."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from pipelines.errors import UserError


def cluster_resources() -> dict[str, float]:
    """The resources of the Ray cluster that RAY_ADDRESS names, or else of one found or started on this machine."""
    if not ray.is_initialized():
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        with _stderr_closed():  # Ray reports in a line of its own that this level was set
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
    return ray.cluster_resources()


class Stopped(BaseException):
    """SIGTERM came: the scheduler, the cluster or a person wants the job to stop."""


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Within the block, SIGTERM raises Stopped, as Ctrl-C raises KeyboardInterrupt; Ray's own handler ends at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise Stopped

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _stderr_closed() -> Iterator[None]:
    """Drop what is written to the process's stderr, native code's too; exceptions are raised as ever."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def pool_size(asked: str, device: str) -> tuple[int, int]:
    """The least and the most actors that `asked` (N, MIN:MAX or auto) stands for.

    Raises UserError where the cluster has no room for the least: Ray would wait for it in silence.
    """
    unit = "GPU" if device == "cuda" else "CPU"
    room = int(cluster_resources().get(unit, 0))
    if asked == "auto":
        return max(room, 1), max(room, 1)
    low, _, high = asked.partition(":")
    if int(low) > room:
        raise UserError(f"--actors {asked} needs {low} {unit}s, one an actor; the Ray cluster has {room}")
    return int(low), int(high or low)  # an autoscaler may add what MAX needs
