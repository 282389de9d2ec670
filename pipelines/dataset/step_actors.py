"""The actors of a step of a Dataset: how many are asked for, what each reserves, and what is said
while none starts.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import ray
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator

from pipelines.errors import UserError
from pipelines.raydata.cluster import cluster_resources
from pipelines.raydata.placement import describe_nodes, is_fixed, stage_cpus, wait_for_nodes

_STEPS_AT_ONCE = 8
"""So many steps of one pipeline, with the least actors of each, always have room beside a task that
reads.
"""
_GRANULARITY = 10_000
"""Ray counts CPUs and GPUs in ten-thousandths."""
_SAID_EVERY_S = 60.0
_ALLOWED = "a number from 1 on, (MIN, MAX) or 'auto'"
logger = logging.getLogger(__name__)


class Actors(NamedTuple):
    """How many model actors a step has."""

    least: int
    most: int | None
    """None for as many as the cluster has room for."""


def parse_actors(value: int | str | Sequence[int], name: str) -> Actors:
    """Return the actors that `value` stands for, whose argument is called `name`.

    A number is the most, as in ray.data.llm: the pool begins with one actor, and grows where there
    is room. (MIN, MAX) or "MIN:MAX" begins with MIN; "auto" stands for (1, all that there is room
    for). Raises ValueError for anything else.
    """
    if isinstance(value, str) and value == "auto":
        return Actors(1, None)
    parts: Sequence[object] = [value]
    if isinstance(value, str):
        parts = value.split(":")
    elif isinstance(value, list | tuple):
        parts = value
    counts = [count for count in map(_count, parts) if count is not None]
    if len(counts) < len(parts) or len(counts) not in (1, 2):
        raise ValueError(f"{name} {value!r} must be {_ALLOWED}")
    least, most = (1, *counts)[-2:]
    if least > most:
        raise ValueError(
            f"{name} {value!r}: MIN {least} is above MAX {most}; {name} must be {_ALLOWED}"
        )
    return Actors(least, most)


def _count(value: object) -> int | None:
    """Return a number from 1 on; None for anything else."""
    if isinstance(value, str) and value.isascii() and value.isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        return None
    return int(value)


def step_pool(actors: Actors, device: str) -> tuple[Actors, dict[str, float]]:
    """Return the actors of a step, and what each reserves: `num_cpus`, and on GPUs `num_gpus`.

    Ray starts the least actors of all steps of a pipeline at once, whatever is free, and they hold
    what they reserve until their step is done; Ray Data starts more of them as it finds room.
    Reading takes a whole CPU. So that several steps run on a cluster that stays as it is, actors
    reserve less where cores are few: the least actors of _STEPS_AT_ONCE steps leave a CPU of the
    largest node. They share a GPU where there is one. To an autoscaler they show what they really
    take.

    Raises UserError if the cluster can never have so many actors.
    """
    wait_for_nodes()
    unit = "GPU" if device == "cuda" else "CPU"
    reserved = {"num_cpus": stage_cpus(device)[1]}
    if unit == "GPU":
        reserved["num_gpus"] = 1.0
    if not is_fixed():
        return actors, reserved
    there = int(cluster_resources().get(unit, 0))
    if actors.least > there:
        raise UserError(
            f"{actors.least:,} actors need a {unit} each; {describe_nodes()}: give at most "
            f"{there:,}"
        )
    most = there if actors.most is None else min(actors.most, there)
    alive = [node for node in ray.nodes() if node["Alive"]]
    largest = max(node["Resources"].get("CPU", 0) for node in alive)
    room = max(largest - 1, 0) / (_STEPS_AT_ONCE * actors.least)
    room = math.floor(room * _GRANULARITY) / _GRANULARITY
    reserved["num_cpus"] = min(reserved["num_cpus"], room)
    if unit == "GPU" and there == 1:
        reserved["num_gpus"] = 1 / _STEPS_AT_ONCE
    return Actors(actors.least, most), reserved


class SayWhatWaits(ExecutionCallback):
    """Says, once a minute while a Dataset runs, which of its steps has no actor."""

    def __init__(self) -> None:
        self._without_since: dict[str, float] = {}

    def on_execution_step(self, executor: Any) -> None:
        """Look at the pools of model actors; Ray Data calls it many times a second."""
        now = time.monotonic()
        for operator in executor._topology:
            if not isinstance(operator, ActorPoolMapOperator) or "(Predict)" not in operator.name:
                continue
            actors = operator.get_actor_info()
            if actors.running or not actors.pending:
                self._without_since.pop(operator.id, None)
                continue
            if now - self._without_since.setdefault(operator.id, now) >= _SAID_EVERY_S:
                self._without_since[operator.id] = now
                message = (
                    "%s has no actor yet, for want of a place or because its model still loads: %s"
                )
                logger.warning(message, operator.name, describe_nodes())
