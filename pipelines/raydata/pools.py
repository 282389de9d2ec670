"""Pools of model actors, and actors on the node of the driver."""

from __future__ import annotations

import warnings
from typing import Any

import ray
from ray.data import ActorPoolStrategy
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.raydata.placement import stage_cpus


def actor_options(
    device: str, actors: tuple[int, int | None], *, retries: int, one_by_one: bool = False
) -> dict[str, Any]:
    """Return the options of `map_batches` for a pool of from `actors[0]` to `actors[1]` model
    actors.

    `retries`: how often a task whose process ends is run again; `one_by_one`: whether an actor has
    one task at a time, where an actor on a GPU otherwise works at two.
    """
    # No other way to bound an actor's retries yet, and the default is to repeat for ever what ends
    # a process.
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
    on_cpu = device == "cpu"
    pool = ActorPoolStrategy(
        min_size=actors[0],
        max_size=actors[1],
        max_tasks_in_flight_per_actor=1 if one_by_one else None,
        enable_true_multi_threading=not on_cpu,
    )
    options = {
        "compute": pool,
        "num_cpus": stage_cpus(device)[1],
        "max_restarts": -1,
        "max_task_retries": retries,
    }
    return (
        options
        | {"max_concurrency": 1 if on_cpu or one_by_one else 2}
        | ({} if on_cpu else {"num_gpus": 1})
    )


def start_here(actor: Any) -> Any:
    """Start an actor on the driver's node, which ends with the driver and not before it."""
    node = ray.get_runtime_context().get_node_id()
    return actor.options(
        scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True)
    ).remote()
