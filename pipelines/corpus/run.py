"""A corpus job from input files to committed answers: plan, hold the output, run what is missing,
finish.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipelines.corpus import summary
from pipelines.corpus.checking import check_figures, gold_notes
from pipelines.corpus.compute import record_compute
from pipelines.corpus.dry_run import dry_run_report
from pipelines.corpus.execute import Execution
from pipelines.corpus.figures import ShardFigures
from pipelines.corpus.plan import Job, JobPlan, cut_shards, make_job, plan_job
from pipelines.corpus.review import write_review
from pipelines.corpus.staging import stage_files
from pipelines.corpus.status import JobStatus, notified_at_end, written_status
from pipelines.errors import JobError
from pipelines.input.corpus import Corpus, Shards
from pipelines.input.inspection import with_staged
from pipelines.input.staging import remove_staged
from pipelines.job_options import CorpusOptions, corpus_options
from pipelines.model_options import from_call
from pipelines.options import task_named
from pipelines.output import folder as output
from pipelines.output.committing import REJECTED
from pipelines.output.lease import Lease, OutputInUse, lease
from pipelines.output.parts import Listing, NameIndex, list_parts, part_path
from pipelines.output.planned_files import read_files
from pipelines.output.record import PARTS, Attempt, RunRecord
from pipelines.output.shard_stats import Stats
from pipelines.output.shards_file import SegmentWriter, write_shard_stats
from pipelines.raydata.cluster import cluster_resources
from pipelines.raydata.watch import Way
from pipelines.report.html import render
from pipelines.signals import delayed_signals, how_stopped, raised_signals
from pipelines.storage import Folder

if TYPE_CHECKING:
    from ray.data import Dataset

_SHOWN_NAMES = 3


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
        return self._read(self.parts, list(list_parts(self.folder, self.parts)))

    def rejects(self) -> Dataset:
        """Return the rejected rows of the output, those of earlier runs too, as a Ray Dataset in
        input order.
        """
        rejected = list_parts(self.folder, REJECTED)
        there = list_parts(self.folder, self.parts)
        return self._read(REJECTED, [name for name in rejected if name in there])

    def _read(self, below: str, parts: list[str]) -> Dataset:
        import ray.data

        cluster_resources()
        filesystem, path = self.folder.filesystem_and_path
        paths = [f"{path}/{part_path(below, part)}" for part in parts]
        read = partial(ray.data.read_parquet, filesystem=filesystem, partitioning=None)
        return read(paths) if paths else ray.data.from_arrow(pa.table({}))


def run_corpus(
    task: str, *, input: str, output: str, model: str | None = None, **options: Any
) -> Outcome:
    """Run the corpus job of a task: each input row comes once into the output or once into its
    rejects.

    The same call, made again, does what is missing or new, whatever stopped it before.

    Args:
        task: the name of a task, here ("classify") or in transformers ("text-classification").
        input: a file, folder or glob, or a URI of one.
        output: a folder or URI.
        model: a folder, a Hugging Face hub id or a URI of object storage; None where the options
            of the task "several" name models.
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
    values = {"input": input, "output": output, "model": model, **options}
    return run_job(from_call(corpus_options(name), values))


def dry_run(options: CorpusOptions) -> str:
    """Describe what `run_job` would do; raises what it raises for mistakes."""
    plan = plan_job(options, with_weights=False)
    record = output.open_output(plan.folder, plan.fingerprint, options.overwrite)
    return dry_run_report(plan, record)


def run_job(options: CorpusOptions) -> Outcome:
    """Run a corpus job to its end, as `run_corpus` does.

    `options`: an instance of `corpus_options(task)`.
    """
    plan = plan_job(options)
    output.open_output(plan.folder, plan.fingerprint, options.overwrite)
    try:
        with (
            delayed_signals(),
            notified_at_end(plan) as notice,
            lease(plan.folder, plan.attempt_id) as held,
            written_status(plan, held) as status,
            raised_signals(),
        ):
            notice.status = status
            # Again: another run may have written the output until it was ours.
            record = output.open_output(plan.folder, plan.fingerprint, options.overwrite)
            staged = stage_files(plan, plan.inspection.unstaged, held.check)
            inspection = with_staged(plan.inspection, staged)
            present = output.shards_there(plan.folder, plan.parts, options.overwrite)
            corpus = cut_shards(plan, inspection, record, present)
            job = make_job(plan, corpus)
            run = _begin(plan, job, corpus, record, present)
            _stage_again(run, held)
            _execute(run, held, status)
            return _outcome(run)
    except OutputInUse as error:
        if options.if_running == "fail":
            raise
        return Outcome("skipped", plan.folder, summary=f"skipped: {error}")


