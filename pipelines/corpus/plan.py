"""The plan of a corpus job: its options become what workers need, with everything checked before
work begins.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Any
from uuid import uuid4

import pyarrow as pa

from pipelines.checkpoints import Checkpoint
from pipelines.errors import UserError
from pipelines.inference.documents import ADDED, clashing
from pipelines.inference.loading import ModelRun, resolve_run
from pipelines.input.columns import partition, unify
from pipelines.input.documents import is_text, is_text_list
from pipelines.input.inspection import Inspection, inspect_input, sample
from pipelines.input.names import first_portable_name, portable_name
from pipelines.input.text import TextOptions
from pipelines.input.types import stored_type
from pipelines.job_options import CorpusOptions
from pipelines.options import column_option
from pipelines.output.folder import read_files
from pipelines.output.record import PARTS, RunRecord, read_record
from pipelines.raydata.placement import device_of_actors
from pipelines.storage import Folder, Location
from pipelines.tasks.base import task_class

_SAMPLED_FILES = 16


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
    device = device_of_actors(options.device)
    run = resolve_run(options, checkpoint, task, device, options.batch_timeout_s)
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
