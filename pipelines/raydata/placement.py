"""Where a job's actors go: how many, with which CPUs and GPUs, and the wait for places."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager

import ray
from ray.autoscaler._private.local.config import LOCAL_CLUSTER_NODE_TYPE
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.experimental.internal_kv import _internal_kv_get
from ray.util.placement_group import placement_group, remove_placement_group

from modernbert.config import ModernBertConfig
from pipelines.errors import JobError, UserError
from pipelines.inference.loading import device_here, gpu_is_here
from pipelines.raydata.cluster import cluster_resources, started_here
from pipelines.report.progress import format_duration, repeated
from pipelines.report.text import say

TOKEN_CPU_S = 2.0e-6
"""The CPU seconds that a token takes to be read, tokenised and committed.

The upper figure of benchmarks/results/feeding.json, of a busy machine; so is the next one.
"""
TOKEN_DETAILS_CPU_S = 3.5e-6
"""The same with the token's place in the text, which taggers and question answering need."""
GPU_TOKENS_S = 1.6e6
"""The most tokens a second on an H100: what ModernBERT-base reaches."""
GPU_FLOPS = 4.5e14
"""The most floating-point operations a second in linear layers there.

ModernBERT-large reaches that at 0.65 M tokens/s.
"""
COMMIT_CPUS = 0.001
"""The CPUs that a commit takes. With none, it could run on a head that has no CPUs for work."""
_STAGE_CPUS = 4
"""The CPUs a GPU from which on a task of each stage takes as many CPUs as it can use."""
_STATUS_S = 10.0
"""How long after its start a head may not yet have the status from which `is_fixed` reads."""
_JOIN_S = 60.0
"""How long the nodes of a cluster have to join its head."""
_STEADY_S = 3.0
"""How long no other node must join until all are there."""
_SAID_EVERY_S = 60.0
logger = logging.getLogger(__name__)


def device_of_actors(device: str) -> str:
    """Return the device of actors, "cpu" or "cuda", that "cpu", "cuda" or "auto" stands for.

    Starts or joins Ray only where this machine does not decide. Raises UserError for a GPU that
    neither this machine nor the cluster has, and where "auto" depends on what an autoscaler does.
    """
    if device == "cpu" or gpu_is_here():
        return device_here(device)
    joined = ray.is_initialized() or os.environ.get("RAY_ADDRESS", "local") not in ("", "local")
    if joined:
        wait_for_nodes()
    # "auto" without a cluster to join is about this machine, which has no GPU.
    if device == "auto" and not joined:
        return "cpu"
    if cluster_resources().get("GPU", 0) >= 1:
        return "cuda"
    may_start_gpus = not is_fixed()
    if device == "cuda" and not may_start_gpus:
        raise UserError("device cuda: there is no GPU here or in the Ray cluster; use cpu or auto")
    if device == "auto" and may_start_gpus:
        raise UserError(
            "device auto: the Ray cluster has no GPU now, but its autoscaler may start some; say "
            "cuda to wait for them, or cpu"
        )
    return "cuda" if device == "cuda" else "cpu"


def pool_size(actors: str, device: str) -> tuple[int, int | None]:
    """Return the least and the most actors that `actors` (N, MIN:MAX or auto) of a job stands for.

    auto takes what is free, at least one, and grows to the whole cluster; None stands for all that
    an autoscaler may add. Raises UserError if the cluster can never have room for the least.
    """
    wait_for_nodes()
    unit = _unit(device)
    there = int(cluster_resources().get(unit, 0))
    least = 1 if actors == "auto" else int(actors.partition(":")[0])
    if least > there and is_fixed():
        raise UserError(
            f"--actors {actors} needs {least} {unit}s, one an actor; {describe_nodes()}"
        )
    if actors != "auto":
        return least, int(actors.rpartition(":")[2])
    free = min(_free_places(device), there)
    return max(free, 1), there if is_fixed() else None


