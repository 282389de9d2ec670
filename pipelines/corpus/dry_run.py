"""--dry-run: what a job would do, with an estimate of its tokens from a sample of the corpus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import pyarrow as pa

from pipelines.corpus.checking import gold_notes
from pipelines.corpus.plan import Job, JobPlan, cut_shards, make_job
from pipelines.corpus.summary import describe_budget, long_documents_policy
from pipelines.input.corpus import Corpus
from pipelines.input.documents import is_text_list, valid_documents
from pipelines.input.fields import column_of, field_type, take_field
from pipelines.input.inspection import Inspection, sample
from pipelines.input.reading import read_shard
from pipelines.input.shapes import Shape
from pipelines.input.shards import Scan
from pipelines.input.types import convert
from pipelines.output.record import RunRecord

T = TypeVar("T")
_SAMPLED_FILES = 8
_SAMPLED_ROWS = 128  # of each file or shard


@dataclass
class SampleCounts:
    """What tokenising a sample has counted."""

    rows: int = 0
    rejected: int = 0
    tokens: int = 0
    truncated: int = 0


def dry_run_report(plan: JobPlan, record: RunRecord | None) -> str:
    """Describe what a run would do: configuration, files, shards, and an estimate of the tokens.

    `record`: that of an output that was begun. The rows of files that are still to be staged are
    estimated.
    """
    unstaged = plan.inspection.unstaged
    inspection, tables = _estimate_unstaged(plan.inspection)
    corpus = cut_shards(plan, inspection, record)
    job = make_job(plan, corpus)
    tables += _sample_shards(job, corpus, set(unstaged))
    counts = _tokenise(job, tables)
    about = "about " if unstaged else ""
    tokens = counts.tokens / max(counts.rows, 1) * corpus.rows
    added = [job.prefix + name for name in job.task.added_columns.names]
    lines = {
        "input": f"{job.source}: {len(corpus.files)} {corpus.format} file(s), "
        f"{about}{corpus.rows:,} rows",
        "shards": f"{about}{len(corpus.shards):,} of at most {corpus.shards.largest:,} rows",
        "output": f"{job.folder}/{job.parts}".rstrip("/"),
        "model": f"{job.task.model_name(job.model)}: {job.task.options_class.task}",
        "text columns": ", ".join(job.text_columns),
        "columns": f"{', '.join(job.keep_columns)} + {', '.join(added)}",
        "device": f"{job.device} in {job.dtype}",
        "long texts": long_documents_policy(job.task),
        "token budget": f"{describe_budget(job)} a packed batch",
        "tokens": f"about {tokens:,.0f}, from a sample of {counts.rows:,} rows "
        f"({counts.truncated} of them truncated, {counts.rejected} rejected)",
    }
    described = [f"{name:<13}{value}" for name, value in lines.items()]
    described += [f"note         {note}" for note in (*inspection.notes, *gold_notes(job))]
    for path, reason in corpus.broken.items():
        described.append(f"note         {path}: cannot be read: {reason}")
    described.append("nothing was done (--dry-run)")
    return "\n".join(described)


def _estimate_unstaged(inspection: Inspection) -> tuple[Inspection, list[pa.Table]]:
    """Read the start of some files that a run would stage, and take all of them for like these.

    Returns the inspection with estimates, and the records that were read.
    """
    unstaged = inspection.unstaged
    if not unstaged:
        return inspection, []
    tables: list[pa.Table] = []
    shapes: dict[str, Shape] = {}
    notes = list(inspection.notes)
    rows_of_all = 0.0
    for block, shapes_of_file in sample(inspection, _some(unstaged)):
        tables.append(block.table)
        rows_of_all += len(block.table) / max(block.share, 1e-9)
        for name, shape in shapes_of_file.items():
            shapes[name] = shapes.get(name, Shape()).merge(shape)
        if block.note and block.note not in notes:
            notes.append(block.note)
    # Where none of the sampled files can be read, the others are taken for empty.
    scan = Scan(round(rows_of_all / max(len(tables), 1)), 0)
    columns = shapes or pa.unify_schemas([table.schema for table in tables] or [pa.schema([])])
    estimated = replace(
        inspection,
        scans={**inspection.scans, **dict.fromkeys(unstaged, scan)},
        columns={**inspection.columns, **dict.fromkeys(unstaged, columns)},
        unstaged=(),
        notes=tuple(notes),
    )
    return estimated, tables


def _sample_shards(job: Job, corpus: Corpus, unstaged: set[str]) -> list[pa.Table]:
    """Read the texts of some shards of files that are read in place."""
    in_place = [shard for shard in _some(corpus.shards) if not shard.pieces[0].part]
    in_place = [shard for shard in in_place if shard.pieces[0].path not in unstaged]
    columns = list(dict.fromkeys(column_of(job.schema, path) for path in job.text_columns))
    tables: list[pa.Table] = []
    for shard in in_place:
        tables.append(read_shard(job.source, job.folder, shard, job.schema, columns).table)
    return tables


def _some(things: Sequence[T]) -> Sequence[T]:
    """Return at most `_SAMPLED_FILES` of some things, spread over all of them."""
    step = max(-(-len(things) // _SAMPLED_FILES), 1)
    return things[::step]


def _tokenise(job: Job, tables: Sequence[pa.Table]) -> SampleCounts:
    """Tokenise the first rows of each table that has all text columns."""
    counts = SampleCounts()
    for table in tables:
        wanted = {column_of(job.schema, path) for path in job.text_columns}
        if not wanted <= set(table.column_names):
            continue
        first = table.slice(0, _SAMPLED_ROWS)
        columns = [_column(first, path, job.schema) for path in job.text_columns]
        inputs = job.task.options_class.input_names(len(columns))
        documents, _, rejects = valid_documents(columns, inputs, reads_words=job.task.reads_words)
        windows = job.task.encode(job.model.tokenizer, documents)
        counts.rows += len(documents) + len(rejects)
        not_encoded = {number % len(documents) for number in windows.rejected}
        counts.rejected += len(rejects) + len(not_encoded)
        counts.tokens += len(windows.input_ids)
        truncated_KD = windows.truncated.reshape(job.task.readings, -1)
        counts.truncated += int(truncated_KD.any(axis=0).sum())
    return counts


def _column(table: pa.Table, path: str, schema: pa.Schema) -> pa.ChunkedArray:
    """Return a column of texts; lists, which are text in a file that is not staged, as lists."""
    column = take_field(table, path, schema)
    type_ = field_type(schema, path)
    if type_ is not None and is_text_list(type_):
        return convert(column, type_)
    return column
