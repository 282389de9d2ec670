"""A task as a step of a Ray Dataset: lazily a Dataset in, a Dataset out, with the stages of the
corpus job.

A batch of rows travels between the stages as ONE row, as a shard of a corpus job does (wire.py),
with its columns. What Ray Data runs again after a failure it may do twice: answers come at least
once, and the sink decides on the rest.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from ray.data import Dataset, Schema

from modernbert.text.windows import Text
from pipelines.checkpoints import Checkpoint
from pipelines.dataset.step_actors import Actors, SayWhatWaits, parse_actors, step_pool
from pipelines.inference.documents import (
    accepted_documents,
    answer_columns,
    clashing,
    encode,
)
from pipelines.inference.loading import ModelRun, resolve_run
from pipelines.inference.outputs import model_outputs
from pipelines.input.documents import readable, wrong_type
from pipelines.input.shards import Rows, Shard
from pipelines.model_options import from_call, model_options
from pipelines.option_types import column_option
from pipelines.options import task_named
from pipelines.raydata import wire
from pipelines.raydata.actor import Predict
from pipelines.raydata.placement import device_of_actors, stage_cpus
from pipelines.raydata.pools import MapBatches, actor_options
from pipelines.task_options import TaskOptions
from pipelines.tasks.base import task_class

MAX_CHARACTERS = 5_000_000
"""Longer texts are cut where long documents are truncated, and have no answer where they are read
in windows.
"""
MAX_TASK_RETRIES = 3
"""How often a batch whose process ends is run again, before the Dataset fails."""
BATCH_ROWS = {"cpu": 512, "cuda": 4096}
"""The most rows that travel together: few enough that a small dataset has work for all cores, and
on GPUs enough to fill packed batches.
"""
_OTHER_NAMES = {
    "batch_size": "a packed batch has budget_tokens=, and batch_rows= rows travel together",
    "num_gpus": 'an actor takes a GPU with device="cuda"; concurrency= says how many actors',
    "num_cpus": "an actor takes a core; concurrency= says how many actors",
    "columns": "name the columns after the model, one by one",
    "preprocess": "map the dataset before this step",
    "postprocess": "map the dataset after this step",
    "runtime_env": "give it to ray.init",
    "accelerator_type": "start Ray on the nodes that have it",
}
"""What users of ray.data.llm type, and what to do here."""
_MEMORY = "; for texts in memory there is pipelines.pipeline"


@dataclass(frozen=True)
class Processor:
    """A task as a step of a Dataset: call it with one. `processor` makes it."""

    run: ModelRun
    columns: tuple[str, ...]
    list_columns: frozenset[str]
    """Those that may hold lists of texts."""
    prefix: str
    actors: Actors
    batch_rows: int

    def __call__(self, dataset: Dataset) -> Dataset:
        """Return, lazily, the rows of `dataset` with their answers, in their order.

        Raises ValueError for what is not a Dataset, for columns that do not fit, and for more
        actors than there can be.
        """
        if not isinstance(dataset, Dataset):
            raise ValueError(_not_a_dataset(dataset))
        known = dataset.schema(fetch_if_missing=False)
        if known is not None:
            self._check_columns(getattr(known, "base_schema", known))
        device = self.run.device
        actors, reserved = step_pool(self.actors, device)
        pool = actor_options(device, actors, retries=MAX_TASK_RETRIES) | reserved
        read_cpus, _, answer_cpus = stage_cpus(device)
        one_row: MapBatches = {"batch_size": 1, "batch_format": "pyarrow"}
        # With a context of its own: the caller's stays as it is.
        dataset = dataset.copy(dataset, _deep_copy=True)
        dataset.context.execution_options.preserve_order = True
        callbacks = dataset.context.custom_execution_callback_classes
        if SayWhatWaits not in callbacks:
            callbacks.append(SayWhatWaits)
        # An actor takes a block at a time: a dataset of one block would keep one actor busy.
        blocks = dataset.repartition(target_num_rows_per_block=self.batch_rows)
        tokenised = blocks.map_batches(
            partial(_tokenise, self),
            batch_size=self.batch_rows,
            batch_format="pyarrow",
            num_cpus=read_cpus,
        )
        predicted = tokenised.map_batches(
            Predict, fn_constructor_args=(self.run,), **pool, **one_row
        )
        return predicted.map_batches(partial(_answer, self), num_cpus=answer_cpus, **one_row)

    def _check_columns(self, schema: pa.Schema | Schema) -> None:
        """Raise ValueError for columns that do not fit; `schema`: Arrow's, or names alone."""
        missing = [name for name in self.columns if name not in schema.names]
        if missing:
            raise ValueError(
                f"column {missing[0]!r} is missing; the dataset has {', '.join(schema.names)}"
            )
        if isinstance(schema, pa.Schema):
            for name in self.columns:
                stored = schema.field(name).type
                wanted = wrong_type(
                    stored,
                    reads_words=self.run.task.reads_words,
                    takes_lists=name in self.list_columns,
                )
                if wanted is not None:
                    raise ValueError(
                        f"column {name!r} holds {stored}, not {wanted}; cast it, or name another"
                    )
        of_task = self.run.task.added_columns.names
        added = [self.prefix + name for name in (*of_task, "error")]
        if both := clashing(added, schema.names):
            alike = next(name for name in added if clashing([name], both[:1]))
            case = "" if alike == both[0] else f" (as {alike!r} for readers that ignore case)"
            raise ValueError(
                f"column {both[0]!r} is in the dataset already{case}; give prefix=, or rename it"
            )


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
    concurrency: int | tuple[int, int] | str | None = None,
    actors: int | tuple[int, int] | str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    budget_tokens: int | None = None,
    batch_rows: int | None = None,
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
        concurrency: model actors, one a GPU or CPU core: the most of them (the pool begins with
            one, and grows where there is room), (MIN, MAX), or by default "auto", all that there is
            room for. Steps of one pipeline share the cluster.
        actors: another name of `concurrency`.
        device: "cpu", "cuda" or "auto".
        dtype: the name of a dtype; "auto" is float32 on CPUs and bfloat16 on GPUs.
        budget_tokens: tokens in a packed batch.
        batch_rows: the most rows that travel together, by default 512 on CPUs and 4,096 on GPUs.
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
            raise ValueError(f"{other} is not an option of a step: {advice}")
    parsed_actors = _actors(concurrency, actors)
    if not isinstance(prefix, str):
        raise ValueError(f"prefix {prefix!r} must be a text")
    columns, task_options = _columns(options_class, columns, task_options)
    of_model = {
        "model": None if model is None else os.fspath(model),
        "device": device,
        "dtype": dtype,
        "budget_tokens": budget_tokens,
    }
    of_task = _own_names(options_class, task_options)
    options: Any = from_call(model_options(options_class.task), of_model | of_task)
    _check_above_0("batch_timeout_s", batch_timeout_s, whole=False)
    if batch_rows is not None:
        _check_above_0("batch_rows", batch_rows, whole=True)
    options.check_inputs(options_class.input_names(len(columns)))
    run = _model_run(options_class.task, options, batch_timeout_s)
    inputs = zip(options_class.input_names(), columns, strict=False)
    list_columns = {column for text, column in inputs if text in options_class.list_inputs}
    return Processor(
        run=run,
        columns=columns,
        list_columns=frozenset(list_columns),
        prefix=prefix,
        actors=parsed_actors,
        batch_rows=batch_rows or BATCH_ROWS[run.device],
    )