@dataclass
class Run:
    """A run into an output that is held: what there is to do, and what was done."""

    plan: JobPlan
    job: Job
    corpus: Corpus
    record: RunRecord
    attempt: Attempt
    todo: Shards
    """The shards that the output did not hold when the run began."""
    skipped: int
    """The shards that it held."""
    changes: list[str]
    """How the input has changed, and notes on it, in lines for the terminal."""
    broken: dict[str, str]
    """Files that cannot be read, with the reason."""
    failed: dict[str, str] = field(default_factory=dict)
    """Files and shards that failed, with the reason."""
    totals: Stats = field(default_factory=dict)
    """Sums over the shards that the run has committed."""
    listing: Listing | None = None
    """The parts that are there, where nothing was to be run; None where they must be listed."""
    first_part: str | None = None
    """The first shard whose part is there when the run has ended."""
    reviewed: int = 0
    """The rows in the file for review."""
    retried: list[tuple[int, str]] = field(default_factory=list)
    """How often something was run again, for each reason."""


def _begin(
    plan: JobPlan, job: Job, corpus: Corpus, record: RunRecord | None, present: Listing
) -> Run:
    """Write the record of a run as it begins, and find out what there is to do.

    `present`: the shards whose parts are in the output.
    """
    overwrite = plan.options.overwrite
    # Before it is replaced.
    earlier = read_files(job.folder) if record else None
    changes = [f"note       {note}" for note in (*corpus.notes, *gold_notes(job))]
    changes += summary.input_changes(earlier, corpus)
    if present.foreign:
        shown = ", ".join(present.foreign[:_SHOWN_NAMES])
        changes.append(
            f"note       {len(present.foreign):,} files among the parts are not of this job, and "
            f"are read with them: {shown}"
        )
    record = record or RunRecord(plan.fingerprint, parts=job.parts)
    attempt = summary.start_attempt(job)
    record.attempts.append(attempt)
    record.complete = False
    todo, listing = output.begin_run(job.folder, record, corpus, present, overwrite)
    return Run(
        plan=plan,
        job=job,
        corpus=corpus,
        record=record,
        attempt=attempt,
        todo=corpus.shards.take(todo),
        skipped=len(corpus.shards) - len(todo),
        changes=changes,
        broken=dict(corpus.broken),
        listing=None if todo else listing,
    )


def _stage_again(run: Run, held: Lease) -> None:
    """Stage files of which an earlier run knows the rows, but whose staged form may be gone."""
    staged_now = set(run.plan.inspection.unstaged)
    if not any(file.scan.parts for file in run.corpus.files):
        return
    pieces = (piece for shard in run.todo for piece in shard.pieces)
    staged_before = {piece.path for piece in pieces if piece.part} - staged_now
    results = stage_files(run.plan, sorted(staged_before), held.check)
    for path, result in results.items():
        if isinstance(result, str):
            run.broken[path] = result


