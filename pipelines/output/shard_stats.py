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
EXAMPLES = 10
"""The rows that a shard keeps to be looked at first, and that the report shows of all."""
PADDED_ROWS = 32
"""The windows in a padded batch, in input order, that packed batches are compared with."""
Stats = dict[str, Any]
"""The stats of a shard, or of all: SHARD_STATS by name, as JSON; those that are not known lack."""
SUMS = (
    *("rows", "labelled", "tokens", "windows", "truncated", "padded_tokens"),
    *("items", "item_bytes", "replaced"),
)
_MEASURED = ("batches", "tokenise_s", "predict_s", "waited_s")
_COUNTED = ("labels", "rejects", "checks")
"""Counts by a key."""
KEPT = (*SUMS, "lengths", "scores", "labels", "rejects")
"""The stats in a part's footer that the record has sums of; `checks` and `examples` are there, too.
"""
SHARD_STATS = pa.schema(
    [
        ("name", pa.string()),
        *((name, pa.int64()) for name in SUMS),
        *((name, pa.list_(pa.int64())) for name in ("lengths", "scores")),
        *((name, pa.map_(pa.string(), pa.int64())) for name in _COUNTED),
        ("examples", pa.list_(pa.string())),
        ("batches", pa.int64()),
        ("room", pa.int64()),
        *((name, pa.float64()) for name in ("tokenise_s", "predict_s", "waited_s", "committed_at")),
        ("run", pa.string()),
    ]
)
"""`checks`: answers against gold (tasks/checks.py); `examples`: the rows to look at first
(corpus/checking.py), as JSON.

`room`: the tokens that the shard's batches could have held; `waited_s`: the seconds that the
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
    for name in _COUNTED:  # a map of Arrow is made of pairs
        columns[name] = [list((counts or {}).items()) for counts in columns[name]]
    return pa.table(columns, SHARD_STATS)


def footer(stats: Stats) -> str:
    """Return the stats that the part itself keeps in its footer, as JSON."""
    kept = (*KEPT, "checks", "examples")
    return json.dumps({name: stats[name] for name in kept if name in stats})


class Totals:
    """Adds stats up, one table after the other: sums, counts by label and by reason, histograms."""

    def __init__(self) -> None:
        self._shards = 0
        self._sums: dict[str, Any] = dict.fromkeys((*SUMS, *_MEASURED), 0)
        # Shards of a killed run have tokens and no batches: they do not count for the fill.
        self._room = 0
        self._tokens_in_batches = 0
        self._counts: dict[str, Counter[str]] = {name: Counter() for name in _COUNTED}
        self._histograms: dict[str, np.ndarray | None] = {"lengths": None, "scores": None}

    def add(self, shard_stats: pa.Table) -> None:
        """Add the stats of shards."""
        self._shards += len(shard_stats)
        for name in self._sums:
            self._sums[name] += pc.sum(shard_stats[name]).as_py() or 0
        figures = shard_stats.select(["room", "tokens"])
        with_batches = figures.filter(pc.is_valid(figures["room"]))
        self._room += pc.sum(with_batches["room"]).as_py() or 0
        self._tokens_in_batches += pc.sum(with_batches["tokens"]).as_py() or 0
        for name, counts in self._counts.items():
            counts.update(_count_by_key(shard_stats[name].combine_chunks()))
        for name, counted in self._histograms.items():
            added = _add_lists(shard_stats[name].combine_chunks())
            if added is not None:
                self._histograms[name] = added if counted is None else counted + added

    def result(self) -> Stats:
        """Return the totals; counts by key begin with the most frequent."""
        totals: Stats = {"shards": self._shards, **self._sums, "fill": None}
        if self._room:
            totals["fill"] = self._tokens_in_batches / self._room
        totals["rejected"] = totals["rows"] - totals["labelled"]
        for name, counts in self._counts.items():
            totals[name] = dict(sorted(counts.items(), key=by_frequency))
        for name, counted in self._histograms.items():
            totals[name] = [] if counted is None else counted.tolist()
        return totals


def add_up(shard_stats: pa.Table) -> Stats:
    """Add the stats of a table up."""
    totals = Totals()
    totals.add(shard_stats)
    return totals.result()


def by_frequency(count: tuple[str, int]) -> tuple[int, str]:
    """Give the key by which counts are sorted: the most frequent first, then by name."""
    key, number = count
    return -number, key


def _count_by_key(maps: pa.MapArray) -> dict[str, int]:
    """Add up counts by their keys."""
    entries = pa.table({"key": maps.keys, "n": maps.items})
    sums = entries.group_by("key").aggregate([("n", "sum")])
    return dict(zip(sums["key"].to_pylist(), sums["n_sum"].to_pylist(), strict=True))


def _add_lists(lists: pa.ListArray) -> np.ndarray | None:
    """Add up lists, which are of one length where they are not empty; None if all are."""
    filled = lists.filter(pc.greater(pc.list_value_length(lists), 0))
    if not len(filled):
        return None
    counts: np.ndarray = filled.flatten().to_numpy().reshape(len(filled), -1).sum(axis=0)
    return counts