def _actors(
    concurrency: int | tuple[int, int] | str | None, actors: int | tuple[int, int] | str | None
) -> Actors:
    """Return the actors that an option with two names asks for."""
    if concurrency is not None and actors is not None:
        raise ValueError(
            f"concurrency {concurrency!r} and actors {actors!r} are two names of one option: give "
            "one"
        )
    if actors is not None:
        return parse_actors(actors, "actors")
    return parse_actors("auto" if concurrency is None else concurrency, "concurrency")


def _model_run(task: str, options: Any, batch_timeout_s: float) -> ModelRun:
    """Open the checkpoint and decide how its actors run it; `options`: those of task and model."""
    task_cls = task_class(task)
    checkpoint = Checkpoint.open(options.model_named(options.model))
    task_cls.check(checkpoint)
    task_of_model = task_cls.from_checkpoint(checkpoint, options)
    device = device_of_actors(options.device)
    return resolve_run(options, checkpoint, task_of_model, device, batch_timeout_s)


def _columns(
    options_class: type[TaskOptions], columns: tuple[str, ...], options: Mapping[str, object]
) -> tuple[tuple[str, ...], dict[str, object]]:
    """Return the columns of a document's texts, however they are given, and the other options."""
    inputs = options_class.input_names()
    others = dict(options)
    named: dict[str, object] = {}  # by the text that a column holds
    for text in inputs:
        if column_option(text) in others:
            named[text] = others.pop(column_option(text))
    if named and columns:
        option = column_option(next(iter(named)))
        raise ValueError(
            f"{option} and {columns[0]!r} both name columns: give the columns in one way"
        )
    wanted: list[object] = list(columns or options_class.inputs)
    if named:
        # Those that are not named have the name of their text, where the task needs them.
        default_columns = {text: text for text in options_class.inputs}
        column_of = default_columns | named
        wanted = [column_of[text] for text in inputs if text in column_of]
    names: list[str] = []
    for column in wanted:
        if not isinstance(column, str):
            raise ValueError(f"column {column!r} must be a name; give several one by one: 'a', 'b'")
        names.append(column)
    counts = len(options_class.inputs), len(inputs)
    if len(names) not in counts:
        takes = " or ".join(map(str, dict.fromkeys(counts)))
        raise ValueError(f"{options_class.task} takes {takes} columns of texts, not {len(names)}")
    return tuple(names), others


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
            raise ValueError(f"{name} and {our_name} are two names of one option: give one")
        own[our_name] = value.lower() if isinstance(value, str) else value
    return own