def wait_for_nodes() -> None:
    """Give the nodes of a cluster that has only a head without CPUs and GPUs time to join.

    A job that is submitted while a cluster starts would otherwise find no room, or no GPUs, and go
    without. Raises JobError if none joins.
    """

    def resources() -> list[float]:
        there = cluster_resources()
        return [there.get("CPU", 0), there.get("GPU", 0)]

    seen = resources()
    if any(seen) or not is_fixed():
        return
    until = time.monotonic() + _JOIN_S
    _say("waiting for nodes to join the Ray cluster, which has a head alone")
    while not any(seen) and time.monotonic() < until:
        time.sleep(0.5)
        seen = resources()
    if not any(seen):
        raise JobError(
            f"no node with CPUs or GPUs has joined within {format_duration(_JOIN_S)}: "
            f"{describe_nodes()}; start workers (ray start --address=…), or the head with "
            "--num-cpus"
        )
    while any(seen):
        time.sleep(_STEADY_S)
        before, seen = seen, resources()
        if seen == before:
            return


def is_fixed() -> bool:
    """Tell whether the cluster stays as it is: no autoscaler adds nodes.

    The monitor of a head without an autoscaler names the type of each node after the node; a head
    may also have none. A list of machines of one's own has all its nodes from the start.
    """
    if started_here():
        return True
    if is_autoscaler_v2():
        return False
    types = _node_types()
    until = time.monotonic() + _STATUS_S
    while not types and time.monotonic() < until:
        time.sleep(0.5)
        types = _node_types()
    return all(type_ in (f"node_{node}", LOCAL_CLUSTER_NODE_TYPE) for node, type_ in types.items())


def _node_types() -> dict[str, str]:
    """Return the type of each node, by its address, in the last status of the autoscaler."""
    status = json.loads(_internal_kv_get(b"__autoscaling_status") or b"{}")
    report = status.get("autoscaler_report") or {}
    return report.get("node_type_mapping") or {}


def _unit(device: str) -> str:
    """Return the resource of which an actor takes one."""
    return "GPU" if device == "cuda" else "CPU"


def _place(device: str) -> dict[str, float]:
    """Return what an actor takes."""
    cpus = stage_cpus(device)[1]
    return {"CPU": cpus} if device == "cpu" else {"GPU": 1, "CPU": cpus}


def _free_places(device: str) -> int:
    free = ray.available_resources()
    return min(int(free.get(unit, 0) / amount + 1e-6) for unit, amount in _place(device).items())


def wait_for_places(actors: int, device: str, wait_s: float) -> None:
    """Wait until `actors` actors have a place, all at once; JobError if not within `wait_s`.

    A line says what is waited for, and another one each minute. A placement group asks for the
    places: autoscalers see it, and unlike `request_resources` it ends with this process, so that no
    job that was killed keeps GPUs running.
    """
    if _free_places(device) >= actors:
        return
    unit = _unit(device)
    wanted = f"{actors:,} {_plural(actors, unit)}, one an actor"
    started = time.monotonic()
    waited = 0.0
    group = placement_group([_place(device)] * actors)
    try:
        # The first look does not wait, so that the line comes before the first minute.
        while not group.wait(min(_SAID_EVERY_S, wait_s - waited) if waited else 0):
            room = describe_room(unit)
            if waited >= wait_s:
                raise JobError(
                    f"{wanted}, were not free within {format_duration(wait_s)}: {room}; ask for "
                    "fewer with --actors, or wait longer with --wait-for-actors-s"
                )
            _say(f"waiting for {wanted}, up to {format_duration(wait_s - waited)}: {room}")
            waited = max(time.monotonic() - started, 1e-3)
    finally:
        remove_placement_group(group)


def waiting_said(is_waiting: Callable[[], bool], device: str) -> AbstractContextManager[None]:
    """Say once a minute within the block that no actor has a place yet, as long as `is_waiting`."""

    def say() -> bool:
        waiting = is_waiting()
        if waiting:
            _say(f"waiting for an actor to start: {describe_room(_unit(device))}")
        return waiting

    return repeated(_SAID_EVERY_S, say)


def describe_room(unit: str) -> str:
    """Say in half a sentence how many of `unit`, "CPU" or "GPU", the Ray cluster has."""
    free = int(ray.available_resources().get(unit, 0))
    there = int(ray.cluster_resources().get(unit, 0))
    room = f"the Ray cluster has {there:,} {_plural(there, unit)}, {free:,} of them free"
    nodes = _describe_kinds()
    return f"{room} ({nodes})" if nodes else room


