"""A corpus job from input files to committed answers: plan, read and tokenise, predict, commit, finish."""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset

from pipelines import output
from pipelines.cluster import pool_size, stopped_by_sigterm
from pipelines.config import CorpusOptions, UserError
from pipelines.job import ADDED, Job, plan_job
from pipelines.progress import clock, shown_progress
from pipelines.shards import Corpus, Shard, read_shard
from pipelines.stages import Predict, Progress, commit, read_and_tokenise, reject_shard, shard_row
from pipelines.tasks.base import Task
from pipelines.texts import valid_documents

_SAMPLED_SHARDS, _SAMPLED_ROWS, _SHOWN_LABELS, _SHOWN_ROWS, _SHOWN_WIDTH = 8, 128, 12, 5, 60
_SHARE_FROM_ROWS, _MOST_SPLIT = 1000, 32
_DEADLY = "its process ended each time that it was predicted"


def run_corpus(options: CorpusOptions, task: str) -> int:
    """Run a job to its end and return the exit code: 0, or 1 where shards failed.

    `task`: the name of one in pipelines/tasks. Raises ValueError (UserError, ConfigError,
    CheckpointError) for what is wrong with the options, the model or the input, before Ray starts.
    """
    job, corpus, identity = plan_job(options, task)
    output.open_output(job.folder, identity, options.overwrite)
    if options.dry_run:
        print(describe(job, corpus))
        return 0
    with output.lease(job.folder):
        record = output.open_output(job.folder, identity, options.overwrite)
        news = _news(output.read_files(job.folder) if record else None, corpus)
        record = record or {"fingerprint": identity, "shard_rows": corpus.shard_rows}
        done = output.begin_run(job.folder, record, corpus, options.overwrite)
        todo = [shard for shard in corpus.shards if shard.name not in done]
        totals = label(job, todo, options.actors, options.max_rejected)
        totals.failed |= {path: f"cannot be read: {reason}" for path, reason in corpus.broken.items()}
        output.write_run(job.folder, record | {"totals": vars(totals), "complete": not totals.failed})
    print(summary(job, totals, news, skipped=len(done)))
    return 1 if totals.failed else 0


