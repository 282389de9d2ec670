"""The plan of a corpus job: its options, and everything that can be checked before work begins.

A job comes about in four values, each made once from the one before: a JobPlan with the Inspection
of the input, the Inspection with what staging has read (staging.py), the Corpus with its shards
(input/plan.py), and the Job, which is what workers see.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from uuid import uuid4

import pyarrow as pa

from modernbert.stored import Json
from pipelines.checkpoints import Checkpoint
from pipelines.corpus.shard_size import shard_size
from pipelines.errors import UserError
from pipelines.inference.documents import clashing
from pipelines.inference.loading import ModelRun, resolve_run
from pipelines.input.columns import corpus_columns
from pipelines.input.corpus import Corpus
from pipelines.input.documents import is_text, wrong_type
from pipelines.input.fields import column_of, describe_missing, field_type, prefixes
from pipelines.input.inspection import Inspection, inspect_input, sample
from pipelines.input.names import first_portable_name, portable_name
from pipelines.input.plan import cut
from pipelines.input.shapes import Shape
from pipelines.input.text import TextOptions
from pipelines.input.types import stored_type
from pipelines.job_options import CorpusOptions
from pipelines.option_types import column_option
from pipelines.output.planned_files import read_files
from pipelines.output.record import PARTS, RunRecord, read_record
from pipelines.output.webhook import Webhook
from pipelines.raydata.placement import device_of_actors
from pipelines.storage import Folder, Location
from pipelines.tasks.base import Task, task_class

_SAMPLED_FILES = 16


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """What is known of a job before any work is done."""

    options: CorpusOptions
    source: Location
    folder: Folder
    """The output."""
    parts: str
    """The folder of the parts in the output."""
    attempt_id: str
    """The identity of this attempt, which the output's lease has, too."""
    model: ModelRun
    inspection: Inspection
    fingerprint: Json
    """What the answers depend on, as JSON."""
    webhook: Webhook | None = None
    """What is told how the job has ended."""


@dataclass(frozen=True, kw_only=True)
class Job(ModelRun):
    """What workers need to know of a job; they do not see the options themselves."""

    source: Location
    folder: Folder
    """The output."""
    parts: str
    """The folder of the parts in the output."""
    attempt_id: str
    """The identity of this attempt, which the output's lease has, too."""
    schema: pa.Schema
    """The columns of the input."""
    text_columns: list[str]
    gold_column: str | None
    """What answers are compared with."""
    keep_columns: list[str]
    stored_names: dict[str, str]
    """What kept columns are called in the output whose names are those of ours."""
    prefix: str
    max_characters: int
    """Longer texts are cut where long documents are truncated, else rejected: none can exhaust the
    memory.
    """


def plan_job(options: CorpusOptions, with_weights: bool = True) -> JobPlan:
    """Check everything that can be checked without work: input, columns, model and output.

    Starts no Ray unless the device depends on it. Without `with_weights` the fingerprint lacks the
    model's weights, which take long to read. Raises ValueError for a mistake.
    """
    input_location, model, output_location = options.required()
    webhook = None if options.notify is None else Webhook.of_user(options.notify)
    options.check_inputs(options.text_columns)
    source = Location.of_user(input_location)
    folder = Folder.at(output_location)
    record = None if options.overwrite else read_record(folder)

    inspection = _inspect(source, folder, record, options)
    # The columns of all files are known only when text files are staged (`make_job`), which is
    # work; most mistakes show in those that are known, or in the first records.
    seen_columns = _seen_columns(inspection, options.read_columns)
    _check_text_columns(options, seen_columns, are_known=not inspection.unstaged)

    checkpoint = Checkpoint.open(model, route=options.route)
    task_cls = task_class(options.task)
    task_cls.check(checkpoint)
    task = task_cls.from_checkpoint(checkpoint, options)
    _check_gold_column(options, task, seen_columns, are_known=not inspection.unstaged)
    if options.review_rows is not None and not task.says_how_sure:
        raise UserError("--review needs answers that say how sure they are, which these do not")
    _check_added_columns(options, task, seen_columns)
    device = device_of_actors(options.device)
    model_run = resolve_run(options, checkpoint, task, device, options.batch_timeout_s)
    return JobPlan(
        options=options,
        source=inspection.source,
        folder=folder,
        parts=record.parts if record else PARTS,
        attempt_id=uuid4().hex,
        model=model_run,
        inspection=inspection,
        fingerprint=_fingerprint(options, source, inspection, model_run, with_weights),
        webhook=webhook,
    )


