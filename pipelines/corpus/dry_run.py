"""--dry-run: what a job would do, with an estimate of its tokens from a sample of the corpus."""

from __future__ import annotations

import pyarrow as pa

from pipelines.corpus.plan import Job, with_columns
from pipelines.corpus.summary import describe_budget, long_documents_policy
from pipelines.inference.documents import ADDED
from pipelines.input.documents import valid_documents
from pipelines.input.inspection import Inspection, sample
from pipelines.input.plan import cut, read_shard
from pipelines.input.shapes import Shape
from pipelines.input.shards import Scan
from pipelines.job_options import CorpusOptions

_SAMPLED, _SAMPLED_ROWS = 8, 128


def dry_run_report(
    job: Job, found: Inspection, options: CorpusOptions, shard_rows: int | None
) -> str:
    """Describe what a run would do: its resolved configuration, files, shards, and tokens estimated
    from a sample.
    """
    about = "about " if found.unstaged else ""
    tables = _sample_unstaged(found)
    corpus = cut(found, options.limit, shard_rows)
    job = with_columns(job, options, corpus.schema)
    rows = corpus.rows
    planned = [
        shard for shard in corpus.shards if shard.path not in found.unstaged and not shard.part
    ]
    picked = planned[:: max(-(-len(planned) // _SAMPLED), 1)]
    wanted = list(dict.fromkeys(job.text_columns))
    tables += [
        read_shard(job.source, job.folder, shard, job.schema, wanted).table for shard in picked
    ]
    tokens, truncated, rejected, sampled = _count(job, tables)
    columns = [job.prefix + name for name in (*job.task.columns.names, *ADDED)]
    lines = {
        "input": f"{job.source}: {len(corpus.files)} {corpus.format} file(s), {about}{rows:,} rows",
        "shards": f"{about}{len(corpus.shards)} of at most {corpus.shard_rows:,} rows",
        "output": f"{job.folder}/{job.parts}".rstrip("/"),
        "model": f"{job.model.name}: {job.task.options_class.task}",
        "text columns": ", ".join(job.text_columns),
        "columns": f"{', '.join(job.keep_columns)} + {', '.join(columns)}",
        "device": f"{job.device} in {job.dtype}",
        "long texts": long_documents_policy(job.task),
        "token budget": f"{describe_budget(job)} a packed batch",
        "tokens": f"about {tokens / max(sampled, 1) * rows:,.0f}, from a sample of {sampled:,} rows"
        f" ({truncated} of them truncated, {rejected} rejected)",
    }
    notes = [
        *found.notes,
        *(f"{path}: cannot be read: {reason}" for path, reason in found.broken.items()),
    ]
    described = [f"{name:<13}{value}" for name, value in lines.items()] + [
        f"note         {note}" for note in notes
    ]
    return "\n".join(described) + "\nnothing was done (--dry-run)"


def _sample_unstaged(found: Inspection) -> list[pa.Table]:
    """Read the start of some files that a run would stage, and estimate the rows of all of them
    from these.
    """
    tables, shapes, rows, share = [], dict[str, Shape](), 0.0, 0.0
    paths = found.unstaged[:: max(-(-len(found.unstaged) // _SAMPLED), 1)]
    for block, block_shapes in sample(found, paths):
        if block is not None:
            found.notes += [block.note] if block.note and block.note not in found.notes else []
            tables.append(block.table)
            rows, share = rows + len(block.table) / max(block.share, 1e-9), share + 1
            shapes |= {
                name: shapes.get(name, Shape()).merge(shape) for name, shape in block_shapes.items()
            }
    for path in found.unstaged:
        found.scans[path] = Scan(round(rows / share), 0)
        found.columns[path] = shapes or pa.unify_schemas([table.schema for table in tables])
    return tables


def _count(job: Job, tables: list[pa.Table]) -> tuple[int, int, int, int]:
    """Return (tokens, truncated documents, rejected rows, rows) of a sample over the whole
    corpus.
    """
    tokens = truncated = rejected = sampled = 0
    for table in tables:
        columns = [
            table[name].slice(0, _SAMPLED_ROWS)
            for name in job.text_columns
            if name in table.column_names
        ]
        if len(columns) < len(job.text_columns):
            continue
        documents, _, rejects = valid_documents(
            columns, job.task.options_class.input_names(len(columns))
        )
        windows = job.task.encode(job.model.tokenizer, documents)
        tokens += len(windows.input_ids)
        truncated += int(windows.truncated.sum())
        rejected += len(rejects) + len(windows.rejected)
        sampled += len(documents) + len(rejects)
    return tokens, truncated, rejected, sampled
