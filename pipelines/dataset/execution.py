"""What is checked and said while a Dataset with steps runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from functools import partial
from typing import Any

import pyarrow as pa
from ray.data import Schema
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.interfaces import PhysicalOperator
from ray.data._internal.execution.operators.actor_pool_map_operator import ActorPoolMapOperator
from ray.exceptions import UserCodeException

from pipelines.dataset.columns import StepColumns
from pipelines.dataset.stages import Step, tokenise
from pipelines.errors import UserError
from pipelines.inference.loading import ModelRun
from pipelines.raydata.cluster import cluster_resources
from pipelines.raydata.placement import describe_nodes, describe_room, is_fixed

_SAID_EVERY_S = 60.0
_TINY = 1e-6
"""Sums of fractions are a little more than they should be."""
logger = logging.getLogger(__name__)


class StepError(UserError, UserCodeException):
    """A mistake that is seen only when the Dataset runs.

    Ray Data prints what is not an error of its user as its own, with a trace and where to report
    it.
    """


class StepWatch(ExecutionCallback):
    """Looks after the steps of a Dataset that runs.

    Before it starts, what the actors of all steps take must be there; before its first batch, each
    step's columns must fit, which are not known earlier where a function makes them. Once a minute
    a line says which step has no actor.
    """

    def __init__(self) -> None:
        self._without_since: dict[str, float] = {}

    def before_execution_starts(self, executor: Any) -> None:
        """Raise StepError for actors that never have a place, and set the check of columns."""
        operators: list[Any] = list(executor._topology)
        if is_fixed():
            _check_places(operators)
        for operator in operators:
            if columns := _columns_read(operator):
                operator._on_start = partial(_check_columns, columns)

    def on_execution_step(self, executor: Any) -> None:
        """Look at the pools of model actors; Ray Data calls it many times a second."""
        now = time.monotonic()
        for operator in _pools(executor._topology):
            run = _model_run(operator)
            if run is None:
                continue
            actors = operator.get_actor_info()
            if actors.running or not actors.pending:
                self._without_since.pop(operator.id, None)
                continue
            if now - self._without_since.setdefault(operator.id, now) >= _SAID_EVERY_S:
                self._without_since[operator.id] = now
                logger.warning(
                    "%s has no actor yet: its model still loads, or there is no room, which others "
                    "may hold; %s",
                    _name(operator),
                    describe_room("GPU" if run.device == "cuda" else "CPU"),
                )


def _check_places(operators: Iterable[PhysicalOperator]) -> None:
    """Raise StepError where the least actors of all pools, which Ray starts at once and which stay
    to the end, leave no room for each other or for the tasks that feed them.
    """
    pools = _pools(operators)
    of_pools = [operator.min_max_resource_requirements()[0] for operator in pools]
    of_tasks = [
        operator.incremental_resource_usage().cpu or 0.0
        for operator in operators
        if operator not in pools
    ]
    needed = {
        "GPU": sum(needs.gpu or 0.0 for needs in of_pools),
        "CPU": sum(needs.cpu or 0.0 for needs in of_pools) + max(of_tasks, default=0.0),
    }
    there = cluster_resources()
    for unit, amount in needed.items():
        if amount <= there.get(unit, 0) + _TINY:
            continue
        names = ", ".join(_name(operator) for operator in pools)
        what_else = ", and tasks between them," if unit == "CPU" else ""
        advice = "num_gpus=, a share of a GPU," if unit == "GPU" else "a smaller concurrency="
        raise StepError(
            f"the actors of this pipeline ({names}){what_else} need {amount:g} {unit}s at once; "
            f"{describe_nodes()}: give {advice} or materialize() the dataset between steps"
        )


def _check_columns(columns: StepColumns, schema: pa.Schema | Schema | None) -> None:
    """Raise StepError where the first batch of a step has other columns than it needs."""
    if schema is None or not schema.names:  # no row was left
        return
    try:
        columns.check(schema)
    except UserError as error:
        raise StepError(str(error)) from None


def _pools(operators: Iterable[PhysicalOperator]) -> list[ActorPoolMapOperator]:
    return [operator for operator in operators if isinstance(operator, ActorPoolMapOperator)]


def _columns_read(operator: PhysicalOperator) -> StepColumns | None:
    """Return the columns of the step whose texts an operator reads, if it does."""
    for logical in operator._logical_operators:
        function = getattr(logical, "fn", None)
        if isinstance(function, partial) and function.func is tokenise:
            step: Step = function.args[0]
            return step.columns
    return None


def _model_run(operator: PhysicalOperator) -> ModelRun | None:
    """Return what the actors of an operator run, if they are those of a step."""
    for logical in operator._logical_operators:
        for argument in getattr(logical, "fn_constructor_args", None) or ():
            if isinstance(argument, ModelRun):
                return argument
    return None


def _name(operator: PhysicalOperator) -> str:
    """Return what messages call an operator: the task of a step, or Ray's name."""
    run = _model_run(operator)
    return str(operator.name) if run is None else run.task.options_class.task
