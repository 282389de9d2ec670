"""A task as a step of a Ray Dataset: lazily a Dataset in, a Dataset out, with the stages of the
corpus job.

What Ray Data runs again after a failure it may do twice: answers come at least once, and the sink
decides on the rest.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
from ray.data import Dataset
from ray.runtime_env import RuntimeEnv

from pipelines.checkpoints import Checkpoint
from pipelines.dataset.columns import declare_schema, known_schema, step_columns, text_columns
from pipelines.dataset.execution import StepWatch
from pipelines.dataset.stages import Step, answer, tokenise
from pipelines.dataset.step_actors import (
    StepActors,
    is_number,
    parse_concurrency,
    parse_num_gpus,
    step_pool,
)
from pipelines.errors import UserError
from pipelines.inference.loading import ModelRun, resolve_run
from pipelines.model_options import from_call, model_options
from pipelines.options import task_named
from pipelines.raydata.actor import Predict
from pipelines.raydata.placement import device_of_actors, stage_cpus
from pipelines.raydata.pools import MapBatches, actor_options
from pipelines.storage import one_line
from pipelines.task_options import TaskOptions
from pipelines.tasks.base import task_class

MAX_TASK_RETRIES = 3
"""How often a batch whose process ends is run again, before the Dataset fails."""
BATCH_ROWS = {"cpu": 512, "cuda": 4096}
"""The most rows that travel together: few enough that a small dataset has work for all cores, and
on GPUs enough to fill packed batches.
"""
_OTHER_NAMES = {
    "actors": "concurrency= says how many actors there are",
    "batch_rows": "batch_size= says how many rows travel together",
    "num_cpus": "actors share the CPUs; concurrency= says how many there are",
    "columns": "name the columns after the model, one by one",
    "preprocess": "map the dataset before this step",
    "postprocess": "map the dataset after this step",
}
"""What users of ray.data.llm, of the corpus job and of older versions type, and what to do here."""
_MOST = 10**9
"""The largest number that an argument may be: beyond it there are no rows or seconds."""
_MEMORY = "; for texts in memory there is pipelines.pipeline"


@dataclass(frozen=True)
class Processor:
    """A task as a step of a Dataset: call it with one. `processor` makes it."""

    step: Step
    actors: StepActors
    batch_size: int | None
    runtime_env: dict[str, Any] | None

    def __call__(self, dataset: Dataset) -> Dataset:
        """Return, lazily, the rows of `dataset` with their answers, in their order.

        Raises ValueError for what is not a Dataset, for columns that do not fit, and for more
        actors than there can be.
        """
        if not isinstance(dataset, Dataset):
            raise UserError(_not_a_dataset(dataset))
        columns = self.step.columns
        schema = known_schema(dataset)
        if schema is not None:
            columns.check(schema)
        run = self.step.run
        pool, reserved = step_pool(self.actors, run.device)
        actors = actor_options(run.device, pool, retries=MAX_TASK_RETRIES) | reserved
        read_cpus, _, answer_cpus = stage_cpus(run.device)
        environment: MapBatches = {}
        if self.runtime_env is not None:
            environment["runtime_env"] = self.runtime_env
        one_row: MapBatches = {"batch_size": 1, "batch_format": "pyarrow", **environment}
        # With a context of its own: the caller's stays as it is.
        dataset = dataset.copy(dataset, _deep_copy=True)
        dataset.context.execution_options.preserve_order = True
        callbacks = dataset.context.custom_execution_callback_classes
        if StepWatch not in callbacks:
            callbacks.append(StepWatch)
        batch_size = self.batch_size or _default_batch_size(dataset, run.device, pool[1])
        # An actor takes a block at a time: a dataset of one block would keep one actor busy.
        blocks = dataset.repartition(target_num_rows_per_block=batch_size)
        tokenised = blocks.map_batches(
            partial(tokenise, self.step),
            batch_size=batch_size,
            batch_format="pyarrow",
            num_cpus=read_cpus,
            **environment,
        )
        predicted = tokenised.map_batches(Predict, fn_constructor_args=(run,), **actors, **one_row)
        answered = predicted.map_batches(
            partial(answer, self.step), num_cpus=answer_cpus, **one_row
        )
        if isinstance(schema, pa.Schema):
            declare_schema(answered, pa.schema([*schema, *columns.added]))
        return answered


def _default_batch_size(dataset: Dataset, device: str, actors: int | None) -> int:
    """Return the rows that travel together: fewer where a dataset has few for its actors."""
    rows: int | None = dataset._meta_count()  # None before it runs, mostly
    most = BATCH_ROWS[device]
    if not rows or actors is None:
        return most
    return min(most, -(-rows // actors))


def _not_a_dataset(value: object) -> str:
    """Say what to do with something that is not a Dataset."""
    package = type(value).__module__.partition(".")[0]
    kind = f"{package}.{type(value).__name__}"
    makers = {"pandas": "from_pandas", "pyarrow": "from_arrow", "datasets": "from_huggingface"}
    maker = makers.get(package, "from_items")
    return f"a step takes a Dataset of Ray, not a {kind}: make one with ray.data.{maker}{_MEMORY}"


def processor(
    task: str,
    model: str | os.PathLike[str] | None = None,
    *columns: str,
    prefix: str = "",
    output_columns: Mapping[str, str] | None = None,
    concurrency: int | tuple[int, int] | str = 1,
    batch_size: int | None = None,
    num_gpus: float | None = None,
    accelerator_type: str | None = None,
    runtime_env: Mapping[str, Any] | None = None,
    device: str = "auto",
    dtype: str = "auto",
    budget_tokens: int | None = None,
    batch_timeout_s: float = 600.0,
    **task_options: Any,
) -> Processor:
    """Create a step of a Ray Dataset that runs a task on each row.

    Every row is kept, in its order. Beside its columns it gets those of the task, `n_tokens`,
    `n_windows`, `truncated`, and `error`: why it has no answer, or null. Answers come at least
    once; the corpus job writes each exactly once.

    Args:
        task: the name of a task, here ("classify") or in transformers ("text-classification").
        model: a folder, a Hugging Face hub id or a URI of object storage; None where the options
            of the task "several" name models.
        columns: the columns of a document's texts; by default those that the task names ("text"). A
            second one makes pairs, where the task takes them ("text", "text_pair"). They may be
            named as in run_corpus, too (`text_column=`).
        prefix: put before the name of each column that is added.
        output_columns: other names for columns that are added, by their names: {"label": "topic"}.
            `prefix` is not put before these.
        concurrency: the model actors: N, the most of them (the pool begins with one, and grows
            where there is room), (MIN, MAX), or "auto", all that there is room for, one a GPU or
            CPU core. By default one, as in ray.data.llm.
        batch_size: the most rows that travel together, and that are done again where a process
            ends. By default 512 on CPUs and 4,096 on GPUs, fewer where a dataset is known to have
            few rows for its actors. The batches of the model have `budget_tokens`.
        num_gpus: the share of a GPU that an actor takes, above 0 and at most 1. By default one
            GPU; on the only GPU of a cluster steps share it.
        accelerator_type: the type of the actors' GPUs in Ray's words, such as "L4" or "H100".
        runtime_env: the runtime environment of the step's tasks and actors, as of ray.init.
        device: "cpu", "cuda" or "auto": GPUs where there are any.
        dtype: the name of a dtype; "auto" is float32 on CPUs and bfloat16 on GPUs.
        budget_tokens: tokens in a packed batch.
        batch_timeout_s: the seconds that a packed batch may take before its actor is replaced.
        task_options: those of the task's corpus job, under our names or those of transformers.

    Returns:
        A callable that takes a Dataset and returns one.

    Raises:
        ValueError: for an unknown task or option, and for a checkpoint that does not fit.

    Example:
        >>> embed = processor("embed", "my-org/my-modernbert", "body", dimensions=256)
        >>> embed(ray.data.read_parquet("s3://bucket/articles")).write_parquet("s3://bucket/vectors")
    """
    options_class = task_named(task)
    for other, advice in _OTHER_NAMES.items():
        if other in task_options:
            raise UserError(f"{other} is not an option of a step: {advice}")
    least, most = parse_concurrency(concurrency)
    actors = StepActors(least, most, parse_num_gpus(num_gpus), accelerator_type)
    device = _device_named(device, actors)
    texts, task_options = text_columns(options_class, columns, task_options)
    if model is not None and (not isinstance(model, str | os.PathLike) or not os.fspath(model)):
        raise UserError(
            f"model {model!r} must be a folder, a Hugging Face hub id or a URI of object storage"
        )
    of_model = {
        "model": None if model is None else os.fspath(model),
        "device": device,
        "dtype": dtype,
        "budget_tokens": budget_tokens,
    }
    of_task = _own_names(options_class, task_options)
    options: Any = from_call(model_options(options_class.task), of_model | of_task)
    timeout_s = float(_above_0("batch_timeout_s", batch_timeout_s, whole=False))
    if batch_size is not None:
        batch_size = int(_above_0("batch_size", batch_size, whole=True))
    environment = _checked_environment(runtime_env)
    options.check_inputs(options_class.input_names(len(texts)))
    run = _model_run(options_class.task, options, timeout_s)
    inputs = zip(options_class.input_names(), texts, strict=False)
    list_texts = frozenset(column for text, column in inputs if text in options_class.list_inputs)
    step = Step(run, step_columns(run.task, texts, list_texts, prefix, output_columns))
    return Processor(step, actors, batch_size, environment)


def _device_named(device: str, actors: StepActors) -> str:
    """Return the device that is asked for: GPUs where one of their options is given."""
    type_ = actors.accelerator_type
    if type_ is not None and (not isinstance(type_, str) or not type_):
        raise UserError(f"accelerator_type {type_!r} must be a type of GPU in Ray's words, as 'L4'")
    of_gpus = {"num_gpus": actors.num_gpus, "accelerator_type": type_}
    given = [f"{name} {value!r}" for name, value in of_gpus.items() if value is not None]
    if given and device == "cpu":
        raise UserError(f'{given[0]} is for GPUs, and device is "cpu": leave one of them out')
    return "cuda" if given and device == "auto" else device


def _checked_environment(runtime_env: object) -> dict[str, Any] | None:
    """Return a runtime environment that Ray takes; it may hold secrets, and no message shows it."""
    if runtime_env is None:
        return None
    if not isinstance(runtime_env, Mapping):
        raise UserError(
            f"runtime_env is a {type(runtime_env).__name__} and must be a dictionary, as "
            '{"env_vars": {"HF_HOME": "/models"}}'
        )
    environment = dict(runtime_env)
    unknown = sorted(set(map(str, environment)) - RuntimeEnv.known_fields)
    if unknown:
        known = ", ".join(sorted(field for field in RuntimeEnv.known_fields if field[0] != "_"))
        raise UserError(f"runtime_env has {unknown[0]!r}; Ray takes {known}")
    try:
        RuntimeEnv(**environment)
    except (TypeError, ValueError) as error:
        raise UserError(f"runtime_env: {one_line(error)}") from error
    return environment


def _model_run(task: str, options: Any, batch_timeout_s: float) -> ModelRun:
    """Open the checkpoint and decide how its actors run it; `options`: those of task and model."""
    task_cls = task_class(task)
    model = options.model_named(options.model)
    checkpoint = Checkpoint.open(model, route=options.route)
    task_cls.check(checkpoint)
    task_of_model = task_cls.from_checkpoint(checkpoint, options)
    device = device_of_actors(options.device)
    return resolve_run(options, checkpoint, task_of_model, device, batch_timeout_s)


def _own_names(
    options_class: type[TaskOptions], options: Mapping[str, object]
) -> dict[str, object]:
    """Return options under our names.

    Values under a name of transformers' are taken in upper and lower case, as there.
    """
    own: dict[str, object] = {}
    for name, value in options.items():
        our_name = options_class.transformers_names.get(name)
        if our_name is None:
            own[name] = value
            continue
        if our_name in options:
            raise UserError(f"{name} and {our_name} are two names of one option: give one")
        own[our_name] = value.lower() if isinstance(value, str) else value
    return own


def _above_0(name: str, value: object, *, whole: bool) -> float:
    """Return an argument once it is a number above 0."""
    if not is_number(value, whole=whole) or not 0 < value <= _MOST:
        expected = "whole number" if whole else "number"
        raise UserError(f"{name} {value!r} must be a {expected} above 0, and at most {_MOST:,}")
    return value
