"""A corpus job from input files to committed answers: plan, read and tokenise, predict, commit, finish."""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.exceptions import RayError

from pipelines.corpus import summary
from pipelines.corpus.cluster import Stopped, pool_size, stopped_by_sigterm
from pipelines.corpus.plan import Job, plan_job
from pipelines.corpus.stages import Predict, Progress, commit, read_and_tokenise, reject_shard, shard_row
from pipelines.errors import JobError, UserError
from pipelines.input.shards import Shard
from pipelines.options import CorpusOptions
from pipelines.output import folder as output
from pipelines.output import shard_stats
from pipelines.output.lease import lease
from pipelines.report.html import render
from pipelines.report.progress import progress_bar

_SHARE_FROM_ROWS, MAX_SHARDS_TO_SPLIT = 1000, 32
MAX_ATTEMPTS, MAX_ATTEMPTS_PER_ROW, MAX_ROUNDS_WITHOUT_PROGRESS = 2, 3, 5
POISON_ROW = "its process ended each time that it was predicted"
_OUTCOMES = {Stopped: "stopped", KeyboardInterrupt: "interrupted"}


def run_corpus(options: CorpusOptions, task: str) -> int:
    """Run a job to its end and return the exit code: 0, or 1 where shards failed.

    `task`: the name of one in pipelines/tasks. Raises ValueError (UserError, ConfigError, CheckpointError) for what is
    wrong with the options, the model or the input, before Ray starts; JobError for an output that cannot be written.
    """
    job, corpus, identity = plan_job(options, task)
    output.open_output(job.folder, identity, options.overwrite)
    if options.dry_run:
        print(summary.dry_run_report(job, corpus))
        return 0
    with lease(job.folder) as held:
        record = output.open_output(job.folder, identity, options.overwrite)
        changes = summary.input_changes(output.read_files(job.folder) if record else None, corpus)
        record = record or {"fingerprint": identity, "shard_rows": corpus.shard_rows, "attempts": []}
        attempt = summary.start_attempt(job)
        record |= {"attempts": [*record["attempts"], attempt], "complete": False}
        done = output.begin_run(job.folder, record, corpus, options.overwrite)
        todo = [shard for shard in corpus.shards if shard.name not in done]
        made = shard_stats.ShardStatsBuilder()
        failed = {path: f"cannot be read: {reason}" for path, reason in corpus.broken.items()}
        started = time.monotonic()
        try:
            failed |= run_shards(job, todo, options.actors, options.max_rejected, made, held.check)
            held.check()
            outcome = "failed" if failed else "complete"
        except BaseException as error:
            outcome = _OUTCOMES.get(type(error), f"error: {error}")
            raise
        finally:
            totals = shard_stats.add_up(made.table())
            attempt |= {"outcome": outcome, "seconds": time.monotonic() - started}
            attempt |= {name: totals[name] for name in ("rows", "tokens")}
            if not held.lost.is_set():  # else the record is another run's
                finish(job, record, made.table(), failed)
    print(summary.format_summary(job, totals, attempt, failed, changes, skipped=len(done)))
    return 1 if failed else 0


def finish(job: Job, record: dict[str, Any], made: pa.Table, failed: dict[str, str]) -> None:
    """Write what is known of the output after a run: its shards, the record of its runs, the report."""
    try:
        every = output.write_shard_stats(job.folder, made)
        complete = record["attempts"][-1]["outcome"] == "complete"
        record |= {"totals": shard_stats.add_up(every), "failed": failed, "complete": complete}
        output.write_run(job.folder, record)
        job.folder.write_atomic(output.REPORT, render(summary.report(job, record, every)).encode())
    except OSError as error:
        raise _unwritable(job, error.strerror or str(error)) from error


