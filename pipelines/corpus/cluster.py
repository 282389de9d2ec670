"""The Ray cluster that a job runs on: found or started, its output turned down, its capacity checked."""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from modernbert.config import ModernBertConfig
from pipelines.errors import UserError

TOKEN_CPU_S, TOKEN_DETAILS_CPU_S = 2.0e-6, 3.5e-6
"""The CPU seconds that a token takes to be read, tokenised and committed, without and with its place in the text, which
taggers and question answering need: the upper figures of benchmarks/results/feeding.json, of a busy machine."""
GPU_TOKENS_S, GPU_FLOPS = 1.6e6, 4.5e14
"""What an H100 does at most: tokens a second, which ModernBERT-base reaches, and floating-point operations a second in
linear layers, which large reaches at 0.65 M tokens/s."""
_STAGE_CPUS = 4
"""The CPUs a GPU from which on a task of each stage takes as many CPUs as it can use."""
logger = logging.getLogger(__name__)


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


def cores_per_gpu(config: ModernBertConfig, details: bool) -> int:
    """Return the CPU cores that keep a GPU busy with a model: one for its actor, the others for the other stages.

    `details`: whether the task needs the places of tokens in the text.
    """
    hidden, inner = config.hidden_size, config.intermediate_size
    weights = config.num_hidden_layers * (4 * hidden * hidden + 3 * hidden * inner)
    tokens_s = min(GPU_TOKENS_S, GPU_FLOPS / (2 * weights))
    return 1 + math.ceil(tokens_s * (TOKEN_DETAILS_CPU_S if details else TOKEN_CPU_S))


def warn_of_few_cores(gpus: int, cores_each: int) -> None:
    """Warn where the cluster has fewer CPU cores than `gpus` GPUs want, an actor each."""
    cores = int(cluster_resources().get("CPU", 0))
    if cores < gpus * cores_each:
        logger.warning(
            "the Ray cluster has %d CPU%s for %d GPU%s; to keep as many H100s busy with this model and task takes "
            "%d, %d each: GPUs may wait for texts to be read and tokenised. Add CPUs, or nodes without GPUs",
            *(cores, "" if cores == 1 else "s", gpus, "" if gpus == 1 else "s", gpus * cores_each, cores_each),
        )


def stage_cpus(device: str) -> tuple[float, float, float]:
    """Return the CPUs that a task takes: to read and tokenise, to predict (an actor), to commit.

    On CPUs an actor takes 0.9 of a core, so that the rest of each core is left for reading and commits, which are
    quick. Beside GPUs they take a core each; where the cluster has few cores for its GPUs they take less, so that
    actors, which hold theirs for the whole job, leave some to those that feed them.
    """
    if device == "cpu":
        return 0.1, 0.9, 0.05
    cpus, gpus = (cluster_resources().get(unit, 0) for unit in ("CPU", "GPU"))
    share = min(1.0, round(cpus / gpus / _STAGE_CPUS, 3)) if cpus and gpus else 1.0  # nodes may still be added
    return share, share, share / 2
