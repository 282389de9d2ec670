"""The stats of each shard that is done, and their totals.

A commit makes them. Those that depend on the input alone are also in the footer of the part, so
that a killed run loses none; times and batches are known of runs that ended by themselves. The
column names are in files that users read.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

LENGTH_EDGES = [2**i for i in range(18)]
"""The lower edges of the bins in which windows are counted by tokens; the last bin is open."""
SCORE_EDGES = [i / 20 for i in range(21)]
PADDED_ROWS = 32
"""The windows in a padded batch, in input order, that packed batches are compared with."""
Stats = dict[str, Any]
"""The stats of a shard, or of all: SHARD_STATS by name, as JSON; those that are not known lack."""
_AT_ONCE = 256
SUMS = (
    *("rows", "labelled", "tokens", "windows", "truncated", "padded_tokens"),
    *("items", "item_bytes", "replaced"),
)
KEPT = (*SUMS, "lengths", "scores", "labels", "rejects")
"""The stats in a part's footer."""
SHARD_STATS = pa.schema(
    [
        ("name", pa.string()),
        *((name, pa.int64()) for name in SUMS),
        *((name, pa.list_(pa.int64())) for name in ("lengths", "scores")),
        *((name, pa.map_(pa.string(), pa.int64())) for name in ("labels", "rejects")),
        ("batches", pa.int64()),
        ("room", pa.int64()),
        *((name, pa.float64()) for name in ("tokenise_s", "predict_s", "waited_s", "committed_at")),
        ("run", pa.string()),
    ]
)
"""`room`: the tokens that the shard's batches could have held; `waited_s`: the seconds that the
actor was idle before the shard; `committed_at`: when the driver heard of the commit, in seconds
since 1970; `run`: the attempt of `_run.json` that committed it, null in outputs of versions before
0.2.
"""


def count_windows(lengths: np.ndarray) -> Stats:
    """Return `windows`, `lengths` and `padded_tokens` of windows, from their lengths in tokens."""
    missing = -len(lengths) % PADDED_ROWS
    filled = np.concatenate((lengths, np.zeros(missing, lengths.dtype)))
    batches = filled.reshape(-1, PADDED_ROWS)
    longest = batches.max(axis=1, initial=0)
    # The last padded batch has what is left of the windows.
    rows = np.full(len(batches), PADDED_ROWS)
    rows[-1:] = PADDED_ROWS - missing
    counts, _ = np.histogram(lengths, [*LENGTH_EDGES, np.inf])
    return {
        "windows": len(lengths),
        "lengths": counts.tolist(),
        "padded_tokens": int((longest * rows).sum()),
    }


def count_scores(scores: np.ndarray) -> list[int]:
    """Count scores by bin; an empty list if they are not probabilities."""
    finite = scores[~np.isnan(scores)]
    if not len(finite) or finite.min() < 0 or finite.max() > 1:
        return []
    bins, _ = np.histogram(finite, SCORE_EDGES)
    counts: list[int] = bins.tolist()
    return counts


def count_items(lists: pa.Array) -> dict[str, int]:
    """Return `items` and `item_bytes` of a column of lists: what they hold, and its bytes."""
    values = lists.flatten()
    return {"items": len(values), "item_bytes": values.nbytes}


def table(shard_stats: list[Stats]) -> pa.Table:
    """Make a table of stats, in the columns of SHARD_STATS."""
    columns: dict[str, list[Any]] = {}  # of the types of SHARD_STATS
    for name in SHARD_STATS.names:
        columns[name] = [stats.get(name) for stats in shard_stats]
    for name in ("labels", "rejects"):  # a map of Arrow is made of pairs
        columns[name] = [list((counts or {}).items()) for counts in columns[name]]
    return pa.table(columns, SHARD_STATS)


class ShardStatsBuilder:
    """Collects the stats of a run's shards as tables, which take a tenth of the memory of dicts."""

    def __init__(self) -> None:
        self._tables: list[pa.Table] = []
        self._recent: list[Stats] = []

    def add(self, stats: Stats) -> None:
        """Add the stats of a shard."""
        self._recent.append(stats)
        if len(self._recent) == _AT_ONCE:
            self._tables.append(table(self._recent))
            self._recent = []

    def table(self) -> pa.Table:
        """Return the stats of all shards so far."""
        return pa.concat_tables([*self._tables, table(self._recent)])


def footer(stats: Stats) -> str:
    """Return the stats that the part itself keeps in its footer, as JSON."""
    return json.dumps({name: stats[name] for name in KEPT if name in stats})


def add_up(shard_stats: pa.Table) -> Stats:
    """Add stats up: sums, counts by label and by reason, histograms."""
    totals: Stats = {"shards": len(shard_stats)}
    for name in (*SUMS, "batches", "tokenise_s", "predict_s", "waited_s"):
        totals[name] = pc.sum(shard_stats[name]).as_py() or 0
    # Shards of a killed run have tokens and no batches: they do not count for the fill.
    with_batches = shard_stats.filter(pc.is_valid(shard_stats["room"]))
    capacity_tokens = pc.sum(with_batches["room"]).as_py()
    totals["fill"] = None
    if capacity_tokens:
        totals["fill"] = pc.sum(with_batches["tokens"]).as_py() / capacity_tokens
    totals["rejected"] = totals["rows"] - totals["labelled"]
    for name in ("labels", "rejects"):
        totals[name] = _count_by_key(shard_stats[name].combine_chunks())
    for name in ("lengths", "scores"):
        counts = [row for row in shard_stats[name].drop_null().to_pylist() if row]
        totals[name] = np.sum(counts, axis=0).tolist() if counts else []
    return totals


def _count_by_key(maps: pa.MapArray) -> dict[str, int]:
    """Add up counts by their keys, the most frequent first."""
    entries = pa.table({"key": maps.keys, "n": maps.items})
    sums = entries.group_by("key").aggregate([("n", "sum")])
    keys = sums["key"].to_pylist()
    counts = sums["n_sum"].to_pylist()

    def by_frequency(pair: tuple[str, int]) -> tuple[int, str]:
        key, number = pair
        return -number, key

    pairs = zip(keys, counts, strict=True)
    return dict(sorted(pairs, key=by_frequency))