def _check_above_0(name: str, value: object, *, whole: bool) -> None:
    kinds = int if whole else int | float
    if isinstance(value, bool) or not isinstance(value, kinds) or not value > 0:
        expected = "whole number" if whole else "number"
        raise ValueError(f"{name} {value!r} must be a {expected} above 0")


def _tokenise(step: Processor, table: pa.Table) -> pa.Table:
    """Turn a batch of rows into one row: their windows, and the rows themselves."""
    step._check_columns(table.schema)
    documents, rows, rejected = _documents(step, table)
    windows = encode(step.run, documents, MAX_CHARACTERS)
    rows = rows * step.run.task.readings
    rejects = wire.rejects_of_tokenising(rejected, windows, rows)
    batch = Shard(name="batch", format="", pieces=())
    stored = Rows(table, np.arange(len(table)), [])
    return wire.tokenised_row(
        batch, windows, np.array(rows, dtype=np.int64), rejects, 0.0, stored=stored
    )


def _documents(
    step: Processor, table: pa.Table
) -> tuple[list[Text], list[int], list[tuple[int, str]]]:
    """Return the documents of a batch, their rows, and the rows without one, with the reason."""
    columns = [table[name] for name in step.columns]
    too_long = f"longer than {MAX_CHARACTERS} characters"
    return accepted_documents(step.run.task, columns, MAX_CHARACTERS, too_long)


def _answer(step: Processor, table: pa.Table) -> pa.Table:
    """Return the rows of a batch with their answers."""
    rows = wire.stored_of(table).table
    error = table["error"][0].as_py()
    if error:
        error = error.partition("\n")[0]  # a traceback may follow
    if error and table["cause"][0].as_py() == wire.START:
        raise RuntimeError(f"no actor starts: {error}")

    rows_of_windows = wire.array_of(table, "rows")
    rows_of_documents = rows_of_windows[: len(rows_of_windows) // step.run.task.readings]
    reasons = {reject["row"]: reject["reason"] for reject in wire.rejects_of(table)}
    if error:
        # Rows that were rejected before keep their own reasons.
        reasons = dict.fromkeys(rows_of_documents.tolist(), error) | reasons
    document_of_row = np.full(len(rows), -1)
    document_of_row[rows_of_documents] = np.arange(len(rows_of_documents))
    document_of_row[list(reasons)] = -1
    has_no_answer = document_of_row < 0
    rows_without_answer = set(np.flatnonzero(has_no_answer).tolist())
    assert rows_without_answer == set(reasons), "a row has neither an answer nor a reason"

    columns = {name: rows[name] for name in rows.column_names}
    if reasons:
        # A text that is not UTF-8 would break whatever reads the row next.
        for name in step.columns:
            columns[name] = readable(rows[name])
    if error:
        answers = _no_answers(step, len(rows))
    else:
        documents = pa.array(np.maximum(document_of_row, 0), mask=has_no_answer)
        answers = _answers(step, table, rows, documents)
    reason_of_row = [reasons.get(row) for row in range(len(rows))]
    answers["error"] = pa.array(reason_of_row, pa.string())
    for name, values in answers.items():
        columns[step.prefix + name] = values
    return pa.table(columns)


def _no_answers(step: Processor, rows: int) -> dict[str, pa.Array]:
    """Return the columns of answers for rows that have none."""
    return {field.name: pa.nulls(rows, field.type) for field in step.run.task.added_columns}


def _answers(
    step: Processor, table: pa.Table, rows: pa.Table, documents: pa.Array
) -> dict[str, pa.Array]:
    """Decode the answers of a batch; `documents`: the number of each row's document, or null."""
    task = step.run.task
    documents_of_batch = _documents(step, rows)[0] if task.needs_documents else None
    values = wire.array_of(table, "values")
    splits = wire.array_of(table, "splits")
    windows = wire.windows_of(table)
    tokenizer = step.run.model.tokenizer
    outputs = model_outputs(task, tokenizer, documents_of_batch, windows, values, splits)
    return answer_columns(task, outputs, documents)
