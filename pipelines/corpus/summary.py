"""What a corpus job did: the summary for the terminal and the values of the report."""

from __future__ import annotations

import platform
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from modernbert.stored import Json
from pipelines.corpus.compute import describe_compute
from pipelines.corpus.figures import ShardFigures
from pipelines.corpus.plan import Job
from pipelines.input.corpus import Corpus
from pipelines.input.fields import column_of, take_field
from pipelines.input.snapshots import TableLocation
from pipelines.output import folder as output
from pipelines.output.committing import REJECTED
from pipelines.output.parts import part_path
from pipelines.output.record import RUN, Attempt, RunRecord
from pipelines.output.shard_stats import LENGTH_EDGES, SCORE_EDGES, Stats
from pipelines.report.checks import describe_checks, describe_drift
from pipelines.report.html import group_failures
from pipelines.report.progress import format_duration
from pipelines.report.text import kind_of, printable
from pipelines.tasks.base import Task

_SHOWN_LABELS = 12
_SHOWN_ROWS = 5
_SHOWN_WIDTH = 60  # characters of an answer
_SHOWN_TEXT = 70  # characters of a text
_SHOWN_FAILURES = 12
_SHOWN_NAMES = 3
_PACKAGES = ("modernbert-ray", "ray", "torch", "tokenizers", "pyarrow", "numpy")


def input_changes(earlier: Corpus | None, corpus: Corpus) -> list[str]:
    """Describe how the input has changed since the last run, in lines for the terminal."""
    if earlier is None:
        return []
    before = {file.path: file.version for file in earlier.files}
    now = {file.path: file.version for file in corpus.files}
    new = now.keys() - before.keys()
    changed = [path for path in now.keys() & before.keys() if now[path] != before[path]]
    missing = sorted(before.keys() - now.keys() - corpus.broken.keys())
    lines = []
    if new:
        lines.append(f"input      {len(new):>9,}  new files")
    if changed:
        lines.append(f"input      {len(changed):>9,}  changed files, whose rows are replaced")
    if missing:
        shown = printable(_few(missing))
        what = "files have disappeared, and their rows stay in the output"
        if corpus.stems is not None:
            what = "files are no longer in the table, and their rows are removed"
        lines.append(f"input      {len(missing):>9,}  {what}: {shown}")
    return lines


def format_summary(
    job: Job,
    totals: Stats,
    record: RunRecord,
    failed: dict[str, str],
    changes: list[str],
    skipped: int,
    first_part: str | None,
    reviewed: int,
    retried: list[tuple[int, str]],
) -> str:
    """Describe what a run did, in lines for the terminal.

    Args:
        job: the job.
        totals: sums over the shards that the run has committed.
        record: that of the output, whose last attempt is the run.
        failed: the files and shards that failed, with the reason.
        changes: lines on how the input has changed.
        skipped: the shards that were in the output already.
        first_part: the first shard whose part is in the output.
        reviewed: the rows that were written for review.
        retried: how often something was run again, for each reason.
    """
    lines = [printable(change) for change in changes]
    if skipped:
        lines.append(f"{skipped} shards were in the output already")
    if totals["rows"]:
        lines += _counts(job, totals, record.attempts[-1].seconds or 0.0)
        used = describe_compute(record.attempts[-1])
        lines += [f"compute    {used}"] if used else []
    if totals.get("replaced"):
        lines.append(
            f"replaced   {totals['replaced']:>9,}  values of kept columns that are not UTF-8, in "
            "part by U+FFFD"
        )
    lines += describe_checks(record.checks)
    lines += describe_drift(record.drift)
    lines += [f"run again  {count:>9,}  {printable(reason)}" for count, reason in retried]
    lines += _failures(failed)
    lines += _first_rows(job, first_part)
    folder = printable(str(job.folder))
    lines.append(f"output     {folder}/{job.parts}".rstrip("/"))
    if totals["rejects"]:
        lines.append(f"rejects    {folder}/{REJECTED}")
    if reviewed:
        lines.append(f"review     {folder}/{output.REVIEW}: the {reviewed:,} least sure rows")
    lines.append(f"report     {folder}/{output.REPORT}")
    return "\n".join(lines)


