"""What a corpus job tells: the plan of a dry run, the summary on the terminal, and the report."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.corpus.plan import ADDED, Job
from pipelines.input.documents import valid_documents
from pipelines.input.plan import read_shard
from pipelines.input.shards import Corpus
from pipelines.output import folder as output
from pipelines.output.shard_stats import LENGTH_EDGES, SCORE_EDGES
from pipelines.report.progress import format_duration
from pipelines.storage import redact_credentials
from pipelines.tasks.base import Task

_SAMPLED_SHARDS, _SAMPLED_ROWS, _SHOWN_LABELS, _SHOWN_ROWS, _SHOWN_WIDTH = 8, 128, 12, 5, 60
_SLOWEST, _BINS = 10, 120
_PACKAGES = ("modernbert-ray", "ray", "torch", "tokenizers", "pyarrow", "numpy")


def input_changes(earlier: Corpus | None, corpus: Corpus) -> list[str]:
    """What has become of the input since the last run."""
    if earlier is None:
        return []
    before, now = ({file.path: file.version for file in each.files} for each in (earlier, corpus))
    changed = sum(path in before and before[path] != version for path, version in now.items())
    gone = sorted(before.keys() - now.keys() - corpus.broken.keys())
    lines = []
    if new := len(now.keys() - before.keys()):
        lines.append(f"input      {new:>9,}  new files")
    if changed:
        lines.append(f"input      {changed:>9,}  changed files, whose rows are replaced")
    if gone:
        shown = ", ".join(gone[:3]) + (", …" if len(gone) > 3 else "")
        lines.append(f"input      {len(gone):>9,}  files are gone, and their rows stay in the output: {shown}")
    return lines


def format_summary(
    job: Job, totals: dict[str, Any], attempt: dict[str, Any], failed: dict[str, str], changes: list[str], skipped: int
) -> str:
    """What a run did, for the terminal."""
    lines = list(changes)
    if skipped:
        lines.append(f"{skipped} shards were in the output already")
    if totals["rows"]:
        seconds, labels, rejects = attempt["seconds"], totals["labels"], totals["rejects"]
        lines += [
            f"rows       {totals['rows']:,}: {totals['labelled']:,} labelled, {totals['rejected']:,} rejected"
            f" in {format_duration(seconds)}",
            f"tokens     {totals['tokens']:,}, {totals['tokens'] / seconds:,.0f} tokens/s"
            f"{_truncated(job.task, totals['truncated'])}",
            f"batches    {totals['batches']:,}, filled to {totals['fill'] or 0:.1%} of {job.budget_tokens:,} tokens",
        ]
        shown = list(labels.items())[:_SHOWN_LABELS]
        lines += [f"label      {count:>9,}  {label}" for label, count in shown]
        if len(labels) > len(shown):
            rest = sum(labels.values()) - sum(count for _, count in shown)
            lines.append(f"           {rest:>9,}  {len(labels) - len(shown)} other labels")
        lines += [f"rejected   {count:>9,}  {reason}" for reason, count in list(rejects.items())[:_SHOWN_LABELS]]
    lines += [f"failed     {name}: {error}" for name, error in failed.items()]
    lines += _first_rows(job)
    lines.append(f"output     {job.folder}")
    if totals["rejects"]:
        lines.append(f"rejects    {job.folder}/{output.REJECTED}")
    lines.append(f"report     {job.folder}/{output.REPORT}")
    return "\n".join(lines)


def _first_rows(job: Job) -> list[str]:
    """A few labelled rows, to see at a glance that the answers make sense."""
    first = min(output.committed(job.folder), default=None)
    if first is None or not set(job.text_columns) <= set(job.keep_columns):
        return []
    names = {job.prefix + name: name for name in job.task.columns.names}
    columns, data = [*job.text_columns, *names], pa.BufferReader(job.folder.read(f"{first}.parquet"))
    table = pq.read_table(data, columns=columns, partitioning=None)
    shown = []
    for row in table.slice(0, _SHOWN_ROWS).to_pylist():
        text = " | ".join(" ".join(str(row[column]).split()) for column in job.text_columns)
        shown.append((job.task.preview({name: row[stored] for stored, name in names.items()}), text))
    width = min(max((len(answer) for answer, _ in shown), default=0), _SHOWN_WIDTH)
    return [f"example    {answer:<{width}}  {text[:70]}" for answer, text in shown]


def dry_run_report(job: Job, corpus: Corpus) -> str:
    """What a run would do: the resolved configuration, the files and shards, and the tokens estimated from a sample."""
    tokens, truncated, rejected, sampled = _sample(job, corpus)
    columns = [job.prefix + name for name in (*job.task.columns.names, *ADDED)]
    shown = {
        "input": f"{redact_credentials(job.source)}: {len(corpus.files)} {corpus.format} file(s), {corpus.rows:,} rows",
        "shards": f"{len(corpus.shards)} of at most {corpus.shard_rows:,} rows",
        "output": str(job.folder),
        "model": f"{redact_credentials(job.model.model)}: {job.task.options_class.task}",
        "text columns": ", ".join(job.text_columns),
        "columns": f"{', '.join(job.keep_columns)} + {', '.join(columns)}",
        "device": f"{job.device} in {job.dtype}",
        "long texts": _long_documents(job.task),
        "token budget": f"{job.budget_tokens:,} a packed batch",
        "tokens": f"about {tokens / max(sampled, 1) * corpus.rows:,.0f}, from a sample of {sampled:,} rows"
        f" ({truncated} of them truncated, {rejected} rejected)",
    }
    return "\n".join(f"{name:<13}{value}" for name, value in shown.items()) + "\nnothing was done (--dry-run)"


def start_attempt(job: Job) -> dict[str, Any]:
    """What is kept of a run as it begins: `outcome` and `seconds` stay empty where it dies."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "seconds": None,
        "outcome": None,
        "rows": None,
        "tokens": None,
        "host": platform.node(),
        "device": f"{job.device} in {job.dtype}",
        "budget_tokens": job.budget_tokens,
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
    }


