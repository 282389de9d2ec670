"""The Ray cluster that a job runs on: found or started, and its output turned down."""

from __future__ import annotations

import importlib
import logging
import os
import secrets
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import ray
from ray._private.node import Node
from ray.exceptions import AuthenticationError
from ray.util import get_node_ip_address

from pipelines.errors import JobError, UserError
from pipelines.raydata.losses import losses
from pipelines.signals import call_when_stopped, kept_signals, replace_at_end

_ANSWERS_S = 10.0
"""How long a Ray has to answer before it counts as unreachable."""
_QUIET: dict[str, Any] = {
    "log_to_driver": False,
    "logging_level": logging.ERROR,
    "include_dashboard": False,
}
_KEEPS_IDLE_MS = 60_000
"""How long the Ray that is started here keeps a process without work.

Where more processes run than there are CPUs, actors included, Ray ends them after a second: a job's
next shard would wait until another one has imported Ray Data, which takes longer than the shard.
"""
_UNUSED = ("start_monitor", "start_log_monitor", "start_api_server")
"""What starts the processes that the Ray of one job does without, each of which takes as long to
import as Ray: the autoscaler, what sends the lines of workers to a terminal, and the server of the
dashboard.
"""


def cluster_resources() -> dict[str, float]:
    """Return the resources of the Ray cluster, connected first if need be.

    The cluster is the one that RAY_ADDRESS names, else one that runs on this machine, else one that
    is started here. Raises UserError for an address that means nothing, JobError for a Ray that
    does not answer or wants a token.
    """
    if not ray.is_initialized():
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        with _stderr_closed():  # Ray reports in a line of its own that this level was set
            address = _address_to_join()
            try:
                with kept_signals(), _imported_meanwhile("ray.data"):
                    if address is None:
                        _start()
                    else:
                        ray.init(**_QUIET)
                if started_here():
                    call_when_stopped(_end_agents)
                    replace_at_end(ray.shutdown, _end_at_once)
            except Exception as error:  # Ray raises plain ones where a node is too slow to start
                raise JobError(f"Ray cannot be used: {' '.join(str(error).split())}") from error
    resources: dict[str, float] = ray.cluster_resources()
    return resources


def _start() -> None:
    settings = _QUIET | {
        "_system_config": {"idle_worker_killing_time_threshold_ms": _KEEPS_IDLE_MS}
    }
    with _few_processes():
        try:
            ray.init(**settings)
        except OSError as error:
            if Path(error.filename or "").name not in (".ray", "auth_token"):
                raise
            # The token of a Ray that is started here, which Ray keeps in the home folder; this one
            # cannot be written.
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex()
            ray.init(**settings)


@contextmanager
def _few_processes() -> Iterator[None]:
    """Let a Ray that starts within the block go without the processes that a job does not use.

    `ray start` has options for that, `ray.init` has none. A Ray that starts them in another way
    than this one still starts them.
    """
    replaced = {name: getattr(Node, name) for name in _UNUSED if hasattr(Node, name)}
    for name in replaced:
        setattr(Node, name, _start_nothing)
    try:
        yield
    finally:
        for name, function in replaced.items():
            setattr(Node, name, function)


def _start_nothing(*_: object, **__: object) -> None:
    pass


@contextmanager
def _imported_meanwhile(module: str) -> Iterator[None]:
    """Import a module in a thread within the block, which mostly waits for other processes."""

    def load() -> None:
        with suppress(Exception):  # whoever needs it has the error
            importlib.import_module(module)

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def _end_at_once() -> None:
    """End the Ray of a command that has ended, where it was started here.

    Ray's own way takes two seconds: it waits for lines of workers, and for each of its processes.
    """
    if not started_here():
        ray.shutdown()
        return
    node = ray._private.worker._global_node
    assert node is not None
    with suppress(Exception):  # what did not fit into memory
        node.destroy_external_storage()
    _end_agents()


def _end_agents() -> None:
    """End what the raylet of this process has started; the raylet itself ends with this process.

    Ray's agents would look for it for a minute. To shut Ray down while its threads are at work
    could crash the process.
    """
    import psutil  # Ray brings it along

    for process in psutil.Process().children(recursive=True):
        if process.ppid() != os.getpid():
            process.kill()


def _address_to_join() -> str | None:
    """Return the address of the Ray that is to be joined, which answers; None to start one here.

    Ray itself tries in silence for two minutes.
    """
    from ray._private.services import canonicalize_bootstrap_address

    named = os.environ.get("RAY_ADDRESS", "")
    if "://" in named:
        raise UserError(
            f"RAY_ADDRESS {named} must be host:port of a head, auto or local; to run a job from "
            "another machine, submit it to the dashboard: ray job submit --address http://…:8265"
        )
    try:
        address = canonicalize_bootstrap_address(None)  # type: ignore[arg-type]
    except (ValueError, OSError) as error:
        raise UserError(
            f"RAY_ADDRESS {named} must be host:port of a head, auto or local: {error}"
        ) from error
    if address is None or not _answers(address, named):
        return None
    return address