def _counts(job: Job, totals: Stats, seconds: float) -> list[str]:
    """Describe what was counted of the rows, tokens, batches, items, labels and rejected rows."""
    tokens_per_s = totals["tokens"] / seconds
    fill = totals["fill"] or 0
    lines = [
        f"rows       {totals['rows']:,}: {totals['labelled']:,} labelled, "
        f"{totals['rejected']:,} rejected in {format_duration(seconds)}",
        f"tokens     {totals['tokens']:,}, {tokens_per_s:,.0f} tokens/s"
        f"{_truncated(job.task, totals['truncated'])}",
        f"batches    {totals['batches']:,}, filled to {fill:.1%} of {describe_budget(job)}",
    ]
    if job.task.counted and totals["labelled"]:
        _, items = job.task.counted
        items_per_row = totals["items"] / totals["labelled"]
        bytes_per_row = totals["item_bytes"] / totals["labelled"]
        lines.append(
            f"{items:<10} {totals['items']:,}: {items_per_row:,.1f} a row, "
            f"{bytes_per_row:,.0f} bytes"
        )
    labels = list(totals["labels"].items())
    for label, count in labels[:_SHOWN_LABELS]:
        lines.append(f"label      {count:>9,}  {printable(label)}")
    other_labels = labels[_SHOWN_LABELS:]
    if other_labels:
        count = sum(count for _, count in other_labels)
        lines.append(f"           {count:>9,}  {len(other_labels)} other labels")
    return lines + _rejects(totals["rejects"])


def _rejects(rejects: dict[str, int]) -> list[str]:
    """Describe the rejected rows in a line for each kind of reason, the most frequent first."""
    groups: dict[str, dict[str, int]] = {}
    for reason, count in rejects.items():
        groups.setdefault(kind_of(reason), {})[reason] = count
    counts = sorted(groups.values(), key=lambda group: -sum(group.values()))
    lines: list[str] = []
    for group in counts[:_SHOWN_LABELS]:
        such = f" (one of {len(group):,} such reasons)" if len(group) > 1 else ""
        example = printable(next(iter(group)))
        lines.append(f"rejected   {sum(group.values()):>9,}  {example}{such}")
    others = counts[_SHOWN_LABELS:]
    if others:
        count = sum(sum(group.values()) for group in others)
        lines.append(f"           {count:>9,}  {len(others):,} other reasons: see {REJECTED}")
    return lines


def _failures(failed: dict[str, str]) -> list[str]:
    """Describe what failed in a line for each reason, the most frequent first."""
    groups = group_failures(failed)
    lines = []
    for reason, names in groups[:_SHOWN_FAILURES]:
        number = f"{len(names):,} files or shards, " if len(names) > 1 else ""
        lines.append(f"failed     {number}{printable(_few(names))}: {printable(reason)}")
    others = groups[_SHOWN_FAILURES:]
    if others:
        rest = sum(len(names) for _, names in others)
        lines.append(f"failed     {rest:,} others, for {len(others):,} other reasons: see {RUN}")
    return lines


def _few(names: list[str]) -> str:
    more = ", …" if len(names) > _SHOWN_NAMES else ""
    return ", ".join(names[:_SHOWN_NAMES]) + more


def _first_rows(job: Job, first: str | None) -> list[str]:
    """Show a few answered rows, to see at a glance that the answers make sense."""
    text_holders = {column_of(job.schema, path) for path in job.text_columns}
    # Texts are in the output only where their columns are kept, and none of ours has their name.
    texts_kept = set(job.keep_columns) - set(job.stored_names)
    if first is None or not text_holders <= texts_kept:
        return []
    stored_names = {name: job.prefix + name for name in job.task.columns.names}
    data = pa.BufferReader(job.folder.read(part_path(job.parts, first)))
    # By the file: for a dataset, a name with a dot may be that of a field.
    part = pq.ParquetFile(data).read(columns=[*text_holders, *stored_names.values()])
    table = part.slice(0, _SHOWN_ROWS)

    texts = [take_field(table, path).to_pylist() for path in job.text_columns]
    answers: list[str] = []
    for row in table.to_pylist():
        columns = {name: row[stored] for name, stored in stored_names.items()}
        answers.append(printable(job.task.preview(columns)))
    longest = max((len(answer) for answer in answers), default=0)
    width = min(longest, _SHOWN_WIDTH)

    lines: list[str] = []
    for answer, texts_of_row in zip(answers, zip(*texts, strict=True), strict=True):
        text = " | ".join(_on_one_line(text) for text in texts_of_row)
        lines.append(f"example    {answer:<{width}}  {printable(text[:_SHOWN_TEXT])}")
    return lines


