"""The plan of a corpus job: its options become what workers need, with everything checked before
work begins.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any
from uuid import uuid4

import pyarrow as pa

from pipelines.checkpoints import Checkpoint
from pipelines.errors import UserError
from pipelines.input.columns import partition, unify
from pipelines.input.documents import is_text, is_text_list
from pipelines.input.inspection import Inspection, inspect_input, sample
from pipelines.input.names import first_portable_name, portable_name
from pipelines.input.text import TextOptions
from pipelines.input.types import stored_type
from pipelines.options import CorpusOptions, ModelOptions, column_option
from pipelines.output.folder import read_files
from pipelines.output.record import PARTS, RunRecord, read_record
from pipelines.raydata.cluster import cluster_resources
from pipelines.raydata.placement import is_fixed, wait_for_nodes
from pipelines.storage import Folder, Location
from pipelines.tasks.base import Task, task_class

_SAMPLED_FILES = 16
ADDED = ("n_tokens", "n_windows", "truncated")
"""The columns that a job adds beside those of its task."""


@dataclass(frozen=True, kw_only=True)
class ModelRun:
    """What an actor needs to know: a model, its task, and how it is run."""

    model: Checkpoint
    task: Task
    device: str
    dtype: str
    budget_tokens: int | None
    """The most tokens in a packed batch; None: as many as the memory of an actor's GPU allows."""
    batch_timeout_s: float
    """The seconds that a packed batch may take before its actor is ended and replaced."""


@dataclass(frozen=True, kw_only=True)
class Job(ModelRun):
    """What workers need to know of a job; they do not see the options themselves."""

    source: Location
    folder: Folder
    parts: str
    """The folder of the parts in the output."""
    run: str
    """The identity of this run, which the output's lease has, too."""
    schema: pa.Schema
    text_columns: list[str]
    keep_columns: list[str]
    prefix: str
    max_characters: int
    """Longer texts are cut if long documents are truncated, else rejected: none can exhaust the
    memory.
    """


def plan_job(
    options: CorpusOptions, with_weights: bool = True
) -> tuple[Job, Inspection, dict[str, Any]]:
    """Check everything that can be checked without work: the input and its columns, the model, the
    output.

    Returns the job, still without the columns of its input (`with_columns`), the files of the
    input, and the
    fingerprint: what the answers depend on, without the model's weights, which take long to read,
    unless `with_weights`. Starts no Ray unless the device depends on it. Raises ValueError for a
    mistake.
    """
    input_location, model, output_location = options.required()
    options.check_inputs(options.text_columns)
    source, target = Location.of_user(input_location), Folder.at(output_location)
    record = None if options.overwrite else read_record(target)
    parts = record.parts if record else PARTS
    found = _inspect_input(source, target, record, options)
    seen = _seen_columns(found, list(options.text_columns.values()))
    _check_text_columns(options, seen)
    checkpoint = Checkpoint.open(model)
    task_cls = task_class(options.task)
    task_cls.check(checkpoint)
    task = task_cls.from_checkpoint(checkpoint, options)
    run = resolve_run(options, checkpoint, task, options.batch_timeout_s)
    job = Job(
        **{field.name: getattr(run, field.name) for field in fields(run)},
        source=source,
        folder=target,
        parts=parts,
        run=uuid4().hex,
        schema=seen,
        text_columns=list(options.text_columns.values()),
        keep_columns=[],
        prefix=options.output_prefix,
        max_characters=options.max_characters,
    )
    _check_added_columns(job, options, seen.names)
    names = ("text_columns", "prefix", "dtype", "max_characters")
    fingerprint = {"source": str(source)} | {name: getattr(job, name) for name in names}
    fingerprint |= {
        "keep_columns": options.keep_columns,
        "reading": found.options.changed() or None,
    }
    fingerprint |= {"limit": options.limit, "task": options.task, **asdict(task)}
    if with_weights:
        fingerprint["model"] = task.fingerprint(checkpoint)
    return job, found, json.loads(json.dumps(fingerprint))


def with_columns(job: Job, options: CorpusOptions, schema: pa.Schema) -> Job:
    """Return the job with the columns of its input, once these are known of every file; UserError
    for wrong ones.
    """
    _check_text_columns(options, schema)
    keep = list(options.keep_columns) if options.keep_columns is not None else schema.names
    if absent := [name for name in keep if name not in schema.names]:
        known = ", ".join(schema.names)
        raise UserError(
            f"input has no column {', '.join(absent)}; it has {known} (see --keep-columns)"
        )
    _check_added_columns(job, options, schema.names)
    return replace(job, schema=schema, keep_columns=keep)


