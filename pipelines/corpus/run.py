"""A corpus job from input files to committed answers: plan, hold the output, run what is missing, finish."""

from __future__ import annotations

import time

import pyarrow as pa

from pipelines.corpus import summary
from pipelines.corpus.cluster import Stopped
from pipelines.corpus.dry_run import dry_run_report
from pipelines.corpus.execute import Execution, unwritable
from pipelines.corpus.plan import Job, plan_job, with_columns
from pipelines.corpus.staging import stage_files
from pipelines.input.plan import cut
from pipelines.input.staging import remove_staged
from pipelines.options import CorpusOptions
from pipelines.output import folder as output
from pipelines.output.lease import lease
from pipelines.output.record import RunRecord
from pipelines.output.shard_stats import add_up
from pipelines.report.html import render

_OUTCOMES = {Stopped: "stopped", KeyboardInterrupt: "interrupted"}


def run_corpus(options: CorpusOptions) -> int:
    """Run a corpus job to its end and print its summary.

    Args:
        options: an instance of `corpus_options(task)`.

    Returns:
        The exit code: 0, or 1 if some files or shards failed.

    Raises:
        ValueError: (UserError, ConfigError, CheckpointError) for a mistake in the options, the model or the input,
            before any work begins.
        JobError: for an output that cannot be written and for a Ray that fails.

    Example:
        >>> options = corpus_options("classify")(input="in/", output="out/", model="jobs/demo/intent-classifier")
        >>> run_corpus(options)
    """
    job, found, fingerprint = plan_job(options)
    record = output.open_output(job.folder, fingerprint, options.overwrite)
    if options.dry_run:
        print(dry_run_report(job, found, options, record.shard_rows if record else None))
        return 0
    with lease(job.folder) as held:
        record = output.open_output(job.folder, fingerprint, options.overwrite)
        stage_files(job, found, found.unstaged, held.check)
        corpus = cut(found, options.limit, record.shard_rows if record else None)
        job = with_columns(job, options, corpus.schema)
        changes = [f"note       {note}" for note in corpus.notes]
        changes += summary.input_changes(output.read_files(job.folder) if record else None, corpus)
        record = record or RunRecord(fingerprint, corpus.shard_rows)
        attempt = summary.start_attempt(job)
        record.attempts.append(attempt)
        record.complete = False
        done = output.begin_run(job.folder, record, corpus, options.overwrite)
        todo = [shard for shard in corpus.shards if shard.name not in done]
        known = {shard.path for shard in todo if shard.part} - set(found.unstaged)
        stage_files(job, found, sorted(known), held.check)
        execution = Execution(job, todo, options.max_rejected, held.check)
        execution.failed |= {path: f"cannot be read: {reason}" for path, reason in corpus.broken.items()}
        started = time.monotonic()
        try:
            execution.run(options.actors)
            held.check()
            attempt.outcome = "failed" if execution.failed else "complete"
        except BaseException as error:
            attempt.outcome = _OUTCOMES.get(type(error), f"error: {error}")
            raise
        finally:
            stats = execution.stats.table()
            totals = add_up(stats)
            attempt.seconds = time.monotonic() - started
            attempt.rows, attempt.tokens = totals["rows"], totals["tokens"]
            if not held.lost.is_set():  # else the record is another run's
                finish(job, record, stats, execution.failed)
        if set(execution.failed) <= set(corpus.broken):  # all shards are there
            remove_staged(job.folder)
    print(summary.format_summary(job, totals, attempt, execution.failed, changes, skipped=len(done)))
    return 1 if execution.failed else 0


def finish(job: Job, record: RunRecord, stats: pa.Table, failed: dict[str, str]) -> None:
    """Write what is known of the output after a run: the stats of its shards, the record of its runs, the report."""
    try:
        all_stats = output.write_shard_stats(job.folder, stats)
        record.totals, record.failed = add_up(all_stats), failed
        record.complete = record.attempts[-1].outcome == "complete"
        record.write(job.folder)
        job.folder.write_atomic(output.REPORT, render(summary.report(job, record, all_stats)).encode())
    except OSError as error:
        raise unwritable(job, error.strerror or str(error)) from error
