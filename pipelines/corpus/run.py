"""A corpus job from input files to committed answers: plan, hold the output, run what is missing,
finish.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray
from ray.data import Dataset

from pipelines.corpus import summary
from pipelines.corpus.dry_run import dry_run_report
from pipelines.corpus.execute import Execution, unwritable
from pipelines.corpus.plan import Job, plan_job, with_columns
from pipelines.corpus.staging import stage_files
from pipelines.errors import JobError
from pipelines.input.inspection import Inspection
from pipelines.input.plan import cut
from pipelines.input.staging import remove_staged
from pipelines.job_options import CorpusOptions, corpus_options
from pipelines.options import from_call, task_named
from pipelines.output import folder as output
from pipelines.output.lease import Lease, OutputInUse, lease
from pipelines.output.record import PARTS, RunRecord
from pipelines.output.shard_stats import add_up
from pipelines.raydata.cluster import cluster_resources
from pipelines.report.html import render
from pipelines.signals import delayed_signals, how_stopped, raised_signals
from pipelines.storage import Folder


@dataclass(frozen=True)
class Outcome:
    """What a run of a corpus job did."""

    outcome: str
    """complete; failed, if some files or shards failed; skipped, if another run writes to the
    output.
    """
    folder: Folder
    parts: str = PARTS
    """The folder of the parts in the output."""
    rows: int = 0
    """Input rows that this run committed: labelled and rejected ones."""
    labelled: int = 0
    rejected: int = 0
    tokens: int = 0
    seconds: float = 0.0
    failed: dict[str, str] = field(default_factory=dict)
    """The files and shards that failed, with the reason."""
    summary: str = ""
    """All this in lines for people."""

    def __str__(self) -> str:
        return self.summary

    def dataset(self) -> Dataset:
        """Return the answered rows of the output, those of earlier runs too, as a Ray Dataset in
        input order.
        """
        return self._read(self.parts, sorted(output.committed(self.folder, self.parts)))

    def rejects(self) -> Dataset:
        """Return the rejected rows of the output, those of earlier runs too, as a Ray Dataset in
        input order.
        """
        names = (name.removesuffix(".parquet") for name in self.folder.files(output.REJECTED))
        return self._read(
            output.REJECTED, sorted(set(names) & set(output.committed(self.folder, self.parts)))
        )

    def _read(self, below: str, parts: list[str]) -> Dataset:
        cluster_resources()
        filesystem, path = self.folder.filesystem_and_path
        paths = [f"{path}/{output.part_path(below, part)}" for part in parts]
        read = partial(ray.data.read_parquet, filesystem=filesystem, partitioning=None)
        return read(paths) if paths else ray.data.from_arrow(pa.table({}))


def run_corpus(task: str, *, input: str, output: str, model: str, **options: Any) -> Outcome:
    """Run the corpus job of a task: each input row comes once into the output or once into its
    rejects.

    The same call, made again, does what is missing or new, whatever stopped it before.

    Args:
        task: the name of a task, here ("classify") or in transformers ("text-classification").
        input: a file, folder or glob, or a URI of one.
        output: a folder or URI.
        model: a folder, a Hugging Face hub id or a URI of object storage.
        options: those of the job's command (text_column="body", actors="1:8", top_k=3, …).

    Returns:
        What the run did; files and shards that failed are in its `failed`.

    Raises:
        ValueError: for a mistake in the options, the model or the input, before any work begins.
        JobError: for an output that cannot be written, actors that have no place, and a Ray that
            fails.

    Example:
        >>> model = "jobs/demo/intent-classifier"
        >>> done = run_corpus("classify", input="in/", output="out/", model=model)
        >>> done.dataset().filter(expr="score > 0.9").write_parquet("sure/")
    """
    name = task_named(task).task
    return run_job(
        from_call(
            corpus_options(name), {"input": input, "output": output, "model": model, **options}
        )
    )


def dry_run(options: CorpusOptions) -> str:
    """Describe what `run_job` would do; raises what it raises for mistakes."""
    job, found, fingerprint = plan_job(options, with_weights=False)
    record = output.open_output(job.folder, fingerprint, options.overwrite)
    return dry_run_report(job, found, options, record.shard_rows if record else None)


def run_job(options: CorpusOptions) -> Outcome:
    """Run a corpus job to its end, as `run_corpus` does; `options`: an instance of
    `corpus_options(task)`.
    """
    job, found, fingerprint = plan_job(options)
    output.open_output(job.folder, fingerprint, options.overwrite)
    try:
        with delayed_signals(), lease(job.folder, job.run) as held, raised_signals():
            return _run(options, job, found, fingerprint, held)
    except OutputInUse as error:
        if options.if_running == "fail":
            raise
        return Outcome("skipped", job.folder, summary=f"skipped: {error}")


def _run(
    options: CorpusOptions, job: Job, found: Inspection, fingerprint: dict[str, Any], held: Lease
) -> Outcome:
    """Run a planned job while its output is held."""
    record = output.open_output(job.folder, fingerprint, options.overwrite)
    stage_files(job, found, found.unstaged, held.check)
    corpus = cut(found, options.limit, record.shard_rows if record else None)
    job = with_columns(job, options, corpus.schema)
    changes = [f"note       {note}" for note in corpus.notes]
    changes += summary.input_changes(output.read_files(job.folder) if record else None, corpus)
    foreign = output.foreign_files(job.folder, job.parts)
    if foreign and not options.overwrite:
        shown = ", ".join(foreign[:3])
        changes.append(
            f"note       {len(foreign):,} files among the parts are not of this job, and are read "
            f"with them: {shown}"
        )
    record = record or RunRecord(fingerprint, corpus.shard_rows, parts=job.parts)
    attempt = summary.start_attempt(job)
    record.attempts.append(attempt)
    record.complete = False
    done = output.begin_run(job.folder, record, corpus, options.overwrite)
    todo = [shard for shard in corpus.shards if shard.name not in done]
    known = {shard.path for shard in todo if shard.part} - set(found.unstaged)
    stage_files(job, found, sorted(known), held.check)
    execution = Execution(job, todo, options.max_rejected, held.check)
    for path, reason in corpus.broken.items():
        execution.failed[path] = f"cannot be read: {reason}"
    started = time.monotonic()
    missing = set[str]()
    try:
        execution.run(options.actors, options.wait_for_actors_s)
        held.check()
        attempt.outcome = "failed" if execution.failed else "complete"
    except BaseException as error:
        attempt.outcome = how_stopped(error) or f"error: {error}"
        raise
    finally:
        stats = execution.stats.table()
        totals = add_up(stats)
        attempt.seconds = time.monotonic() - started
        attempt.rows, attempt.tokens = totals["rows"], totals["tokens"]
        if not held.lost.is_set():  # else the record is another run's
            with delayed_signals():
                missing = finish(
                    job, record, stats, execution.failed, {shard.name for shard in todo}
                )
    if missing:
        raise JobError(
            f"{len(missing):,} parts that were reported as written are not in the output "
            f"'{job.folder}': "
            f"{', '.join(sorted(missing)[:3])}; do all nodes share this folder?"
        )
    if set(execution.failed) <= set(corpus.broken):  # all shards are there
        remove_staged(job.folder)
    counts = {name: totals[name] for name in ("rows", "labelled", "rejected", "tokens")}
    shown = summary.format_summary(
        job, totals, attempt, execution.failed, changes, skipped=len(done)
    )
    return Outcome(
        attempt.outcome,
        job.folder,
        job.parts,
        **counts,
        seconds=attempt.seconds,
        failed=execution.failed,
        summary=shown,
    )


def finish(
    job: Job, record: RunRecord, stats: pa.Table, failed: dict[str, str], todo: set[str]
) -> set[str]:
    """Write what is known of the output after a run: the stats of its shards, the record of its
    runs, the report.

    `stats` are those of the shards that the driver has heard of, `todo` the names of all that the
    run was to do. Returns the shards whose commits were reported, but whose parts are not in the
    output: the run is not complete then.
    """
    try:
        attempt = record.attempts[-1]

        def run_of(name: str, written: float) -> str | None:
            return attempt.run if name in todo else record.run_at(written)

        all_stats, missing = output.write_shard_stats(job.folder, job.parts, stats, run_of)
        own = add_up(all_stats.filter(pc.equal(all_stats["run"], attempt.run)))
        attempt.rows, attempt.tokens = own["rows"], own["tokens"]
        if missing:
            attempt.outcome = "failed"
            failed = failed | dict.fromkeys(missing, "its part is not in the output")
        record.totals, record.failed = add_up(all_stats), failed
        record.complete = attempt.outcome == "complete"
        record.write(job.folder)
        job.folder.write_atomic(
            output.REPORT, render(summary.report(job, record, all_stats)).encode()
        )
    except OSError as error:
        raise unwritable(job, error.strerror or str(error)) from error
    return missing