def cut_shards(
    plan: JobPlan, inspection: Inspection, record: RunRecord | None, present: Collection[str] = ()
) -> Corpus:
    """Cut the input of a job into shards.

    Args:
        plan: the job.
        inspection: its input, of which all files must be staged that need it.
        record: that of the output, if the run continues one.
        present: the names of the shards that the output holds.

    Raises:
        UserError: for an input without rows, and for one where no file can be read.
    """
    return cut(
        inspection,
        shard_size(plan.model, plan.options.rows_per_file),
        plan.options.limit,
        former_rows=record.shard_rows if record else None,
        present=present,
    )


def make_job(plan: JobPlan, corpus: Corpus) -> Job:
    """Make the job of a plan, now that all columns are known; UserError for wrong ones."""
    options = plan.options
    names = corpus.schema.names
    _check_text_columns(options, corpus.schema, are_known=True)
    keep_columns = names if options.keep_columns is None else list(options.keep_columns)
    absent = [name for name in keep_columns if name not in names]
    if absent:
        raise UserError(
            f"input has no column {', '.join(absent)}; it has {', '.join(names)} "
            "(see --keep-columns)"
        )
    _check_gold_column(options, plan.model.task, corpus.schema, are_known=True)
    stored_names = _check_added_columns(options, plan.model.task, corpus.schema)
    of_model = {field.name: getattr(plan.model, field.name) for field in fields(ModelRun)}
    return Job(
        **of_model,
        source=plan.source,
        folder=plan.folder,
        parts=plan.parts,
        attempt_id=plan.attempt_id,
        schema=corpus.schema,
        text_columns=list(options.text_columns.values()),
        gold_column=options.checked_column,
        keep_columns=keep_columns,
        stored_names=stored_names,
        prefix=options.output_prefix,
        max_characters=options.max_characters,
    )


def _fingerprint(
    options: CorpusOptions,
    source: Location,
    inspection: Inspection,
    model_run: ModelRun,
    with_weights: bool,
) -> Json:
    """Return what the answers depend on, as JSON has it."""
    fingerprint: Json = {
        "source": str(source),
        "text_columns": list(options.text_columns.values()),
        # It changes no answer, but figures are those of all rows of an output.
        "gold_column": options.checked_column,
        "prefix": options.output_prefix,
        "dtype": model_run.dtype,
        "max_characters": options.max_characters,
        "keep_columns": options.keep_columns,
        "reading": inspection.options.changed() or None,
        "limit": options.limit,
        "task": options.task,
        **model_run.task.settings,
    }
    if with_weights:
        fingerprint["model"] = model_run.task.fingerprint(model_run.model)
    as_stored: Json = json.loads(json.dumps(fingerprint))
    return as_stored


def _inspect(
    source: Location, folder: Folder, record: RunRecord | None, options: CorpusOptions
) -> Inspection:
    """Find the files of the input; those that an earlier run knows are not read again."""
    reading = {field.name: getattr(options, field.name) for field in fields(TextOptions)}
    is_same_input = record is not None and record.fingerprint.get("source") == str(source)
    # A field of a column is read with all of it.
    texts = frozenset(name for path in options.read_columns for name in prefixes(path))
    wanted = None
    if options.keep_columns is not None:
        wanted = frozenset(options.keep_columns) | texts
    has_former_names = record is not None and not record.parts
    return inspect_input(
        source,
        TextOptions(**reading),
        output=folder,
        wanted=wanted,
        texts=texts,
        earlier=read_files(folder) if is_same_input else None,
        name_of=first_portable_name if has_former_names else portable_name,
    )