def label(job: Job, todo: list[Shard], actors: str, max_rejected: str | None) -> Totals:
    """Run the shards still to do, and count what was done; UserError where more than `max_rejected` are rejected."""
    totals, started = Totals(), time.monotonic()
    if not todo:
        return totals
    rows = sum(shard.rows for shard in todo)
    low, high = (min(n, len(todo)) for n in pool_size(actors, job.device))
    print(f"labelling {rows:,} rows in {len(todo)} shards: {low} actors on {job.device} in {job.dtype}", flush=True)
    progress = Progress.remote()  # type: ignore[attr-defined]

    def run(shards: list[Shard], blocks: int) -> list[Shard]:
        """Run `shards` in `blocks` blocks; those that are lost since a process ended with them."""
        left = {shard.name: shard for shard in shards}
        for receipt in pipeline(job, shards, blocks, (low, high), progress).iter_rows():
            totals.add(receipt)
            left.pop(receipt["name"])
            if _too_many(max_rejected, totals, min(rows, _SHARE_FROM_ROWS)):
                reasons = ", ".join(f"{n:,} times {reason}" for reason, n in totals.rejects.most_common(3))
                raise UserError(
                    f"{totals.rejects.total():,} of the first {totals.rows:,} rows were rejected, more than "
                    f"--max-rejected {max_rejected}: {reasons}; they are in {job.folder / output.REJECTED}"
                )
        return list(left.values())

    with stopped_by_sigterm(), shown_progress(rows, lambda: ray.get(progress.read.remote())):
        lost = run(todo, min(len(todo), max(len(todo) // 8, 4 * high)))
        while lost:  # once more, each for itself; what is lost again is cut up, until the row is found
            lost = run(lost, len(lost))
            if len(lost) > _MOST_SPLIT:
                break
            for shard in [shard for shard in lost if shard.count == 1]:
                totals.add(reject_shard(job, shard, _DEADLY).to_pylist()[0])
            pieces = [piece for shard in lost if shard.count > 1 for piece in shard.pieces]
            lost = run(pieces, len(pieces)) if pieces else []
    totals.failed |= {shard.name: "its processes ended without an answer, again and again" for shard in lost}
    totals.seconds = time.monotonic() - started
    return totals


def pipeline(job: Job, todo: list[Shard], blocks: int, actors: tuple[int, int], progress: Any) -> Dataset:
    """The stages over the shards still to do, in `blocks` blocks, with from so many actors to so many; gives receipts.

    A block whose process ends is left out, and its actor started again. Where each shard is a block, each is alone with
    its actor too, so that none is lost for another.

    On CPUs an actor takes 0.9 of a core, so that the rest of each core is left for reading and commits, which are
    quick. The stages' resources differ on purpose: Ray fuses stages whose resources are equal.
    """
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = 16 << 20
    context.execution_options.preserve_order = True
    context.max_errored_blocks = -1
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    on_cpu = job.device == "cpu"
    per_actor: dict[str, Any] = {"num_cpus": 0.9} if on_cpu else {"num_cpus": 1, "num_gpus": 1}
    per_actor |= {"max_restarts": -1, "max_task_retries": 0}
    in_flight = 1 if blocks == len(todo) else None
    one_shard: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}
    # No other way to bound an actor's retries yet, and the default is to repeat for ever what ends a process.
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
    return (
        ray.data.from_items([shard_row(shard) for shard in todo], override_num_blocks=blocks)
        .map_batches(partial(read_and_tokenise, job), num_cpus=0.1 if on_cpu else 1, **one_shard)
        .map_batches(
            Predict,
            fn_constructor_args=(job, progress),
            compute=ActorPoolStrategy(min_size=actors[0], max_size=actors[1], max_tasks_in_flight_per_actor=in_flight),
            **per_actor,
            **one_shard,
        )
        .map_batches(partial(commit, job), num_cpus=0.05 if on_cpu else 0.5, **one_shard)
    )


def _too_many(most: str | None, totals: Totals, from_rows: int) -> bool:
    """Whether more rows are rejected than `most`: a number, or a share, which counts from `from_rows` rows on."""
    rejected = totals.rejects.total()
    if most is None or not most.endswith("%"):
        return most is not None and rejected > int(most)
    return totals.rows >= from_rows and rejected > totals.rows * float(most[:-1]) / 100


@dataclass
class Totals:
    """What the receipts of committed shards add up to."""

    rows: int = 0
    labelled: int = 0
    tokens: int = 0
    truncated: int = 0
    batches: int = 0
    seconds: float = 0.0
    predict_s: float = 0.0
    tokenise_s: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    rejects: Counter[str] = field(default_factory=Counter)
    failed: dict[str, str] = field(default_factory=dict)

    def add(self, receipt: dict[str, Any]) -> None:
        """Count a shard's receipt."""
        if receipt["error"]:
            self.failed[receipt["name"]] = receipt["error"]
            return
        for name in ("rows", "labelled", "tokens", "truncated", "batches", "predict_s", "tokenise_s"):
            setattr(self, name, getattr(self, name) + receipt[name])
        self.counts.update(json.loads(receipt["counts"]))
        self.rejects.update(json.loads(receipt["rejects"]))


def _news(earlier: Corpus | None, corpus: Corpus) -> list[str]:
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


def summary(job: Job, totals: Totals, news: list[str], skipped: int) -> str:
    """What a run did, for the terminal."""
    lines = list(news)
    if skipped:
        lines.append(f"{skipped} shards were in the output already")
    if totals.rows:
        rate = totals.tokens / totals.seconds
        filled = totals.tokens / (totals.batches * job.budget_tokens) if totals.batches else 0.0
        lines += [
            f"rows       {totals.rows:,}: {totals.labelled:,} labelled, {sum(totals.rejects.values()):,} rejected"
            f" in {clock(totals.seconds)}",
            f"tokens     {totals.tokens:,}, {rate:,.0f} tokens/s{_truncated(job.task, totals.truncated)}",
            f"batches    {totals.batches:,}, filled to {filled:.1%} of {job.budget_tokens:,} tokens",
        ]
        shown = totals.counts.most_common(_SHOWN_LABELS)
        lines += [f"label      {count:>9,}  {label}" for label, count in shown]
        if len(totals.counts) > len(shown):
            rest = totals.counts.total() - sum(count for _, count in shown)
            lines.append(f"           {rest:>9,}  {len(totals.counts) - len(shown)} other labels")
        lines += [f"rejected   {count:>9,}  {reason}" for reason, count in totals.rejects.most_common(_SHOWN_LABELS)]
    lines += [f"failed     {name}: {error}" for name, error in totals.failed.items()]
    lines += _first_rows(job)
    lines.append(f"output     {job.folder}")
    if totals.rejects:
        lines.append(f"rejects    {job.folder / output.REJECTED}")
    return "\n".join(lines)


def _first_rows(job: Job) -> list[str]:
    """A few labelled rows, to see at a glance that the answers make sense."""
    files = sorted(job.folder.glob("*.parquet"))
    if not files or not set(job.text_columns) <= set(job.keep_columns):
        return []
    names = {job.prefix + name: name for name in job.task.columns.names}
    table = pq.read_table(files[0], columns=[*job.text_columns, *names], partitioning=None)
    shown = []
    for row in table.slice(0, _SHOWN_ROWS).to_pylist():
        text = " | ".join(" ".join(str(row[column]).split()) for column in job.text_columns)
        shown.append((job.task.show({name: row[stored] for stored, name in names.items()}), text))
    width = min(max((len(answer) for answer, _ in shown), default=0), _SHOWN_WIDTH)
    return [f"example    {answer:<{width}}  {text[:70]}" for answer, text in shown]


def describe(job: Job, corpus: Corpus) -> str:
    """What a run would do: the resolved configuration, the files and shards, and the tokens estimated from a sample."""
    tokens, truncated, rejected, sampled = _sample(job, corpus)
    columns = [job.prefix + name for name in (*job.task.columns.names, *ADDED)]
    shown = {
        "input": f"{job.source}: {len(corpus.files)} {corpus.format} file(s), {corpus.rows:,} rows",
        "shards": f"{len(corpus.shards)} of at most {corpus.shard_rows:,} rows",
        "output": job.folder,
        "model": f"{job.model.folder}: {job.task.name}",
        "text columns": ", ".join(job.text_columns),
        "columns": f"{', '.join(job.keep_columns)} + {', '.join(columns)}",
        "device": f"{job.device} in {job.dtype}",
        "long texts": _long_documents(job.task),
        "token budget": f"{job.budget_tokens:,} a packed batch",
        "tokens": f"about {tokens / max(sampled, 1) * corpus.rows:,.0f}, from a sample of {sampled:,} rows"
        f" ({truncated} of them truncated, {rejected} rejected)",
    }
    return "\n".join(f"{name:<13}{value}" for name, value in shown.items()) + "\nnothing was done (--dry-run)"


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
        documents, _, rejects = valid_documents(columns, job.task.inputs)
        windows = job.task.encode(job.model.tokenizer, documents)
        tokens += len(windows.input_ids)
        truncated += int(windows.truncated.sum())
        rejected += len(rejects) + len(windows.unfit)
        sampled += len(documents) + len(rejects)
    return tokens, truncated, rejected, sampled
