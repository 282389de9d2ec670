"""The shards of a corpus job on Ray: run, run again where they are lost, and split until a row that
kills is found.

A shard without an answer is blamed only by an actor that answers the task's probe (stages.py): a
model that raises or ends its process for every text is no fault of the rows, which must not be
rejected for it.
"""

from __future__ import annotations

import gc
import json
import logging
import re
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.data.context import AutoscalingConfig
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.corpus.nodes import check_nodes
from pipelines.corpus.plan import Job
from pipelines.corpus.stages import Predict, commit, read_and_tokenise, reject_shard
from pipelines.errors import JobError, UserError
from pipelines.input.shards import Shard
from pipelines.output.folder import REJECTED
from pipelines.output.shard_stats import ShardStatsBuilder
from pipelines.raydata.cluster import describe_cluster, log_ray_data_to_file
from pipelines.raydata.placement import (
    cores_per_gpu,
    pool_size,
    stage_cpus,
    wait_for_places,
    waiting_said,
    warn_of_few_cores,
)
from pipelines.raydata.watch import Watch
from pipelines.raydata.wire import CHANGED, NONE_ANSWERED, RAISED, START, reject, shard_row
from pipelines.report.progress import progress_bar
from pipelines.report.text import say

MAX_SHARDS_TO_SPLIT = 32
"""Where more shards are lost at once it was the machines, not the rows: they are run again whole.
"""
MAX_ATTEMPTS, MAX_ATTEMPTS_PER_ROW = 2, 3
"""How often a shard raises or ends its process before it is split, and a single row before it is
rejected.
"""
MAX_LOSSES = 5
"""How often a shard is lost to the machines, not by its own fault, before it fails."""
MAX_ROUNDS_WITHOUT_PROGRESS = 5
MAX_BLOCKS = 4096
"""The blocks that shards are dealt out in: the driver keeps statistics of each until the end."""
POISON_ROW = "its process ended each time that it was predicted"
LOST = "its processes ended without an answer, again and again"
_WATCH = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Watch)
_log = logging.getLogger("ray.data")  # goes to the file that log_ray_data_to_file names
_SHARE_FROM_ROWS = 1000  # from so many rows on, a share of rejected rows counts