def _seen_columns(inspection: Inspection, wanted: Sequence[str]) -> pa.Schema:
    """Return the columns that are known before files are staged.

    Of some files that are to be staged, the first records are read, until all `wanted` are seen.
    """
    first_malformed = ""
    columns = corpus_columns(inspection)
    types = {column.name: column.type for column in columns.schema}
    # Where no file is left, the reason is said in place of "has no rows".
    inspection = replace(inspection, broken={**inspection.broken, **columns.misfits})
    for block, shapes in sample(inspection, inspection.unstaged[:_SAMPLED_FILES]):
        if block.malformed and not first_malformed:
            _, reason, _ = block.malformed[0]
            first_malformed = f"no record of it is a row of {inspection.format}: the first {reason}"
        for column in block.table.schema:
            # What is text in its first rows says nothing of the others yet.
            type_ = pa.string() if shapes else stored_type(column.type)
            if column.name in shapes and any(path.startswith(f"{column.name}.") for path in wanted):
                type_ = _seen_type(shapes[column.name])
            types.setdefault(column.name, type_)
        schema = pa.schema(list(types.items()))
        if all(field_type(schema, path) is not None for path in wanted):
            break
    if not types and first_malformed:
        raise UserError(f"input '{inspection.source}' cannot be read: {first_malformed}")
    if not types:
        raise UserError(f"input '{inspection.source}' has no rows")
    return pa.schema(list(types.items()))


def _seen_type(shape: Shape) -> pa.DataType:
    """Return the type of a column of which some values are seen: its fields are known, no more."""
    if not shape.kinds - {"null"}:
        return pa.null()
    if shape.fields:
        return pa.struct([(name, _seen_type(field)) for name, field in shape.fields.items()])
    return pa.string()


def _check_added_columns(options: CorpusOptions, task: Task, schema: pa.Schema) -> dict[str, str]:
    """Raise UserError where a column that is kept has the name of one that the job adds.

    The column of gold is kept under another name then, which is returned under its own.
    """
    names = schema.names
    added = [options.output_prefix + name for name in task.added_columns.names]
    kept = names if options.keep_columns is None else options.keep_columns
    kept = [name for name in kept if name in names]
    clash = clashing(added, kept)
    stored_names: dict[str, str] = {}
    gold = options.checked_column
    if gold is not None and (holder := column_of(schema, gold)) in clash:
        stored_name = f"{holder}_of_input"
        clash = [name for name in clash if name != holder]
        clash += clashing([*added, *kept], [stored_name])
        stored_names[holder] = stored_name
    if clash:
        raise UserError(
            f"input already has {', '.join(clash)}, which this job adds: put a prefix before ours "
            "with --output-prefix, or leave the input's out with --keep-columns"
        )
    return stored_names


def _check_gold_column(
    options: CorpusOptions, task: Task, schema: pa.Schema, *, are_known: bool
) -> None:
    """Raise UserError for a column of gold that is missing or holds something else.

    `are_known`: whether all types are known; before text files are staged, lists look like text.
    """
    column = options.checked_column
    if column is None:
        return
    types = task.gold_types()
    stored = field_type(schema, column)
    if stored is None:
        raise UserError(f"{describe_missing(schema, column)} (see --gold-column)")
    if not are_known and is_text(stored):
        return
    if not types.fit(stored):
        raise UserError(
            f"column {column!r} holds {stored}, not {types.content} (see --gold-column)"
        )


def _check_text_columns(options: CorpusOptions, schema: pa.Schema, *, are_known: bool) -> None:
    """Raise UserError for a text column that is missing or holds something else.

    `are_known`: whether all types are known; before text files are staged, lists look like text.
    """
    for name, column in options.text_columns.items():
        flag = f"--{column_option(name).replace('_', '-')}"
        stored = field_type(schema, column)
        if stored is None:
            raise UserError(f"{describe_missing(schema, column)} (see {flag})")
        if not are_known and is_text(stored):
            continue
        takes_lists = name in options.list_inputs
        wanted = wrong_type(stored, reads_words=options.reads_words, takes_lists=takes_lists)
        if wanted is not None:
            raise UserError(f"column {column!r} holds {stored}, not {wanted} (see {flag})")
