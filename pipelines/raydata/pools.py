"""The model actors of a job or step as a pool, and the watch of a job."""

from __future__ import annotations

import warnings
from typing import Any, TypeAlias

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.raydata.placement import stage_cpus
from pipelines.raydata.watch import Watch, WatchHandle, Way

MapBatches: TypeAlias = dict[str, Any]
"""Options of Ray Data's `map_batches`, which has no type for them."""


def actor_options(
    device: str, actors: tuple[int, int | None], *, retries: int, one_by_one: bool = False
) -> MapBatches:
    """Return the options of a pool of from `actors[0]` to `actors[1]` model actors.

    `retries`: how often a task whose process ends is run again; `one_by_one`: whether an actor has
    one task at a time, where an actor on a GPU otherwise works at two.
    """
    from ray.data import ActorPoolStrategy

    # There is no other way to bound an actor's retries yet, and by default Ray repeats forever
    # what ends a process.
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
    on_cpu = device == "cpu"
    pool = ActorPoolStrategy(
        min_size=actors[0],
        max_size=actors[1],
        max_tasks_in_flight_per_actor=1 if one_by_one else None,
        enable_true_multi_threading=not on_cpu,
    )
    options: MapBatches = {
        "compute": pool,
        "num_cpus": stage_cpus(device)[1],
        "max_restarts": -1,
        "max_task_retries": retries,
        "max_concurrency": 1 if on_cpu or one_by_one else 2,
    }
    if not on_cpu:
        options["num_gpus"] = 1
    return options


def start_watch(
    ways: dict[str, Way] | None = None, fusions: dict[str, str] | None = None
) -> WatchHandle:
    """Start the watch of a job on the driver's node, where it ends with the driver.

    `ways`: how an earlier attempt computed attention on CPUs. `fusions`: how it ran layers
    on GPUs.
    """
    node = ray.get_runtime_context().get_node_id()
    place = NodeAffinitySchedulingStrategy(node, soft=True)
    watch = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Watch)
    return watch.options(scheduling_strategy=place).remote(ways, fusions)
