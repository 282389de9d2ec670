"""The stages of a round of shards as a Dataset of Ray Data: the tasks, and what each takes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from pipelines.corpus.plan import Job
from pipelines.corpus.stages import commit, read_and_tokenise
from pipelines.input.shards import Shard
from pipelines.raydata.actor import Predict
from pipelines.raydata.placement import stage_cpus
from pipelines.raydata.pools import MapBatches, actor_options
from pipelines.raydata.watch import WatchHandle
from pipelines.raydata.wire import unit_row

if TYPE_CHECKING:
    from ray.data import DataContext, Dataset

_MAX_BLOCKS = 4096
"""The blocks that what is read together is dealt out in: a task each."""
_FED_BY_A_READER = 2
"""The actors on CPUs that a reader feeds: many more where files are near, fewer where they are far.

Each process more takes the CPU time of a shard or two to start, which the actors then lack.
"""


@dataclass(frozen=True)
class Pool:
    """The model actors of a run: from `low` to `high` of them."""

    low: int
    high: int
    cores_per_actor: int
    """The CPU cores that keep one actor busy with tokenised shards."""


@dataclass(frozen=True)
class Round:
    """Shards that go through the stages together."""

    number: int
    shards: Sequence[Shard]
    one_by_one: bool
    """Whether an actor has one shard at a time, so that none is lost because of another."""


def through_stages(job: Job, round_: Round, pool: Pool, watch: WatchHandle) -> Dataset:
    """Return what the commits of shards report, as the rows of a lazy Dataset.

    A block whose process ends is left out, and its actor is started again. An actor on a GPU works
    at two blocks at once unless the round goes one by one: while the last batches of a shard are
    computed, those of the next are prepared.

    The stages' resources differ on purpose: Ray fuses stages whose resources are equal. Commits
    take next to no CPU, and so are bounded by their number: each runs in a process of its own.
    """
    import ray.data  # it takes as long as Ray's start, within which it is imported
    from ray.data import DataContext

    read_cpus, _, commit_cpus = stage_cpus(job.device)
    predict = actor_options(
        job.device, (pool.low, pool.high), retries=0, one_by_one=round_.one_by_one
    )
    one_shard: MapBatches = {"batch_size": 1, "batch_format": "pyarrow"}
    reading: MapBatches = {"num_cpus": read_cpus}
    readers = 1
    if pool.cores_per_actor > 1:
        readers = pool.high * (pool.cores_per_actor - 1)
    if job.device == "cpu":
        reading["concurrency"] = -(-pool.high // _FED_BY_A_READER)
    rows = [unit_row(unit) for unit in units_of(round_.shards, readers)]
    # Ray Data advises more blocks where few shards reach the commit.
    warnings.filterwarnings("ignore", message="The maximum number of concurrent tasks")
    with DataContext.current(_context(round_, pool)):  # a dataset keeps the one it is made in
        shards = ray.data.from_items(rows, override_num_blocks=min(len(rows), _MAX_BLOCKS))
        tokenised = shards.map_batches(
            partial(read_and_tokenise, job, watch=watch), **reading, **one_shard
        )
        predicted = tokenised.map_batches(
            Predict, fn_constructor_args=(job, watch, round_.number), **predict, **one_shard
        )
        return predicted.map_batches(
            partial(commit, job, watch=watch, round_number=round_.number),
            num_cpus=commit_cpus,
            concurrency=pool.high,
            **one_shard,
        )


def units_of(shards: Sequence[Shard], readers: int) -> list[list[Shard]]:
    """Put shards together that are decoded in one pass over their file.

    Tokenising takes longer than decoding: where there are fewer units than `readers`, a unit is
    shared by several, each of which decodes the rows before its own, too.
    """
    units: list[list[Shard]] = []
    for shard in shards:
        last = units[-1][-1] if units else None
        if last is not None and last.is_read_with(shard):
            units[-1].append(shard)
        else:
            units.append([shard])
    readers_of_each = -(-readers // max(len(units), 1))
    if readers_of_each == 1:
        return units
    smaller: list[list[Shard]] = []
    for unit in units:
        size = -(-len(unit) // readers_of_each)
        smaller += [unit[start : start + size] for start in range(0, len(unit), size)]
    return smaller


def _context(round_: Round, pool: Pool) -> DataContext:
    """Return the settings of Ray Data for a round; other datasets of the process keep theirs."""
    from ray.data import DataContext
    from ray.data.context import AutoscalingConfig

    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # A shard is a block of its own: it goes on as soon as it is done.
    context.target_max_block_size = 1
    # A shard that is slow holds no other's commit back.
    context.execution_options.preserve_order = False
    # What becomes of a block that is lost is for retries.py to say.
    context.max_errored_blocks = -1
    # Actors that Ray itself cannot start (modules that do not import there, a lost node), none
    # between that starts.
    context.max_consecutive_actor_init_deaths = max(8, 4 * pool.high)
    # A shard of long texts may take hours; --batch-timeout-s is the limit.
    context.execution_no_progress_timeout_s = -1
    context.autoscaling_config = AutoscalingConfig()
    if round_.one_by_one:
        # The pool grows where each actor has its task, not only where tasks wait for actors.
        context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    return context
