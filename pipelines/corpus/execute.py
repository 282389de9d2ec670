"""The shards of a corpus job on Ray: run, run again where they are lost, and committed.

What becomes of a shard without an answer is decided in retries.py; this file wires it to Ray.
"""

from __future__ import annotations

import gc
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import ray
from ray.exceptions import RayError

from modernbert.stored import Json
from pipelines.corpus.nodes import check_nodes
from pipelines.corpus.pipeline import Pool, Round, through_stages
from pipelines.corpus.plan import Job
from pipelines.corpus.retries import (
    Held,
    RetryState,
    fail_the_rest,
    gives_up,
    may_be_held,
    note_loss,
    note_round,
    plan_next_round,
    take_held,
)
from pipelines.corpus.stages import reject_shard
from pipelines.corpus.tally import Tally
from pipelines.errors import JobError, UserError
from pipelines.input.shards import Shard
from pipelines.output.committing import REJECTED
from pipelines.output.folder import unwritable
from pipelines.output.shard_stats import Stats
from pipelines.output.shards_file import SegmentWriter
from pipelines.raydata.cluster import describe_cluster, log_ray_data_to_file, on_node
from pipelines.raydata.losses import losses
from pipelines.raydata.placement import (
    cores_per_gpu,
    pool_size,
    wait_for_places,
    waiting_said,
    warn_of_few_cores,
)
from pipelines.raydata.pools import start_watch
from pipelines.raydata.watch import WatchHandle, Way
from pipelines.raydata.wire import (
    CHANGED,
    NONE_ANSWERED,
    RAISED,
    START,
    STOPPED,
    UNREADABLE,
)
from pipelines.report.progress import progress_bar
from pipelines.report.text import say
from pipelines.signals import finishing_signals

MAX_SHARDS = 16_384
"""The shards of a round: Ray keeps what it knows of each in the driver's memory until its end."""
_log = logging.getLogger("ray.data")  # goes to the file that log_ray_data_to_file names
_ANSWER_S = 3.0
"""How long the watch may take to answer where the job is stopped."""
_SHOWN_REASONS = 12
_SHARE_FROM_ROWS = 1000  # from so many rows on, a share of rejected rows counts