def _execute(run: Run, held: Lease, status: JobStatus) -> None:
    """Run the shards, and write what is known of the output however that ends."""
    options = run.plan.options
    ways: dict[str, Way] = {}
    fusions: dict[str, str] = {}
    for attempt in run.record.attempts:
        fusions |= attempt.fusions
        # On GPUs there is nothing to agree on.
        ways |= {name: way for name, way in attempt.attention.items() if way[1]}
    execution = Execution(run.job, run.todo, options.max_rejected, held.check, ways, fusions)
    for path, reason in run.broken.items():
        execution.failed[path] = f"cannot be read: {reason}"
    status.execution = execution
    status.state = "running"
    started = time.monotonic()
    missing_parts: set[str] = set()
    try:
        execution.run(options.actors, options.wait_for_actors_s)
        held.check()
        run.attempt.outcome = "failed" if execution.failed else "complete"
    except BaseException as error:
        run.attempt.outcome = how_stopped(error) or f"error: {error}"
        raise
    finally:
        status.state = "finishing"
        run.failed = execution.failed
        run.retried = execution.retried()
        run.attempt.attention = execution.ways
        run.attempt.fusions = execution.fusions
        run.totals = execution.stats.totals()
        run.attempt.seconds = time.monotonic() - started
        run.attempt.rows = run.totals["rows"]
        run.attempt.tokens = run.totals["tokens"]
        tokenise_s = run.totals["tokenise_s"]
        record_compute(run.attempt, execution.held_s, tokenise_s, run.job.device, options)
        status.attempt = run.attempt
        if not held.lost.is_set():  # else the record is another run's
            with delayed_signals():
                missing_parts = _write_record(run, execution.stats)
                status.drift = run.record.largest_change
    status.state = run.attempt.outcome
    if missing_parts:
        shown = ", ".join(sorted(missing_parts)[:_SHOWN_NAMES])
        raise JobError(
            f"{len(missing_parts):,} parts that were reported as written are not in the output "
            f"'{run.job.folder}': {shown}; do all nodes share this folder?"
        )


def _write_record(run: Run, stats: SegmentWriter) -> set[str]:
    """Write the stats of shards, the record of runs and the report.

    `stats` has those of the shards that the driver has heard of. Returns the shards whose commits
    were reported, but whose parts are not in the output: the run is not complete then.
    """
    job, record, attempt = run.job, run.record, run.attempt

    @cache
    def todo() -> NameIndex:
        return NameIndex(shard.name for shard in run.todo)

    def run_of(name: str, written: float) -> str | None:
        """Return the run that has written a part of which the driver has not heard."""
        return attempt.run if name in todo() else record.run_at(written)

    try:
        stats.flush()
        listing = run.listing
        if listing is None:
            listing = list_parts(job.folder, job.parts)
        run.first_part = next(iter(listing), None)
        figures = ShardFigures(record.attempts)
        missing = write_shard_stats(
            job.folder, job.parts, listing, job.attempt_id, run_of, see=figures.add
        )
        attempt.rows = figures.own_rows
        attempt.tokens = figures.own_tokens
        failed = run.failed
        if missing:
            attempt.outcome = "failed"
            failed = failed | dict.fromkeys(missing, "its part is not in the output")
        record.totals = figures.totals.result()
        counts = record.totals.pop("checks")
        record.checks = check_figures(job, counts)
        record.drift = figures.drift()
        if record.checks and "thresholds" in record.checks:
            thresholds = record.checks["thresholds"]
            values = {label: each["threshold"] for label, each in thresholds.items()}
            content = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
            job.folder.write_atomic(output.THRESHOLDS, content.encode())
        record.failed = failed
        record.complete = attempt.outcome == "complete"
        record.write(job.folder)
        review_rows = run.plan.options.review_rows
        if review_rows is not None and attempt.outcome in ("complete", "failed"):
            run.reviewed = write_review(job, list(listing), review_rows)
        page = render(summary.report(job, record, figures))
        job.folder.write_atomic(output.REPORT, page.encode())
    except OSError as error:
        raise output.unwritable(job.folder, error.strerror or str(error)) from error
    return missing


def _outcome(run: Run) -> Outcome:
    """Remove what is needed no longer, and say what the run did."""
    if set(run.failed) <= set(run.broken):  # all shards are there
        remove_staged(run.job.folder)
    return Outcome(
        outcome=run.attempt.outcome or "",
        folder=run.job.folder,
        parts=run.job.parts,
        rows=run.totals["rows"],
        labelled=run.totals["labelled"],
        rejected=run.totals["rejected"],
        tokens=run.totals["tokens"],
        seconds=run.attempt.seconds or 0.0,
        failed=run.failed,
        summary=summary.format_summary(
            run.job,
            run.totals,
            run.record,
            run.failed,
            run.changes,
            skipped=run.skipped,
            first_part=run.first_part,
            reviewed=run.reviewed,
            retried=run.retried,
        ),
    )
