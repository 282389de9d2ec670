"""The actors of a step of a Dataset: how many are asked for, and what each reserves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
import ray

from pipelines.errors import UserError
from pipelines.raydata.placement import describe_nodes, is_fixed, stage_cpus, wait_for_nodes

_STEPS_AT_ONCE = 8
"""So many steps of one pipeline, with the least actors of each, always have room beside a task that
reads.
"""
_GRANULARITY = 10_000
"""Ray counts CPUs and GPUs in ten-thousandths."""
_ALLOWED = "must be a number from 1 on, (MIN, MAX) or 'auto'"
_TYPE_PREFIX = "accelerator_type:"
"""How Ray calls the resource that a node of a type of accelerator has."""


@dataclass(frozen=True)
class StepActors:
    """Which model actors a step asks for."""

    least: int
    most: int | None
    """None for as many as the cluster has room for."""
    num_gpus: float | None = None
    """The share of a GPU that each takes; None: a GPU, and on the only one of a cluster less."""
    accelerator_type: str | None = None
    """The type of GPU that they run on; None: any."""


def parse_concurrency(value: object) -> tuple[int, int | None]:
    """Return the least and the most actors that an argument `concurrency` stands for.

    A number is the most, as in ray.data.llm: the pool begins with one actor, and grows where there
    is room. (MIN, MAX) begins with MIN; "auto" stands for one and all that there is room for.
    Raises UserError for anything else.
    """
    if isinstance(value, str) and value == "auto":
        return 1, None
    parts = value if isinstance(value, list | tuple) else [1, value]
    counts = [int(count) for count in parts if is_number(count, whole=True) and count > 0]
    if len(parts) != 2 or len(counts) < 2:
        raise UserError(f"concurrency {value!r} {_ALLOWED}")
    least, most = counts
    if least > most:
        raise UserError(f"concurrency {value!r}: MIN {least} is above MAX {most}")
    return least, most


def is_number(value: object, *, whole: bool) -> TypeGuard[float]:
    """Tell whether a value is a number, Python's or numpy's."""
    kinds = int | np.integer if whole else int | float | np.number
    return isinstance(value, kinds) and not isinstance(value, bool)


def parse_num_gpus(value: object) -> float | None:
    """Return the share of a GPU that an argument `num_gpus` stands for, None for the default."""
    if value is None:
        return None
    if not is_number(value, whole=False) or not 0 < value <= 1:
        raise UserError(
            f"num_gpus {value!r} must be above 0 and at most 1: an actor runs on one GPU or a "
            'share of it (concurrency= says how many there are; device="cpu" is for CPUs)'
        )
    return float(value)


def step_pool(
    actors: StepActors, device: str
) -> tuple[tuple[int, int | None], dict[str, float | str]]:
    """Return the least and the most actors of a step, and what each reserves, in Ray's words.

    Ray starts the least actors of all steps of a pipeline at once, whatever is free, and they hold
    what they reserve until their step is done; Ray Data starts more of them as it finds room.
    Reading takes a whole CPU. So that several steps run on a cluster that stays as it is, actors
    reserve less where cores are few: the least actors of _STEPS_AT_ONCE steps leave a CPU of the
    largest node. They share a GPU where there is one. To an autoscaler they show what they really
    take.

    Raises UserError if the cluster can never have so many actors.
    """
    wait_for_nodes()
    on_gpu = device == "cuda"
    reserved: dict[str, float | str] = {"num_cpus": stage_cpus(device)[1]}
    if on_gpu:
        reserved["num_gpus"] = actors.num_gpus or 1.0
    if actors.accelerator_type:
        reserved["accelerator_type"] = actors.accelerator_type
    if not is_fixed():
        return (actors.least, actors.most), reserved
    nodes: list[dict[str, float]] = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if actors.accelerator_type:
        nodes = _nodes_of_type(nodes, actors.accelerator_type)
    places = _places(nodes, actors.num_gpus or 1.0) if on_gpu else _total(nodes, "CPU")
    if actors.least > places:
        raise UserError(_too_many(actors, places, on_gpu))
    most = places if actors.most is None else min(actors.most, places)
    largest = max(node.get("CPU", 0) for node in nodes)
    room = max(largest - 1, 0) / (_STEPS_AT_ONCE * actors.least)
    room = math.floor(room * _GRANULARITY) / _GRANULARITY
    reserved["num_cpus"] = min(stage_cpus(device)[1], room)
    if on_gpu and actors.num_gpus is None and _total(nodes, "GPU") == 1:
        reserved["num_gpus"] = 1 / _STEPS_AT_ONCE
    return (actors.least, most), reserved


def _total(nodes: list[dict[str, float]], unit: str) -> int:
    return int(sum(node.get(unit, 0) for node in nodes))


def _places(nodes: list[dict[str, float]], share: float) -> int:
    """Return how many actors find a place that each take a share of one GPU."""
    return _total(nodes, "GPU") * int(1 / share + 1e-6)


def _nodes_of_type(nodes: list[dict[str, float]], accelerator_type: str) -> list[dict[str, float]]:
    """Return the nodes with a type of GPU; UserError where there is none."""
    fitting = [node for node in nodes if _TYPE_PREFIX + accelerator_type in node]
    if not fitting:
        names = {
            name.removeprefix(_TYPE_PREFIX)
            for node in nodes
            for name in node
            if name.startswith(_TYPE_PREFIX)
        }
        there = ", ".join(sorted(names)) or "none"
        raise UserError(
            f"accelerator_type {accelerator_type!r} is on no node of the Ray cluster, which has "
            f"{there}"
        )
    return fitting


def _too_many(actors: StepActors, places: int, on_gpu: bool) -> str:
    unit = "GPU" if on_gpu else "CPU"
    what = f"a {unit}" if actors.num_gpus in (None, 1.0) else f"{actors.num_gpus:g} of a GPU"
    of_type = f" of type {actors.accelerator_type}" if actors.accelerator_type else ""
    share = ""
    if on_gpu and actors.num_gpus is None:
        share = ", or num_gpus=, the share of a GPU that each takes"
    return (
        f"{actors.least:,} actors need {what}{of_type} each; {describe_nodes()}: give at most "
        f"{places:,}{share}"
    )