class Execution:
    """A run of shards: the stats of those that were committed, and those that failed."""

    def __init__(
        self,
        job: Job,
        todo: Sequence[Shard],
        max_rejected: str | None,
        check: Callable[[], None],
        ways: dict[str, Way] | None = None,
        fusions: dict[str, str] | None = None,
    ):
        """`max_rejected`: a number or a share of rows; `check` runs between shards, may raise;
        `ways`: how earlier attempts computed attention, by the processor; `fusions`: how
        they ran layers, by the GPU.
        """
        self.job = job
        self.todo = todo
        self.max_rejected = max_rejected
        self.check = check
        self.ways = ways or {}
        self.fusions = fusions or {}
        self.stats = SegmentWriter(job.folder, job.attempt_id)
        self.retries = RetryState()
        self.rows_todo = sum(shard.rows for shard in todo)
        self.tally = Tally()
        self.actors_wanted: tuple[int, int] | None = None
        """The fewest and the most, once the run has begun."""
        self.held_s: float | None = 0.0
        """The seconds that actors have held their places; None where that is not known."""
        self.interrupted_at: str | None = None
        """What names the first node on which a process ended in a shard's middle."""
        self.raised: Counter[str] = Counter()
        """How often the model has raised for a shard, by what it has raised."""
        self._watch: WatchHandle | None = None
        self._apart: list[Shard] = []
        self._epoch = time.time() - time.monotonic()

    @property
    def failed(self) -> dict[str, str]:
        """The names of the shards that failed, with the reason."""
        return self.retries.failed

    def run(self, actors: str, wait_s: float) -> None:
        """Run all shards in a pool of `actors` (N, MIN:MAX or auto) that has a place in `wait_s`.

        Raises UserError for more rejected rows than `max_rejected`, JobError if the output cannot
        be written, no actor has a place or starts, the model's files change, or Ray fails.
        """
        if not self.todo:
            return
        check_nodes(self.job.source, self.job.folder, self.job.attempt_id)
        pool = self._plan_pool(actors)
        self.actors_wanted = (pool.low, pool.high)
        losses.clear()
        self._announce(pool)
        watch = start_watch(self.ways, self.fusions)
        self._watch = watch
        with progress_bar(self.rows_todo, lambda: (self.tally.rows, self.tally.tokens)):
            wait_for_places(pool.low, self.job.device, wait_s)
            if self.job.device == "cuda":
                warn_of_few_cores(pool.low, pool.cores_per_actor)
            try:
                self._run_rounds(pool, watch)
            finally:
                self.held_s = None
                with suppress(RayError):  # a stop may have ended the watch
                    self.held_s = ray.get(watch.held_s.remote(), timeout=_ANSWER_S)
                    self.ways = ray.get(watch.ways.remote(), timeout=_ANSWER_S)
                    self.fusions = ray.get(watch.fusions.remote(), timeout=_ANSWER_S)

    def retried(self) -> list[tuple[int, str]]:
        """Return the reasons for which something was run again, and how often."""
        raised = self.raised.most_common(_SHOWN_REASONS)
        lost = losses.described(self.interrupted_at)
        return lost + [(count, f"the model raised {what}") for what, count in raised]

    def actors_ready(self) -> int | None:
        """Return the actors whose model is loaded; None where the watch does not say."""
        if self._watch is None:
            return None
        with suppress(RayError):
            ready: int = ray.get(self._watch.ready.remote(), timeout=_ANSWER_S)
            return ready
        return None

    def _run_rounds(self, pool: Pool, watch: WatchHandle) -> None:
        """Run all shards, many at a time, then again those that have no answer."""
        lost: list[Shard] = []
        number = 0
        starts = range(0, len(self.todo), MAX_SHARDS)
        for start in starts:
            number += 1
            shards = self.todo[start : start + MAX_SHARDS]
            lost_now = self._run_round(self._first_round(number, shards, pool), pool, watch)
            lost += lost_now
            if len(starts) > 1:
                note_round(self.retries, ran=len(shards), lost=len(lost_now))
            if gives_up(self.retries):
                break
        while (lost or self._apart) and not gives_up(self.retries):
            again = plan_next_round(self.retries, lost) + self._apart
            self._apart = []
            # Their rows may be rejected now that others are answered.
            self._reject_held()
            # One by one: only what ends its process itself is blamed.
            number += 1
            lost = self._run_round(Round(number, again, True), pool, watch) if again else []
            note_round(self.retries, ran=len(again), lost=len(lost))
        self._reject_held()
        fail_the_rest(self.retries, lost)

    def _plan_pool(self, actors: str) -> Pool:
        shards = len(self.todo)
        low, high = pool_size(actors, self.job.device)
        cores = 1
        if self.job.device == "cuda":
            cores = cores_per_gpu(self.job.model.config, self.job.task.needs_details)
        # More actors than shards would stay idle; 0 stands for as many as there are shards.
        return Pool(min(low or shards, shards), min(high or shards, shards), cores)

    def _announce(self, pool: Pool) -> None:
        say(describe_cluster())
        size = f"{pool.low}" if pool.low == pool.high else f"{pool.low} to {pool.high}"
        say(
            f"labelling {self.rows_todo:,} rows in {len(self.todo):,} shards: {size} actors on "
            f"{self.job.device} in {self.job.dtype}"
        )

    def _first_round(self, number: int, shards: Sequence[Shard], pool: Pool) -> Round:
        """Plan a round of shards that have not run yet.

        Where there are few, each actor has one at a time, and the next is for whoever is free.
        """
        are_few = len(shards) <= 4 * pool.high * pool.cores_per_actor
        return Round(number, shards, one_by_one=are_few and self.job.device == "cpu")

    def _run_round(self, round_: Round, pool: Pool, watch: WatchHandle) -> list[Shard]:
        """Run shards and take in what becomes of them; return those that have no answer."""
        missing = {shard.name: shard for shard in round_.shards}
        raised: list[Shard] = []
        log_file = log_ray_data_to_file()

        def no_actor_has_a_place() -> bool:
            return not ray.get(watch.any_start.remote(round_.number))

        # A signal to all processes of a job may have ended Ray, too: then there is no answer.
        def begin_no_more() -> None:
            ray.get(watch.stop.remote(), timeout=_ANSWER_S)

        def nothing_is_under_way() -> bool:
            # Of each shard that an actor has begun, the commit was reported.
            begun: set[str] = ray.get(watch.begun.remote(round_.number), timeout=_ANSWER_S)
            return not any(name in missing for name in begun)

        try:
            with (
                waiting_said(no_actor_has_a_place, self.job.device),
                finishing_signals(begin_no_more, nothing_is_under_way),
            ):
                for row in through_stages(self.job, round_, pool, watch).iter_rows():
                    self.check()
                    shard = missing[row["name"]]
                    if self._receive(row, shard, log_file):
                        raised.append(shard)
                    del missing[shard.name]
            interrupted = ray.get(watch.interrupted.remote(round_.number))
        except RayError as error:
            _log.error("the job ended with this error", exc_info=error)
            raise JobError(f"Ray: {_summary(error)} (details in {log_file})") from error
        # Cycles that Ray Data leaves hold the actors, and so the CPUs or GPUs of the next round.
        gc.collect()
        for name in missing:
            # Nothing came back. The watch knows whether the process ended in this shard's middle,
            # and whether the model had raised there before, on an actor that was broken.
            was_running = name in interrupted
            reason, node = interrupted.get(name, (None, ""))
            self._lose(name, reason, node, blamed=was_running and reason is None)
        return raised + list(missing.values())

    def _receive(self, row: Json, shard: Shard, log_file: Path) -> bool:
        """Take in what the commit of a shard reports; tell whether the shard is to be run again."""
        cause = row["cause"]
        error = (row["error"] or "").partition("\n")[0]  # a traceback may follow
        error += on_node(row["node"])
        if row["stops"]:
            raise unwritable(self.job.folder, error)
        if cause == START:
            _log.error("no actor starts: %s", row["error"])
            self.failed[shard.name] = f"no actor starts: {error}"
            raise JobError(f"no actor starts: {error} (details in {log_file})")
        if cause == CHANGED:
            self.failed[shard.name] = error
            raise JobError(error)
        if cause == STOPPED:
            return False
        is_shared = len(shard.pieces) > 1 and shard.row_range is None
        if cause == UNREADABLE and is_shared:
            # One file of many may be at fault: each has a shard of its own then.
            self._apart += shard.alone
            return False
        if cause == RAISED:
            self._lose(shard.name, row["error"], row["node"], blamed=True)
            return True
        if cause == NONE_ANSWERED and may_be_held(self.retries):
            self.retries.held[shard.name] = Held(shard, json.loads(row["rejects"]))
        elif error:
            self.failed[shard.name] = error
        else:
            self.add_committed(json.loads(row["stats"]))
        return False

    def _lose(self, name: str, reason: str | None, node: str, *, blamed: bool) -> None:
        """Count that a shard has no answer; `reason`: what the model raised, with its traceback.

        The log has the first one of each reason.
        """
        where = on_node(node)
        self.interrupted_at = self.interrupted_at or where
        if reason:
            first_line = reason.partition("\n")[0]
            self.raised[first_line] += 1
            if self.raised[first_line] == 1:
                _log.error("shard %s cannot be predicted%s: %s", name, where, reason)
        note_loss(self.retries, name, reason, blamed=blamed, where=where)

    def _reject_held(self) -> None:
        """Commit the shards whose rows are all rejected, once some other row is answered."""
        for held in take_held(self.retries):
            committed = reject_shard(self.job, held.shard, held.rejects)
            if committed.stops:
                raise unwritable(self.job.folder, str(committed.error))
            if committed.stats is None:
                self.failed[held.shard.name] = str(committed.error)
            else:
                self.add_committed(json.loads(committed.stats))

    def add_committed(self, stats: Stats) -> None:
        """Count a committed shard.

        Raises UserError where too many rows are rejected by now, JobError for an output that can no
        longer be written.
        """
        # The clocks of workers may differ from the driver's, and that one may be set meanwhile.
        committed_at = self._epoch + time.monotonic()
        try:
            self.stats.add(stats | {"run": self.job.attempt_id, "committed_at": committed_at})
        except OSError as error:
            raise unwritable(self.job.folder, error.strerror or str(error)) from error
        self.tally.add(stats)
        if stats["labelled"]:
            self.retries.some_row_is_answered = True
        rejected = self.tally.rejected
        from_rows = min(self.rows_todo, _SHARE_FROM_ROWS)
        if _too_many(self.max_rejected, rejected, self.tally.rows, from_rows):
            most_common = self.tally.rejects.most_common(3)
            reasons = ", ".join(f"{count:,} times {reason}" for reason, count in most_common)
            raise UserError(
                f"{rejected:,} of the first {self.tally.rows:,} rows were rejected, more than "
                f"--max-rejected {self.max_rejected}: {reasons}; they are in "
                f"{self.job.folder}/{REJECTED}"
            )


def _summary(error: RayError) -> str:
    """Give an error of Ray's in one line: what happened and, from the end of its traceback, why."""
    without_colours = re.sub(r"\x1b\[[\d;]*m", "", str(error))
    lines = without_colours.strip().splitlines() or [type(error).__name__]
    if len(lines) == 1:
        return lines[0]
    what_happened = lines[0].split(",")[0]
    return f"{what_happened}: {lines[-1].strip()}"


def _too_many(most: str | None, rejected: int, rows: int, from_rows: int) -> bool:
    """Tell whether more rows are rejected than `most`, a number or a share.

    A share counts from `from_rows` rows on.
    """
    if most is None:
        return False
    if most.endswith("%"):
        share = float(most[:-1]) / 100
        return rows >= from_rows and rejected > rows * share
    return rejected > int(most)