def _on_one_line(text: object) -> str:
    """Return a text, or the list of them that a document may be, without line ends."""
    return " ".join(str(text).split())


def describe_budget(job: Job) -> str:
    """Name the most tokens in a packed batch."""
    if job.budget_tokens:
        return f"{job.budget_tokens:,} tokens"
    return "the tokens that a GPU's memory holds"


def start_attempt(job: Job) -> Attempt:
    """Make the record of a run as it begins."""
    return Attempt(
        started=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        seconds=None,
        outcome=None,
        rows=None,
        tokens=None,
        host=platform.node(),
        device=f"{job.device} in {job.dtype}",
        budget_tokens=job.budget_tokens,
        versions={
            "python": platform.python_version(),
            **{name: _version(name) for name in _PACKAGES},
        },
        run=job.attempt_id,
        snapshot=job.source.title if isinstance(job.source, TableLocation) else None,
    )


def _attention(attempt: Attempt) -> dict[str, str]:
    """Say how attention was computed on GPUs, and on CPUs where there was a choice."""
    ways = [
        f"{product}, tiles of {tile} on {processor}" if tile else f"{product} on {processor}"
        for processor, (product, tile) in attempt.attention.items()
    ]
    return {"attention": "; ".join(ways)} if ways else {}


def _fusions(attempt: Attempt) -> dict[str, str]:
    """Say how layers ran on GPUs."""
    ways = [f"{chosen}, on {gpu}" for gpu, chosen in attempt.fusions.items()]
    return {"fusions": "; ".join(ways)} if ways else {}


def report(job: Job, record: RunRecord, figures: ShardFigures) -> Json:
    """Return the values that the report shows; `figures`: of all shards of the output."""
    totals = record.totals or {}
    attempts = record.attempts
    last = attempts[-1]
    lengths = int(max(np.flatnonzero(totals["lengths"]), default=-1)) + 1  # up to the longest
    return {
        "title": job.task.options_class.task,
        "output": str(job.folder),
        "complete": record.complete,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "settings": {
            "input": str(job.source),
            "text columns": ", ".join(job.text_columns),
            **({"gold column": job.gold_column} if job.gold_column else {}),
            "model": job.task.model_name(job.model),
            "device": last.device,
            **_attention(last),
            **_fusions(last),
            "token budget": f"{describe_budget(job)} a packed batch",
            "long texts": long_documents_policy(job.task),
            "compute": describe_compute(last) or "not known",
        },
        "versions": last.versions,
        "attempts": [asdict(attempt) for attempt in attempts],
        "totals": totals,
        "throughput": figures.throughput(),
        "by_attempt": figures.by_attempt(),
        "lengths": {"edges": LENGTH_EDGES[: lengths + 1], "windows": totals["lengths"][:lengths]},
        "labels": list(totals["labels"].items()),
        "items": job.task.counted and job.task.counted[1],
        "scores": {"edges": SCORE_EDGES, "counts": totals["scores"]} if totals["scores"] else None,
        "rejects": list(totals["rejects"].items()),
        "checks": record.checks,
        "drift": record.drift,
        "examples": figures.examples,
        "slowest": figures.slowest.to_pylist(),
        "failed": record.failed,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a folder that is not installed
        return None


def _truncated(task: Task, documents: int) -> str:
    if task.stride is not None:
        return ""
    return f"; {documents:,} documents truncated to {task.max_length} tokens"


def long_documents_policy(task: Task) -> str:
    """Say what happens to documents that are longer than a window."""
    policies: list[str] = []
    for part in task.parts:
        policy = f"truncated to {part.max_length:,} tokens"
        if part.stride is not None:
            policy = f"read in windows of {part.max_length:,} tokens that share {part.stride:,}"
        policies.append(policy)
    return "; ".join(dict.fromkeys(policies))