class Execution:
    """A run of shards: the stats of those that were committed, and those that failed."""

    def __init__(
        self, job: Job, todo: list[Shard], max_rejected: str | None, check: Callable[[], None]
    ):
        """`max_rejected`: a number or a share of rows. `check` is called between shards, and may
        raise.
        """
        self.job, self.todo, self.max_rejected, self.check = job, todo, max_rejected, check
        self.stats = ShardStatsBuilder()
        self.failed: dict[str, str] = {}
        """The names of the shards, and the paths of the files, that failed, with the reason."""
        self._rows = sum(shard.rows for shard in todo)
        self._epoch = time.time() - time.monotonic()
        self._seen_rows = self._labelled = self._round = 0
        self._rejects: Counter[str] = Counter()
        self._blamed: Counter[str] = Counter()
        """How often shards have raised, or ended their process, on an actor that answers the probe.
        """
        self._lost: Counter[str] = Counter()
        """How often shards were lost for another reason."""
        self._reasons: dict[str, str] = {}
        """What was said when a shard was lost last."""
        self._held: dict[str, tuple[Shard, list[dict[str, Any]]]] = {}
        """Shards whose rows are all rejected once another row is answered: else it is the model,
        not the rows.
        """

    def run(self, actors: str, wait_s: float) -> None:
        """Run all shards in a pool of `actors` (N, MIN:MAX or auto), which has a place within
        `wait_s`.

        A shard whose process ends, or for which the model raises, is run again, then in 16 parts,
        and so on, until the row is found that does so each time, on actors that answer the probe;
        that row is rejected. Where the actors do not answer it, or no row of the run is answered,
        the shards fail. Raises UserError for more rejected rows than `max_rejected`, JobError if
        the output cannot be written, no actor has a place or comes up, or Ray fails.
        """
        if not self.todo:
            return
        check_nodes(self.job)
        low, high = (
            min(n or len(self.todo), len(self.todo)) for n in pool_size(actors, self.job.device)
        )
        say(describe_cluster())
        on_gpus = self.job.device == "cuda"
        wanted = cores_per_gpu(self.job.model.config, self.job.task.needs_details) if on_gpus else 1
        pool = f"{low} actors" if low == high else f"{low} to {high} actors"
        say(
            f"labelling {self._rows:,} rows in {len(self.todo)} shards: {pool} on "
            f"{self.job.device} in {self.job.dtype}"
        )
        watch = _start_here(_WATCH)
        with progress_bar(self._rows, lambda: ray.get(watch.counts.remote())):
            wait_for_places(low, self.job.device, wait_s)
            if on_gpus:
                warn_of_few_cores(low, wanted)
            blocks = min(len(self.todo), MAX_BLOCKS, max(len(self.todo) // 8, 4 * high * wanted))
            one_by_one = blocks == len(self.todo) and self.job.device == "cpu"
            lost = self._run_once(self.todo, blocks, one_by_one, (low, high), watch)
            rounds_without_progress = 0
            while lost and rounds_without_progress < MAX_ROUNDS_WITHOUT_PROGRESS:
                again = self._next_round(lost)
                self._commit_held()
                lost = self._run_once(again, len(again), True, (low, high), watch) if again else []
                none_done = len(lost) > MAX_SHARDS_TO_SPLIT and len(lost) == len(again)
                rounds_without_progress = rounds_without_progress + 1 if none_done else 0
        self._commit_held()
        self.failed |= {shard.name: self._reasons.get(shard.name, LOST) for shard in lost}
        self.failed |= {name: rejects[-1]["reason"] for name, (_, rejects) in self._held.items()}

    def _run_once(
        self,
        shards: list[Shard],
        blocks: int,
        one_by_one: bool,
        actors: tuple[int, int],
        watch: Any,
    ) -> list[Shard]:
        """Run shards in `blocks` blocks, with `one_by_one` no two at an actor, and return those to
        be run again.
        """
        missing = {shard.name: shard for shard in shards}
        again: list[Shard] = []
        log_file = log_ray_data_to_file()
        self._round += 1

        def watched(method: str) -> Any:
            return ray.get(watch.call.remote(self._round, method))

        try:
            with waiting_said(lambda: not watched("any_start"), self.job.device):
                for row in pipeline(
                    self.job, shards, blocks, one_by_one, actors, watch, self._round
                ).iter_rows():
                    self.check()
                    if self._receive(row, missing[row["name"]], log_file):
                        again.append(missing[row["name"]])
                    del missing[row["name"]]
            interrupted = watched("interrupted")
        except RayError as error:
            _log.error("the job ended with this error", exc_info=error)
            raise JobError(f"Ray: {_summary(error)} (details in {log_file})") from error
        # cycles that Ray Data leaves hold the actors, and so CPUs or GPUs that the next round wants
        gc.collect()
        for name in missing:
            reason = interrupted.get(name)
            self._lose(name, reason, blamed=name in interrupted and reason is None)
        return again + list(missing.values())

    def _receive(self, row: dict[str, Any], shard: Shard, log_file: Path) -> bool:
        """Take in what the commit of a shard reports, and tell whether the shard is to be run
        again.
        """
        if row["stops"]:
            raise unwritable(self.job, row["error"])
        error = (row["error"] or "").partition("\n")[0]
        if row["cause"] == START:
            _log.error("no actor comes up: %s", row["error"])
            self.failed[shard.name] = f"no actor comes up: {error}"
            raise JobError(f"no actor comes up: {error} (details in {log_file})")
        if row["cause"] == CHANGED:
            self.failed[shard.name] = error
            raise JobError(error)
        if row["cause"] == RAISED:
            self._lose(shard.name, row["error"], blamed=True)
        elif row["cause"] == NONE_ANSWERED and (
            self._labelled or len(self._held) < MAX_SHARDS_TO_SPLIT
        ):
            self._held[shard.name] = shard, json.loads(row["rejects"])
        elif error:
            self.failed[shard.name] = error
        else:
            self._add(json.loads(row["stats"]))
        return row["cause"] == RAISED

    def _lose(self, name: str, reason: str | None, blamed: bool) -> None:
        """Count that a shard has no answer; `reason`: what the model raised, with its traceback."""
        (self._blamed if blamed else self._lost)[name] += 1
        self._reasons.pop(name, None)
        if reason:
            if len(self._reasons) < MAX_SHARDS_TO_SPLIT:
                _log.error("shard %s cannot be predicted: %s", name, reason)
            self._reasons[name] = f"cannot be predicted: {reason.partition(chr(10))[0]}"

    def _next_round(self, lost: list[Shard]) -> list[Shard]:
        """Choose what is run next for shards without an answer: the shard again, its parts, or
        nothing.
        """
        again: list[Shard] = []
        for shard in lost:
            name = shard.name
            most = MAX_ATTEMPTS if shard.count > 1 else MAX_ATTEMPTS_PER_ROW
            if self._lost[name] >= MAX_LOSSES:
                self.failed[name] = self._reasons.get(name, LOST)
            elif len(lost) > MAX_SHARDS_TO_SPLIT or self._blamed[name] < most:
                again.append(shard)
            elif shard.count == 1:
                row = shard.row_range[0] if shard.row_range else 0
                self._held[name] = (
                    shard,
                    [reject(row, self._reasons.get(name, POISON_ROW), "predict")],
                )
            elif self._labelled or shard.row_range is None:
                again += shard.subshards
            else:  # none of its neighbours is answered either
                self.failed[name] = self._reasons.get(name, LOST)
        return again

    def _commit_held(self) -> None:
        """Commit the shards whose rows are all rejected, once some other row is answered."""
        while self._held and self._labelled:
            _, (shard, rejects) = self._held.popitem()
            committed = reject_shard(self.job, shard, rejects)
            if committed.stops:
                raise unwritable(self.job, str(committed.error))
            if committed.stats is None:
                self.failed[shard.name] = str(committed.error)
            else:
                self._add(json.loads(committed.stats))

    def _add(self, stats: dict[str, Any]) -> None:
        # The clocks of workers may differ from the driver's, and that one may be set while the job
        # runs.
        self.stats.add(
            stats | {"run": self.job.run, "committed_at": self._epoch + time.monotonic()}
        )
        self._seen_rows += stats["rows"]
        self._labelled += stats["labelled"]
        self._rejects.update(stats["rejects"])
        rejected = self._rejects.total()
        if _too_many(
            self.max_rejected, rejected, self._seen_rows, min(self._rows, _SHARE_FROM_ROWS)
        ):
            reasons = ", ".join(
                f"{n:,} times {reason}" for reason, n in self._rejects.most_common(3)
            )
            raise UserError(
                f"{rejected:,} of the first {self._seen_rows:,} rows were rejected, more than "
                f"--max-rejected {self.max_rejected}: {reasons}; they are in "
                f"{self.job.folder}/{REJECTED}"
            )


def pipeline(
    job: Job,
    shards: list[Shard],
    blocks: int,
    one_by_one: bool,
    actors: tuple[int, int],
    watch: Any,
    round_number: int,
) -> Dataset:
    """The stages over shards in `blocks` blocks, with a pool of from `actors[0]` to `actors[1]`
    actors.

    A block whose process ends is left out, and its actor is started again. With `one_by_one` an
    actor has one block at a time, so that none is lost because of another. Else an actor on a GPU
    works at two at once: while the last batches of a shard are computed, those of the next are
    prepared.

    The stages' resources differ on purpose: Ray fuses stages whose resources are equal.
    """
    context = DataContext.get_current().copy()  # other datasets of the process keep theirs
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = 16 << 20
    context.execution_options.preserve_order = (
        False  # a shard that is slow holds no other's commit back
    )
    context.max_errored_blocks = -1
    # Actors that Ray itself cannot start (modules that do not import there, a lost node), none
    # between that starts.
    context.max_consecutive_actor_init_deaths = max(8, 4 * actors[1])
    context.execution_no_progress_timeout_s = (
        -1
    )  # a shard of long texts may take hours; --batch-timeout-s is the limit
    read_cpus, _, commit_cpus = stage_cpus(job.device)
    context.autoscaling_config = AutoscalingConfig()
    if (
        one_by_one
    ):  # the pool grows where each actor has its task, not only where tasks wait for actors
        context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    one_shard: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}
    with DataContext.current(context):  # a dataset keeps the context that it is made in
        return (
            ray.data.from_items([shard_row(shard) for shard in shards], override_num_blocks=blocks)
            .map_batches(partial(read_and_tokenise, job), num_cpus=read_cpus, **one_shard)
            .map_batches(
                Predict,
                fn_constructor_args=(job, watch, round_number),
                **actor_options(job.device, actors, retries=0, one_by_one=one_by_one),
                **one_shard,
            )
            .map_batches(partial(commit, job), num_cpus=commit_cpus, **one_shard)
        )


def actor_options(
    device: str, actors: tuple[int, int | None], *, retries: int, one_by_one: bool = False
) -> dict[str, Any]:
    """Return the options of `map_batches` for a pool of from `actors[0]` to `actors[1]` model
    actors.

    `retries`: how often a task whose process ends is run again; `one_by_one`: whether an actor has
    one task at a time, where an actor on a GPU otherwise works at two.
    """
    # No other way to bound an actor's retries yet, and the default is to repeat for ever what ends
    # a process.
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
    on_cpu = device == "cpu"
    pool = ActorPoolStrategy(
        min_size=actors[0],
        max_size=actors[1],
        max_tasks_in_flight_per_actor=1 if one_by_one else None,
        enable_true_multi_threading=not on_cpu,
    )
    options = {
        "compute": pool,
        "num_cpus": stage_cpus(device)[1],
        "max_restarts": -1,
        "max_task_retries": retries,
    }
    return (
        options
        | {"max_concurrency": 1 if on_cpu or one_by_one else 2}
        | ({} if on_cpu else {"num_gpus": 1})
    )


def _start_here(actor: Any) -> Any:
    """Start an actor on the driver's node, which ends with the driver and not before it."""
    node = ray.get_runtime_context().get_node_id()
    return actor.options(
        scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True)
    ).remote()


def unwritable(job: Job, reason: str) -> JobError:
    """The error of an output that can no longer be written."""
    return JobError(f"output '{job.folder}' cannot be written: {reason}")


def _summary(error: RayError) -> str:
    """Give an error of Ray's in one line: what happened and, from the end of its traceback, why."""
    lines = re.sub(r"\x1b\[[\d;]*m", "", str(error)).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines) == 1 else f"{lines[0].split(',')[0]}: {lines[-1].strip()}"


def _too_many(most: str | None, rejected: int, rows: int, from_rows: int) -> bool:
    """Tell whether more rows are rejected than `most`: a number, or a share, which counts from
    `from_rows` rows on.
    """
    if most is None or not most.endswith("%"):
        return most is not None and rejected > int(most)
    return rows >= from_rows and rejected > rows * float(most[:-1]) / 100
