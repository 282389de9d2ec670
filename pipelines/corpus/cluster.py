"""The Ray cluster that a job runs on: found or started, its output turned down, its capacity checked."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from pipelines.errors import UserError


def cluster_resources() -> dict[str, float]:
    """Return the resources of the Ray cluster, connected first if need be.

    The cluster is the one that RAY_ADDRESS names, else one that runs on this machine, else one that is started here.
    """
    if not ray.is_initialized():
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        with _stderr_closed():  # Ray reports in a line of its own that this level was set
            ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    return ray.cluster_resources()


def describe_cluster() -> str:
    """Say which Ray the job runs on: started here, or joined at an address, with its nodes, CPUs and GPUs."""
    resources = cluster_resources()
    node = ray._private.worker._global_node  # the one place that knows whether this process has started Ray
    started = node is not None and node.is_head()
    where = "started here" if started else f"joined at {ray.get_runtime_context().gcs_address}"
    nodes = sum(each["Alive"] for each in ray.nodes())
    counts = [(nodes, "node"), (int(resources.get("CPU", 0)), "CPU"), (int(resources.get("GPU", 0)), "GPU")]
    return f"Ray {where}: " + ", ".join(f"{count:,} {unit}{'' if count == 1 else 's'}" for count, unit in counts)


def log_ray_data_to_file() -> Path:
    """Send the errors and tracebacks that Ray Data logs to a file, not to the terminal, and return its path."""
    path = Path(tempfile.gettempdir(), f"modernbert-ray-{os.getpid()}.log")
    logger = logging.getLogger("ray.data")
    logger.setLevel(logging.ERROR)
    for handler in list(logger.handlers):
        if isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler):
            logger.removeHandler(handler)
    if not any(getattr(handler, "baseFilename", None) == str(path) for handler in logger.handlers):
        handler = logging.FileHandler(path, delay=True, encoding="utf-8")  # created when there is something to log
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(handler)
    return path


class Stopped(BaseException):
    """SIGTERM came: the scheduler, the cluster or a person wants the job to stop."""


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Let SIGTERM raise Stopped within the block, as Ctrl-C raises KeyboardInterrupt; Ray's own handler just exits."""
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
    """Drop what the process, native code included, writes to stderr within the block; exceptions are raised as ever."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with open(os.devnull, "wb") as devnull:
        os.dup2(devnull.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def pool_size(actors: str, device: str) -> tuple[int, int]:
    """Return the least and the most actors that `actors` (N, MIN:MAX or auto) stands for.

    Raises UserError if the cluster has no room for the least: Ray would wait for it in silence.
    """
    unit = "GPU" if device == "cuda" else "CPU"
    available = int(cluster_resources().get(unit, 0))
    if actors == "auto":
        return max(available, 1), max(available, 1)
    low, _, high = actors.partition(":")
    if int(low) > available:
        raise UserError(f"--actors {actors} needs {low} {unit}s, one an actor; the Ray cluster has {available}")
    return int(low), int(high or low)  # an autoscaler may add what MAX needs