def _inspect_input(
    source: Location, target: Folder, record: RunRecord | None, options: CorpusOptions
) -> Inspection:
    """Find the files of the input; those that an earlier run into the same output knows are not
    read again.
    """
    reading = TextOptions(
        **{each.name: getattr(options, each.name) for each in fields(TextOptions)}
    )
    known = record is not None and record.fingerprint.get("source") == str(source)
    kept = options.keep_columns
    return inspect_input(
        source,
        reading,
        output=target,
        wanted=None if kept is None else frozenset([*kept, *options.text_columns.values()]),
        earlier=read_files(target) if known else None,
        name_of=first_portable_name if record is not None and not record.parts else portable_name,
    )


def _seen_columns(found: Inspection, wanted: list[str]) -> pa.Schema:
    """Return the columns that are known before files are staged: some of these are read from their
    start.
    """
    malformed = ""
    types = unify(found) | {each.name: each.type for each in partition(found).schema}
    for block, shapes in sample(found, found.unstaged[:_SAMPLED_FILES]):
        if block is not None:
            if block.malformed:
                _, reason, _ = block.malformed[0]
                first = f"no record of it is a row of {found.format}: the first {reason}"
                malformed = malformed or first
            # What is text in its first rows says nothing of the others yet.
            seen = {
                each.name: pa.string() if shapes else stored_type(each.type)
                for each in block.table.schema
            }
            types |= {name: type_ for name, type_ in seen.items() if name not in types}
        if all(name in types for name in wanted):
            break
    if not types:
        raise UserError(
            f"input '{found.source}' "
            f"{f'cannot be read: {malformed}' if malformed else 'has no rows'}"
        )
    return pa.schema(list(types.items()))


def clashing(added: Iterable[str], names: Iterable[str]) -> list[str]:
    """Return those of `names` that one of `added` has, too, for readers that ignore case."""
    folded = {name.casefold() for name in added}
    return [name for name in names if name.casefold() in folded]


def _check_added_columns(job: Job, options: CorpusOptions, names: list[str]) -> None:
    added = [job.prefix + name for name in [*job.task.columns.names, *ADDED]]
    kept = names if options.keep_columns is None else options.keep_columns
    if clash := clashing(added, [name for name in kept if name in names]):
        raise UserError(
            f"input already has {', '.join(clash)}, which this job adds: put a prefix before ours "
            "with "
            f"--output-prefix, or leave the input's out with --keep-columns"
        )


def _check_text_columns(options: CorpusOptions, schema: pa.Schema) -> None:
    for name, column in options.text_columns.items():
        flag = f"--{column_option(name).replace('_', '-')}"
        if column not in schema.names:
            raise UserError(
                f"input has no column {column!r}; it has {', '.join(schema.names)} (see {flag})"
            )
        stored = schema.field(column).type
        if not is_text(stored) and not (name in options.list_inputs and is_text_list(stored)):
            raise UserError(f"column {column!r} holds {stored}, not text (see {flag})")


def resolve_run(
    options: ModelOptions, checkpoint: Checkpoint, task: Task, batch_timeout_s: float
) -> ModelRun:
    """Choose device, dtype and token budget; UserError for a device that is missing, or a dtype it
    does not have.
    """
    from pipelines.inference.predictor import (  # with torch: not for all that uses Job
        CPU_TOKENS,
        DTYPE,
        warn_of_slow_dtype,
    )

    device = _device(options.device)
    dtype = DTYPE[device] if options.dtype == "auto" else options.dtype
    if device == "cpu" and dtype in ("float16", "float8"):
        raise UserError(f"dtype {dtype} is for GPUs; on CPUs use bfloat16 or float32")
    warn_of_slow_dtype(device, dtype)
    budget = options.budget_tokens or (CPU_TOKENS if device == "cpu" else None)
    return ModelRun(
        model=checkpoint,
        task=task,
        device=device,
        dtype=dtype,
        budget_tokens=budget,
        batch_timeout_s=batch_timeout_s,
    )


def _device(device: str) -> str:
    import torch

    if device == "cpu":
        return device
    if torch.cuda.is_available():
        return "cuda"
    joined = os.environ.get("RAY_ADDRESS", "local") not in ("", "local")
    if joined:
        wait_for_nodes()
    if (device == "cuda" or joined) and cluster_resources().get("GPU", 0) >= 1:
        return "cuda"
    may_start_gpus = (device == "cuda" or joined) and not is_fixed()
    if device == "cuda" and not may_start_gpus:
        raise UserError("device cuda: there is no GPU here or in the Ray cluster; use cpu or auto")
    if device == "auto" and may_start_gpus:
        raise UserError(
            "device auto: the Ray cluster has no GPU now, but its autoscaler may start some; say "
            "cuda to wait for "
            "them, or cpu"
        )
    return device if device == "cuda" else "cpu"
