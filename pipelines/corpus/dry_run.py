"""--dry-run: what a job would do, with an estimate of its tokens from a sample of the corpus."""

from __future__ import annotations

import numpy as np

from pipelines.corpus.plan import ADDED, Job
from pipelines.corpus.summary import long_documents_policy
from pipelines.input.documents import valid_documents
from pipelines.input.plan import read_shard
from pipelines.input.shards import Corpus
from pipelines.storage import redact_credentials

_SAMPLED_SHARDS, _SAMPLED_ROWS = 8, 128


def dry_run_report(job: Job, corpus: Corpus) -> str:
    """Describe what a run would do: its resolved configuration, files, shards, and tokens estimated from a sample."""
    tokens, truncated, rejected, sampled = _sample(job, corpus)
    columns = [job.prefix + name for name in (*job.task.columns.names, *ADDED)]
    lines = {
        "input": f"{redact_credentials(job.source)}: {len(corpus.files)} {corpus.format} file(s), {corpus.rows:,} rows",
        "shards": f"{len(corpus.shards)} of at most {corpus.shard_rows:,} rows",
        "output": str(job.folder),
        "model": f"{redact_credentials(job.model.model)}: {job.task.options_class.task}",
        "text columns": ", ".join(job.text_columns),
        "columns": f"{', '.join(job.keep_columns)} + {', '.join(columns)}",
        "device": f"{job.device} in {job.dtype}",
        "long texts": long_documents_policy(job.task),
        "token budget": f"{job.budget_tokens:,} a packed batch",
        "tokens": f"about {tokens / max(sampled, 1) * corpus.rows:,.0f}, from a sample of {sampled:,} rows"
        f" ({truncated} of them truncated, {rejected} rejected)",
    }
    return "\n".join(f"{name:<13}{value}" for name, value in lines.items()) + "\nnothing was done (--dry-run)"


def _sample(job: Job, corpus: Corpus) -> tuple[int, int, int, int]:
    """Return (tokens, truncated documents, rejected rows, rows) of a sample over the whole corpus."""
    tokens = truncated = rejected = sampled = 0
    picked = np.unique(np.linspace(0, len(corpus.shards) - 1, _SAMPLED_SHARDS, dtype=int))
    for shard in (corpus.shards[i] for i in picked):
        read = read_shard(job.source, shard, job.schema, list(dict.fromkeys(job.text_columns)))
        columns = [read.table[name].slice(0, _SAMPLED_ROWS) for name in job.text_columns]
        documents, _, rejects = valid_documents(columns, tuple(job.task.options_class.inputs))
        windows = job.task.encode(job.model.tokenizer, documents)
        tokens += len(windows.input_ids)
        truncated += int(windows.truncated.sum())
        rejected += len(rejects) + len(windows.rejected)
        sampled += len(documents) + len(rejects)
    return tokens, truncated, rejected, sampled
