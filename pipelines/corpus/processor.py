"""A task as a step of a Ray Dataset: lazily a Dataset in, a Dataset out, with the stages of the corpus job.

A batch of rows travels between the stages as ONE row, as a shard of a corpus job does (wire.py), with its columns.
What Ray Data runs again after a failure it may do twice: answers come at least once, and the sink decides on the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from ray.data import Dataset

from modernbert.windows import Text
from pipelines.checkpoints import Checkpoint
from pipelines.corpus import wire
from pipelines.corpus.cluster import cluster_resources
from pipelines.corpus.execute import actor_options
from pipelines.corpus.placement import pool_size, stage_cpus
from pipelines.corpus.plan import ModelRun, resolve_run
from pipelines.corpus.stages import Predict, accepted_documents, answer_columns, encode
from pipelines.input.documents import readable
from pipelines.input.shards import Shard
from pipelines.options import from_call, model_options, task_named
from pipelines.tasks.base import ModelOutputs, task_class

MAX_CHARACTERS = 5_000_000
"""Longer texts are cut where long documents are truncated, and have no answer where they are read in windows."""
MAX_TASK_RETRIES = 3
"""How often a batch whose process ends is run again, before the Dataset fails."""


@dataclass(frozen=True)
class Processor:
    """A task as a step of a Dataset: call it with one. `processor` makes it."""

    run: ModelRun
    columns: tuple[str, ...]
    prefix: str
    actors: str
    batch_rows: int

    def __call__(self, dataset: Dataset) -> Dataset:
        """Return, lazily, the rows of `dataset` with their answers; ValueError for columns that do not fit."""
        known = dataset.schema(fetch_if_missing=False)
        if known is not None:
            self._check_columns(known.names)
        device = self.run.device
        actors = pool_size(self.actors, device)
        pool = actor_options(device, actors, retries=MAX_TASK_RETRIES)
        if most := actors[1]:  # actors hold their CPUs to the end: one is left to what reads the dataset
            pool["num_cpus"] = min(pool["num_cpus"], max(cluster_resources().get("CPU", 0) - 1, 0) / most)
        read_cpus, _, answer_cpus = stage_cpus(device)
        one_row: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}
        tokenised = dataset.map_batches(
            partial(_tokenise, self), batch_size=self.batch_rows, batch_format="pyarrow", num_cpus=read_cpus
        )
        predicted = tokenised.map_batches(Predict, fn_constructor_args=(self.run,), **pool, **one_row)
        return predicted.map_batches(partial(_answer, self), num_cpus=answer_cpus, **one_row)

    def _check_columns(self, names: Sequence[str]) -> None:
        missing = [name for name in self.columns if name not in names]
        if missing:
            raise ValueError(f"column {missing[0]!r} is missing; the dataset has {', '.join(names)}")
        added = [self.prefix + name for name in (*self.run.task.columns.names, *_ADDED)]
        if both := [name for name in added if name in names]:
            raise ValueError(f"column {both[0]!r} is in the dataset already; give prefix=, or rename it")


_ADDED = ("n_tokens", "n_windows", "truncated", "error")


def processor(
    task: str,
    model: str,
    *columns: str,
    prefix: str = "",
    actors: int | str = "auto",
    device: str = "auto",
    dtype: str = "auto",
    budget_tokens: int | None = None,
    batch_rows: int = 4096,
    batch_timeout_s: float = 600.0,
    **task_options: Any,
) -> Processor:
    """Create a step of a Ray Dataset that runs a task on each row.

    Every row is kept. Beside its columns it gets those of the task, `n_tokens`, `n_windows`, `truncated`, and `error`:
    why it has no answer, or null. Answers come at least once; the corpus job writes each exactly once.

    Args:
        task: the name of a task, here ("classify") or in transformers ("text-classification").
        model: a folder, a Hugging Face hub id or a URI of object storage.
        columns: the columns of a document's texts; by default those that the task names ("text"). A second one makes
            pairs, where the task takes them ("text", "text_pair").
        prefix: put before the name of each column that is added.
        actors: model actors, one a GPU or CPU core: a number, "MIN:MAX" or "auto".
        device: "cpu", "cuda" or "auto".
        dtype: the name of a dtype; "auto" is float32 on CPUs and bfloat16 on GPUs.
        budget_tokens: tokens in a packed batch.
        batch_rows: the most rows that travel together.
        batch_timeout_s: the seconds that a packed batch may take before its actor is replaced.
        task_options: those of the task's corpus job.

    Returns:
        A callable that takes a Dataset and returns one.

    Raises:
        ValueError: for an unknown task or option, and for a checkpoint that does not fit.

    Example:
        >>> embed = processor("embed", "my-org/my-modernbert", "body", dimensions=256, normalize=True)
        >>> embed(ray.data.read_parquet("s3://bucket/articles")).write_parquet("s3://bucket/vectors")
    """
    name = task_named(task).task
    given = {"model": model, "device": device, "dtype": dtype, "budget_tokens": budget_tokens, **task_options}
    options: Any = from_call(model_options(name), given)
    if batch_rows < 1 or batch_timeout_s <= 0:
        raise ValueError(f"batch_rows {batch_rows} and batch_timeout_s {batch_timeout_s:g} must be above 0")
    task_cls = task_class(name)
    columns = columns or tuple(task_cls.options_class.inputs)
    counts = len(task_cls.options_class.inputs), len(task_cls.options_class.input_names())
    if len(columns) not in counts:
        takes = " or ".join(map(str, dict.fromkeys(counts)))
        raise ValueError(f"{name} takes {takes} columns of texts, not {len(columns)}")
    options.check_inputs(task_cls.options_class.input_names(len(columns)))
    checkpoint = Checkpoint.open(model)
    task_cls.check(checkpoint)
    run = resolve_run(options, checkpoint, task_cls.from_checkpoint(checkpoint, options), batch_timeout_s)
    return Processor(run, columns, prefix, str(actors), batch_rows)


def _tokenise(step: Processor, table: pa.Table) -> pa.Table:
    """Turn a batch of rows into one row with their windows, and with the rows themselves as an Arrow stream."""
    step._check_columns(table.column_names)
    documents, rows, rejected = _documents(step, table)
    windows = encode(step.run, documents, MAX_CHARACTERS)
    rejects = [wire.reject(row, reason, "text") for row, reason in rejected]
    rejects += [wire.reject(rows[i], reason, "encode") for i, reason in windows.rejected.items()]
    batch = Shard(name="batch", path="", format="", start=0, rows=len(table))
    row = wire.tokenised_row(batch, windows, np.array(rows, dtype=np.int64), rejects, 0.0)
    return row.append_column("given", _as_bytes(table))


def _documents(step: Processor, table: pa.Table) -> tuple[list[Text], list[int], list[tuple[int, str]]]:
    columns = [table[name] for name in step.columns]
    return accepted_documents(step.run.task, columns, MAX_CHARACTERS, f"longer than {MAX_CHARACTERS} characters")


def _as_bytes(table: pa.Table) -> pa.Array:
    """Return an array of one value: a table as an Arrow stream."""
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    content = stream.getvalue()
    offsets = pa.py_buffer(np.array([0, content.size], dtype=np.int64))
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, content])


def _answer(step: Processor, table: pa.Table) -> pa.Table:
    """Return the rows of a batch with their answers."""
    given = pa.ipc.open_stream(table["given"].combine_chunks()[0].as_buffer()).read_all()
    task, error = step.run.task, table["error"][0].as_py()
    if error and table["cause"][0].as_py() == wire.START:
        raise RuntimeError(f"no actor comes up: {error}")
    windows, rows = wire.windows_of(table), wire.array_of(table, "rows")
    reasons = {reject["row"]: reject["reason"] for reject in wire.rejects_of(table)}
    if error:
        reasons = dict.fromkeys(rows.tolist(), error.partition("\n")[0]) | reasons
    answered = np.full(len(given), -1)
    answered[rows] = np.arange(len(rows))
    answered[list(reasons)] = -1
    index = pa.array(np.maximum(answered, 0), mask=answered < 0)
    columns = {name: given[name] for name in given.column_names}
    if reasons:  # a text that is not UTF-8 would break whatever reads the row next
        columns |= {name: readable(given[name]) for name in step.columns}
    if error:
        empty = {field.name: pa.nulls(len(given), field.type) for field in task.columns}
        empty |= {"n_tokens": pa.nulls(len(given), pa.int32()), "n_windows": pa.nulls(len(given), pa.int32())}
        answers: dict[str, Any] = empty | {"truncated": pa.nulls(len(given), pa.bool_())}
    else:
        documents = _documents(step, given)[0] if task.needs_documents else [""] * len(rows)
        values = wire.array_of(table, "values").reshape(-1, task.width)
        outputs = ModelOutputs(documents, windows, values, wire.array_of(table, "splits"), step.run.model.tokenizer)
        answers = answer_columns(task, outputs, index)
    answers["error"] = pa.array([reasons.get(row) for row in range(len(given))], pa.string())
    return pa.table(columns | {step.prefix + name: values for name, values in answers.items()})