def run_shards(
    job: Job,
    todo: list[Shard],
    actors: str,
    max_rejected: str | None,
    made: shard_stats.ShardStatsBuilder,
    check: Callable[[], None],
) -> dict[str, str]:
    """Run the shards still to do; their receipts go to `made`, and those that fail are returned with the reason.

    A shard that is lost, since a process ended, is run again, then in 16 parts, and so on, until the row is found that
    ends its process each time. Where many are lost at once it was the machines, not the rows: they are run again whole.
    `check` is called now and then, and may raise. UserError where more than `max_rejected` are rejected; JobError where
    the output cannot be written.
    """
    failed: dict[str, str] = {}
    if not todo:
        return failed
    rows = sum(shard.rows for shard in todo)
    seen, rejects = 0, Counter[str]()
    low, high = (min(n, len(todo)) for n in pool_size(actors, job.device))
    print(f"labelling {rows:,} rows in {len(todo)} shards: {low} actors on {job.device} in {job.dtype}", flush=True)
    progress = Progress.remote()  # type: ignore[attr-defined]

    def add(stats: dict[str, Any]) -> None:
        nonlocal seen
        made.add(stats)
        seen += stats["rows"]
        rejects.update(stats["rejects"])
        if _too_many(max_rejected, rejects.total(), seen, min(rows, _SHARE_FROM_ROWS)):
            reasons = ", ".join(f"{n:,} times {reason}" for reason, n in rejects.most_common(3))
            raise UserError(
                f"{rejects.total():,} of the first {seen:,} rows were rejected, more than "
                f"--max-rejected {max_rejected}: {reasons}; they are in {job.folder}/{output.REJECTED}"
            )

    def run(shards: list[Shard], blocks: int) -> list[Shard]:
        """Run `shards` in `blocks` blocks; those that are lost since a process ended with them."""
        left = {shard.name: shard for shard in shards}
        try:
            for told in pipeline(job, shards, blocks, (low, high), progress).iter_rows():
                check()
                if told["stops"]:
                    raise _unwritable(job, told["error"])
                left.pop(told["name"])
                if told["error"]:
                    failed[told["name"]] = told["error"]
                else:
                    add(json.loads(told["stats"]))
        except RayError as error:
            raise JobError(f"Ray: {str(error).splitlines()[0]}") from error
        return list(left.values())

    with stopped_by_sigterm(), progress_bar(rows, lambda: ray.get(progress.read.remote())):
        lost = run(todo, min(len(todo), max(len(todo) // 8, 4 * high)))
        runs, rounds_without_progress = Counter(shard.name for shard in lost), 0
        while lost and rounds_without_progress < MAX_ROUNDS_WITHOUT_PROGRESS:
            again: list[Shard] = []
            for shard in lost:
                if len(lost) > MAX_SHARDS_TO_SPLIT or runs[shard.name] < (
                    MAX_ATTEMPTS if shard.count > 1 else MAX_ATTEMPTS_PER_ROW
                ):
                    again.append(shard)
                elif shard.count > 1:
                    again += shard.subshards
                else:
                    add(json.loads(reject_shard(job, shard, POISON_ROW).to_pylist()[0]["stats"]))
            lost = run(again, len(again)) if again else []
            runs.update(shard.name for shard in lost)
            rounds_without_progress = (
                rounds_without_progress + 1 if len(lost) > MAX_SHARDS_TO_SPLIT and len(lost) == len(again) else 0
            )
    return failed | {shard.name: "its processes ended without an answer, again and again" for shard in lost}


def pipeline(job: Job, todo: list[Shard], blocks: int, actors: tuple[int, int], progress: Any) -> Dataset:
    """The stages over the shards still to do, in `blocks` blocks, with from so many actors to so many.

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


def _too_many(most: str | None, rejected: int, rows: int, from_rows: int) -> bool:
    """Whether more rows are rejected than `most`: a number, or a share, which counts from `from_rows` rows on."""
    if most is None or not most.endswith("%"):
        return most is not None and rejected > int(most)
    return rows >= from_rows and rejected > rows * float(most[:-1]) / 100


def _unwritable(job: Job, reason: str) -> JobError:
    return JobError(f"output '{job.folder}' cannot be written: {reason}")