def _answers(address: str, named: str) -> bool:
    """Tell whether a Ray answers at `address`, which is forgotten where an earlier one was killed.

    `named`: RAY_ADDRESS, or empty. Raises JobError where the Ray should be there, but is not.
    """
    from grpc import RpcError, StatusCode
    from ray._common.utils import reset_ray_address
    from ray._private.authentication import authentication_token_setup
    from ray._private.grpc_utils import init_grpc_channel
    from ray._private.services import canonicalize_bootstrap_address
    from ray.core.generated import gcs_service_pb2_grpc
    from ray.core.generated.gcs_service_pb2 import GetClusterIdRequest  # type: ignore[attr-defined]

    is_of_this_machine = named in ("", "auto")
    try:
        # As ray.init does: a token of this machine is not for a Ray that is named.
        if is_of_this_machine:
            authentication_token_setup.maybe_enable_token_auth_if_token_available(
                warn_if_disabled=False
            )
        with init_grpc_channel(address) as channel:
            head = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
            head.GetClusterId(GetClusterIdRequest(), timeout=_ANSWERS_S)
        return True
    except (RpcError, AuthenticationError) as error:
        cause = error
    status = None if isinstance(cause, AuthenticationError) else cause.code()
    if status in (None, StatusCode.UNAUTHENTICATED):
        raise JobError(
            f"the Ray at {address} wants its token: set RAY_AUTH_MODE=token, and put it into "
            "~/.ray/auth_token or RAY_AUTH_TOKEN (`ray get-auth-token` on its head prints it)"
        ) from cause
    if not named and status == StatusCode.UNAVAILABLE:
        # It was killed, and left its address here. A raylet that still runs here may name it, too;
        # then Ray would try it again.
        reset_ray_address()
        if canonicalize_bootstrap_address(None) is None:  # type: ignore[arg-type]
            return False
    whose = "RAY_ADDRESS names it"
    if is_of_this_machine:
        whose = "the last one that was started on this machine"
    raise JobError(
        f"no Ray answers at {address} ({whose}): start one there (ray start --head), name another, "
        "or set RAY_ADDRESS=local to start one for this job"
    ) from cause


def started_here() -> bool:
    """Tell whether this process has started the Ray that it uses."""
    node = ray._private.worker._global_node  # the one place that knows
    return node is not None and node.is_head()


@cache
def this_node() -> str:
    """Return how messages call the node of this process: by its name and address."""
    return f"{socket.gethostname()} ({get_node_ip_address()})"


def on_node(node: str | None) -> str:
    """Return what names a node at the end of a message: nothing where the cluster has had but one,
    or where it is not known.

    `node`: as `this_node` returns it there.
    """
    if not node or not ray.is_initialized() or len(ray.nodes()) < 2:  # lost ones among them
        return ""
    return f", on node {node}"


def describe_cluster() -> str:
    """Say which Ray the job runs on, and what it has: nodes, CPUs and GPUs."""
    resources = cluster_resources()
    where = "started here"
    if not started_here():
        where = f"joined at {ray.get_runtime_context().gcs_address}"
    counts = {
        "node": sum(node["Alive"] for node in ray.nodes()),
        "CPU": int(resources.get("CPU", 0)),
        "GPU": int(resources.get("GPU", 0)),
    }
    described = [
        f"{count:,} {unit if count == 1 else f'{unit}s'}" for unit, count in counts.items()
    ]
    return f"Ray {where}: {', '.join(described)}"


def log_ray_data_to_file() -> Path:
    """Send the errors that Ray Data logs to a file, not to the terminal; return its path."""
    # Its first import gives it handlers of its own; a program that has started Ray may not have it.
    importlib.import_module("ray.data")
    path = Path(tempfile.gettempdir(), f"modernbert-ray-{os.getpid()}.log")
    logger = logging.getLogger("ray.data")
    logger.setLevel(logging.ERROR)
    for handler in list(logger.handlers):
        is_file = isinstance(handler, logging.FileHandler)
        if isinstance(handler, logging.StreamHandler) and not is_file:
            logger.removeHandler(handler)
    files = [getattr(handler, "baseFilename", None) for handler in logger.handlers]
    if str(path) not in files:
        # The file is created when there is something to log.
        handler = logging.FileHandler(path, delay=True, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        handler.addFilter(losses)
        logger.addHandler(handler)
    return path


@contextmanager
def _stderr_closed() -> Iterator[None]:
    """Drop what the process, native code included, writes to stderr within the block."""
    with suppress(OSError, ValueError):  # nobody reads it any more
        sys.stderr.flush()
    try:
        stderr = os.dup(2)
    except OSError:  # the process has none
        yield
        return
    with open(os.devnull, "wb") as devnull:
        os.dup2(devnull.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