def report(job: Job, record: dict[str, Any], every: pa.Table) -> dict[str, Any]:
    """What a report shows of the output: `record`, and the receipts `every` of all its shards."""
    totals, attempts = record["totals"], record["attempts"]
    last = attempts[-1]
    longest = int(max(np.flatnonzero(totals["lengths"]), default=-1)) + 1
    timed = every.filter(pc.is_valid(every["predict_s"]))
    columns = ["name", "rows", "tokens", "tokenise_s", "predict_s"]
    slowest = timed.select(columns).sort_by([("predict_s", "descending")]).slice(0, _SLOWEST)
    return {
        "title": job.task.options_class.task,
        "output": str(job.folder),
        "complete": record["complete"],
        "made": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "settings": {
            "input": redact_credentials(job.source),
            "text columns": ", ".join(job.text_columns),
            "model": redact_credentials(job.model.model),
            "device": last["device"],
            "token budget": f"{job.budget_tokens:,} a packed batch",
            "long texts": _long_documents(job.task),
        },
        "versions": last["versions"],
        "attempts": attempts,
        "totals": totals,
        "throughput": _throughput(every, attempts),
        "lengths": {"edges": LENGTH_EDGES[: longest + 1], "windows": totals["lengths"][:longest]},
        "labels": list(totals["labels"].items()),
        "scores": {"edges": SCORE_EDGES, "counts": totals["scores"]} if totals["scores"] else None,
        "rejects": list(totals["rejects"].items()),
        "slowest": slowest.to_pylist(),
        "failed": record["failed"],
    }


def _throughput(every: pa.Table, attempts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tokens a second over the time of each attempt that committed something."""
    starts = [datetime.fromisoformat(each["started"]).timestamp() for each in attempts]
    times, tokens = every["committed_at"].to_numpy(), every["tokens"].to_numpy()
    of = np.searchsorted(starts, times, side="right") - 1
    series = []
    for number, start in enumerate(starts):
        mine = of == number
        if not mine.any():
            continue
        seconds = attempts[number]["seconds"] or times[mine].max() - start
        edges = np.linspace(0, max(seconds, 1e-3), min(_BINS, max(int(seconds / 5), 1)) + 1)
        sums = np.histogram((times[mine] - start).clip(0, edges[-1]), edges, weights=tokens[mine])[0]
        rates = (sums / np.diff(edges)).round(1)
        series.append({"attempt": number, "seconds": edges[:-1].round(1).tolist(), "tokens_per_s": rates.tolist()})
    return series


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a folder that is not installed
        return None


def _truncated(task: Task, documents: int) -> str:
    return f"; {documents:,} documents truncated to {task.max_length} tokens" if task.stride is None else ""


def _long_documents(task: Task) -> str:
    """What happens to documents that are longer than a window."""
    if task.stride is None:
        return f"truncated to {task.max_length:,} tokens"
    return f"read in windows of {task.max_length:,} tokens that share {task.stride:,}"


def _sample(job: Job, corpus: Corpus) -> tuple[int, int, int, int]:
    """(tokens, truncated, rejected, rows) of some rows of shards spread over the corpus."""
    tokens = truncated = rejected = sampled = 0
    picks = np.unique(np.linspace(0, len(corpus.shards) - 1, _SAMPLED_SHARDS, dtype=int))
    for shard in (corpus.shards[i] for i in picks):
        read = read_shard(job.source, shard, job.schema, list(dict.fromkeys(job.text_columns)))
        columns = [read.table[name].slice(0, _SAMPLED_ROWS) for name in job.text_columns]
        documents, _, rejects = valid_documents(columns, tuple(job.task.options_class.inputs))
        windows = job.task.encode(job.model.tokenizer, documents)
        tokens += len(windows.input_ids)
        truncated += int(windows.truncated.sum())
        rejected += len(rejects) + len(windows.rejected)
        sampled += len(documents) + len(rejects)
    return tokens, truncated, rejected, sampled