def describe_nodes() -> str:
    """Say in half a sentence what the nodes of the Ray cluster have."""
    resources = ray.cluster_resources()
    cpus = int(resources.get("CPU", 0))
    gpus = int(resources.get("GPU", 0))
    room = (
        f"the Ray cluster has {cpus:,} {_plural(cpus, 'CPU')} and {gpus:,} {_plural(gpus, 'GPU')}"
    )
    nodes = _describe_kinds()
    return f"{room} ({nodes})" if nodes else room


def _describe_kinds() -> str:
    """Say how many nodes have how many CPUs and GPUs; nothing where there is one node."""
    kinds = Counter[tuple[int, int]]()
    for node in ray.nodes():
        if node["Alive"]:
            there = node["Resources"]
            kinds[int(there.get("CPU", 0)), int(there.get("GPU", 0))] += 1
    if kinds.total() < 2:
        return ""
    described = []
    for (cpus, gpus), count in sorted(kinds.items(), reverse=True):
        with_gpus = f" and {gpus} {_plural(gpus, 'GPU')}" if gpus else ""
        nodes = _plural(count, "node")
        described.append(f"{count:,} {nodes} of {cpus} {_plural(cpus, 'CPU')}{with_gpus}")
    return ", ".join(described)


def _plural(count: int, unit: str) -> str:
    return unit if count == 1 else f"{unit}s"


def _say(line: str) -> None:
    say(line, sys.stderr)


def cores_per_gpu(config: ModernBertConfig, details: bool) -> int:
    """Return the CPU cores that keep a GPU busy: one for its actor, the others for other stages.

    `config`: that of the model; `details`: whether the task needs the places of tokens in the text.
    """
    cpu_s_per_token = TOKEN_DETAILS_CPU_S if details else TOKEN_CPU_S
    return 1 + math.ceil(gpu_tokens_s(config) * cpu_s_per_token)


def gpu_tokens_s(config: ModernBertConfig) -> float:
    """Return about the tokens a second that a model takes on an H100."""
    return min(GPU_TOKENS_S, GPU_FLOPS / (2 * weights_of_layers(config)))


def weights_of_layers(config: ModernBertConfig) -> int:
    """Return the number of weights in the linear layers of the encoder."""
    hidden = config.hidden_size
    of_attention = 4 * hidden * hidden
    of_mlp = 3 * hidden * config.intermediate_size
    return config.num_hidden_layers * (of_attention + of_mlp)


def warn_of_few_cores(gpus: int, cores_each: int) -> None:
    """Warn where the cluster has fewer CPU cores than `gpus` GPUs want, an actor each."""
    cores = int(cluster_resources().get("CPU", 0))
    wanted = gpus * cores_each
    if cores < wanted:
        logger.warning(
            f"the Ray cluster has {cores} {_plural(cores, 'CPU')} for {gpus} "
            f"{_plural(gpus, 'GPU')}; to keep as many H100s busy with this model and task takes "
            f"{wanted}, {cores_each} each: GPUs may wait for texts to be read and tokenised. Add "
            "CPUs, or nodes without GPUs"
        )


def stage_cpus(device: str) -> tuple[float, float, float]:
    """Return the CPUs that a task takes: to read and tokenise, to predict (an actor), to commit.

    On CPUs an actor takes 0.9 of a core, so that the rest of each core is left for reading. Beside
    GPUs they take a core each; where the cluster has few cores for its GPUs they take less, so that
    actors, which hold theirs for the whole job, leave some to those that feed them. Commits take
    next to nothing, so that they never wait: an answer that is not committed may be lost.
    """
    if device == "cpu":
        return 0.09, 0.9, COMMIT_CPUS
    resources = cluster_resources()
    cpus = resources.get("CPU", 0)
    gpus = resources.get("GPU", 0)
    share = 1.0  # also where there are none yet: nodes may still be added
    if cpus and gpus:
        share = min(1.0, round(cpus / gpus / _STAGE_CPUS, 3))
    return share, share, COMMIT_CPUS
