"""The shards of a corpus job on Ray: run, run again where they are lost, and split until a row that kills is found."""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import ray
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.exceptions import RayError

from pipelines.corpus.cluster import describe_cluster, log_ray_data_to_file, pool_size, stopped_by_sigterm
from pipelines.corpus.plan import Job
from pipelines.corpus.stages import Predict, Progress, commit, read_and_tokenise, reject_shard
from pipelines.corpus.wire import shard_row
from pipelines.errors import JobError, UserError
from pipelines.input.shards import Shard
from pipelines.output.folder import REJECTED
from pipelines.output.shard_stats import ShardStatsBuilder
from pipelines.report.progress import progress_bar

MAX_SHARDS_TO_SPLIT = 32
"""Where more shards are lost at once it was the machines, not the rows: they are run again whole."""
MAX_ATTEMPTS, MAX_ATTEMPTS_PER_ROW = 2, 3
"""How often a shard is run before it is split, and a single row before it is rejected."""
MAX_ROUNDS_WITHOUT_PROGRESS = 5
POISON_ROW = "its process ended each time that it was predicted"
_SHARE_FROM_ROWS = 1000  # from so many rows on, a share of rejected rows counts


class Execution:
    """A run of shards: the stats of those that were committed, and those that failed."""

    def __init__(self, job: Job, todo: list[Shard], max_rejected: str | None, check: Callable[[], None]):
        """`max_rejected`: a number or a share of rows. `check` is called between shards, and may raise."""
        self.job, self.todo, self.max_rejected, self.check = job, todo, max_rejected, check
        self.stats = ShardStatsBuilder()
        self.failed: dict[str, str] = {}
        """The names of the shards, and the paths of the files, that failed, with the reason."""
        self._rows = sum(shard.rows for shard in todo)
        self._seen_rows = 0
        self._rejects: Counter[str] = Counter()

    def run(self, actors: str) -> None:
        """Run all shards in a pool of `actors` (N, MIN:MAX or auto).

        A shard whose process ends is run again, then in 16 parts, and so on, until the row is found that ends its
        process each time; that row is rejected. Raises UserError for more rejected rows than `max_rejected`, JobError
        if the output cannot be written or Ray fails.
        """
        if not self.todo:
            return
        low, high = (min(n, len(self.todo)) for n in pool_size(actors, self.job.device))
        print(describe_cluster())
        print(
            f"labelling {self._rows:,} rows in {len(self.todo)} shards: {low} actors on {self.job.device} in "
            f"{self.job.dtype}",
            flush=True,
        )
        progress = Progress.remote()  # type: ignore[attr-defined]
        with stopped_by_sigterm(), progress_bar(self._rows, lambda: ray.get(progress.read.remote())):
            blocks = min(len(self.todo), max(len(self.todo) // 8, 4 * high))
            lost = self._run_once(self.todo, blocks, (low, high), progress)
            attempts, rounds_without_progress = Counter(shard.name for shard in lost), 0
            while lost and rounds_without_progress < MAX_ROUNDS_WITHOUT_PROGRESS:
                again = self._next_round(lost, attempts)
                lost = self._run_once(again, len(again), (low, high), progress) if again else []
                attempts.update(shard.name for shard in lost)
                none_done = len(lost) > MAX_SHARDS_TO_SPLIT and len(lost) == len(again)
                rounds_without_progress = rounds_without_progress + 1 if none_done else 0
        self.failed |= {shard.name: "its processes ended without an answer, again and again" for shard in lost}

    def _run_once(self, shards: list[Shard], blocks: int, actors: tuple[int, int], progress: Any) -> list[Shard]:
        """Run shards in `blocks` blocks and return those that are lost since a process ended with them."""
        lost = {shard.name: shard for shard in shards}
        log_file = log_ray_data_to_file()
        try:
            for row in pipeline(self.job, shards, blocks, actors, progress).iter_rows():
                self.check()
                if row["stops"]:
                    raise unwritable(self.job, row["error"])
                lost.pop(row["name"])
                if row["error"]:
                    self.failed[row["name"]] = row["error"]
                else:
                    self._add(json.loads(row["stats"]))
        except RayError as error:
            logging.getLogger("ray.data").error("the job ended with this error", exc_info=error)
            raise JobError(f"Ray: {_summary(error)} (details in {log_file})") from error
        return list(lost.values())

    def _next_round(self, lost: list[Shard], attempts: Counter[str]) -> list[Shard]:
        """Choose what is run next for lost shards: the shard again, its parts, or nothing for a row to be rejected."""
        again: list[Shard] = []
        for shard in lost:
            most = MAX_ATTEMPTS if shard.count > 1 else MAX_ATTEMPTS_PER_ROW
            if len(lost) > MAX_SHARDS_TO_SPLIT or attempts[shard.name] < most:
                again.append(shard)
            elif shard.count > 1:
                again += shard.subshards
            else:
                committed = reject_shard(self.job, shard, POISON_ROW)
                if committed.stats is None:
                    raise unwritable(self.job, str(committed.error))
                self._add(json.loads(committed.stats))
        return again

    def _add(self, stats: dict[str, Any]) -> None:
        self.stats.add(stats)
        self._seen_rows += stats["rows"]
        self._rejects.update(stats["rejects"])
        rejected = self._rejects.total()
        if _too_many(self.max_rejected, rejected, self._seen_rows, min(self._rows, _SHARE_FROM_ROWS)):
            reasons = ", ".join(f"{n:,} times {reason}" for reason, n in self._rejects.most_common(3))
            raise UserError(
                f"{rejected:,} of the first {self._seen_rows:,} rows were rejected, more than "
                f"--max-rejected {self.max_rejected}: {reasons}; they are in {self.job.folder}/{REJECTED}"
            )


def pipeline(job: Job, shards: list[Shard], blocks: int, actors: tuple[int, int], progress: Any) -> Dataset:
    """The stages over shards in `blocks` blocks, with a pool of from `actors[0]` to `actors[1]` actors.

    A block whose process ends is left out, and its actor is started again. Where each shard is a block, an actor has
    one at a time, so that none is lost because of another.

    On CPUs an actor takes 0.9 of a core, so that the rest of each core is left for reading and commits, which are
    quick. The stages' resources differ on purpose: Ray fuses stages whose resources are equal.
    """
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = 16 << 20
    context.execution_options.preserve_order = True
    context.max_errored_blocks = -1
    on_cpu = job.device == "cpu"
    per_actor: dict[str, Any] = {"num_cpus": 0.9} if on_cpu else {"num_cpus": 1, "num_gpus": 1}
    per_actor |= {"max_restarts": -1, "max_task_retries": 0}
    in_flight = 1 if blocks == len(shards) else None
    one_shard: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}
    # No other way to bound an actor's retries yet, and the default is to repeat for ever what ends a process.
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
    return (
        ray.data.from_items([shard_row(shard) for shard in shards], override_num_blocks=blocks)
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


def unwritable(job: Job, reason: str) -> JobError:
    """The error of an output that can no longer be written."""
    return JobError(f"output '{job.folder}' cannot be written: {reason}")


def _summary(error: RayError) -> str:
    """Give an error of Ray's in one line: what happened and, from the end of its traceback, why."""
    lines = re.sub(r"\x1b\[[\d;]*m", "", str(error)).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines) == 1 else f"{lines[0].split(',')[0]}: {lines[-1].strip()}"


def _too_many(most: str | None, rejected: int, rows: int, from_rows: int) -> bool:
    """Tell whether more rows are rejected than `most`: a number, or a share, which counts from `from_rows` rows on."""
    if most is None or not most.endswith("%"):
        return most is not None and rejected > int(most)
    return rows >= from_rows and rejected > rows * float(most[:-1]) / 100
