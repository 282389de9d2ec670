"""The stats of each shard that is done, and their totals.

A commit makes them. Those that depend on the input alone are also in the footer of the part, so
that a killed run loses none; times and batches are known of runs that ended by themselves. The
column names are in files that users read.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

LENGTH_EDGES = [2**i for i in range(18)]
"""The lower edges of the bins in which windows are counted by tokens; the last bin is open."""
SCORE_EDGES = [i / 20 for i in range(21)]
PADDED_ROWS = 32
"""The windows in a padded batch, in input order, that packed batches are compared with."""
_AT_ONCE = 256
SUMS = (
    "rows",
    "labelled",
    "tokens",
    "windows",
    "truncated",
    "padded_tokens",
    "items",
    "item_bytes",
    "replaced",
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


def count_windows(lengths: np.ndarray) -> dict[str, Any]:
    """Return `windows`, `lengths` and `padded_tokens` for windows of the given lengths in
    tokens.
    """
    full = np.concatenate((lengths, np.zeros(-len(lengths) % PADDED_ROWS, lengths.dtype))).reshape(
        -1, PADDED_ROWS
    )
    last = len(lengths) % PADDED_ROWS or PADDED_ROWS
    rows = np.full(len(full), PADDED_ROWS)
    rows[-1:] = last
    return {
        "windows": len(lengths),
        "lengths": np.histogram(lengths, [*LENGTH_EDGES, np.inf])[0].tolist(),
        "padded_tokens": int((full.max(axis=1, initial=0) * rows).sum()),
    }


def count_scores(scores: np.ndarray) -> list[int]:
    """Count scores by bin; an empty list if they are not probabilities."""
    finite = scores[~np.isnan(scores)]
    if not len(finite) or finite.min() < 0 or finite.max() > 1:
        return []
    return np.histogram(finite, SCORE_EDGES)[0].tolist()


def count_items(lists: pa.Array) -> dict[str, int]:
    """Return `items` and `item_bytes` of a column of lists: what they hold together, and the bytes
    that this takes.
    """
    values = lists.flatten()
    return {"items": len(values), "item_bytes": values.nbytes}


def table(shard_stats: list[dict[str, Any]]) -> pa.Table:
    """Make a table of stats."""
    columns = {name: [stats.get(name) for stats in shard_stats] for name in SHARD_STATS.names}
    for name in ("labels", "rejects"):
        columns[name] = [list((counts or {}).items()) for counts in columns[name]]
    return pa.table(columns, SHARD_STATS)


class ShardStatsBuilder:
    """Collects the stats of a run's shards, perhaps a hundred thousand, as tables: a tenth of the
    memory of dicts.
    """

    def __init__(self) -> None:
        self._tables: list[pa.Table] = []
        self._recent: list[dict[str, Any]] = []

    def add(self, stats: dict[str, Any]) -> None:
        """Add the stats of a shard."""
        self._recent.append(stats)
        if len(self._recent) == _AT_ONCE:
            self._tables.append(table(self._recent))
            self._recent = []

    def table(self) -> pa.Table:
        """Return the stats of all shards so far."""
        return pa.concat_tables([*self._tables, table(self._recent)])


def footer(stats: dict[str, Any]) -> str:
    """Return the stats that the part itself keeps in its footer, as JSON."""
    return json.dumps({name: stats[name] for name in KEPT if name in stats})


def add_up(shard_stats: pa.Table) -> dict[str, Any]:
    """Add stats up: sums, counts by label and by reason, histograms."""
    totals: dict[str, Any] = {"shards": len(shard_stats)}
    for name in (*SUMS, "batches", "tokenise_s", "predict_s", "waited_s"):
        totals[name] = pc.sum(shard_stats[name]).as_py() or 0
    capacity_tokens, known = (
        pc.sum(shard_stats["room"]).as_py(),
        shard_stats.filter(pc.is_valid(shard_stats["room"])),
    )
    totals["fill"] = pc.sum(known["tokens"]).as_py() / capacity_tokens if capacity_tokens else None
    totals["rejected"] = totals["rows"] - totals["labelled"]
    for name in ("labels", "rejects"):
        entries = shard_stats[name].combine_chunks()
        grouped = (
            pa.table({"key": entries.keys, "n": entries.items})
            .group_by("key")
            .aggregate([("n", "sum")])
        )
        counts: Counter[str] = Counter(
            dict(zip(grouped["key"].to_pylist(), grouped["n_sum"].to_pylist(), strict=True))
        )
        totals[name] = dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))
    for name in ("lengths", "scores"):
        lists = shard_stats[name].drop_null()
        full = [row for row in lists.to_pylist() if row]
        totals[name] = np.sum(full, axis=0).tolist() if full else []
    return totals
