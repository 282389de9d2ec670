"""Receipts: what they count of a shard, and what they add up to."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from pipelines.output import shard_stats
from pipelines.output.shard_stats import add_up, count_scores, count_windows
from pipelines.output.shards_file import SegmentWriter
from pipelines.storage import Folder


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 100])
def test_padded_tokens_are_those_of_batches_of_32_padded_to_their_longest(count):
    lengths = np.random.default_rng(count).integers(1, 9000, count)
    batches = [lengths[i : i + 32] for i in range(0, count, 32)]
    counted = count_windows(lengths)
    assert counted["padded_tokens"] == sum(len(batch) * batch.max() for batch in batches)
    assert counted["windows"] == sum(counted["lengths"]) == count


def test_a_window_is_counted_from_its_power_of_two_on():
    assert count_windows(np.array([1, 2, 3, 4, 8191, 8192, 10**6]))["lengths"] == [
        1,
        2,
        1,
        *[0] * 9,
        1,
        1,
        *[0] * 3,
        1,
    ]


def test_scores_that_are_no_probabilities_have_no_histogram():
    assert count_scores(np.array([0.0, 0.04, 0.05, 1.0, np.nan])) == [2, 1, *[0] * 17, 1]
    assert count_scores(np.array([0.5, 3.0])) == []
    assert count_scores(np.array([np.nan])) == []


def test_receipts_add_up_and_what_a_footer_holds_is_enough_for_the_counts(tmp_path):
    result = SegmentWriter(Folder(str(tmp_path)), "run")
    added = []
    for i in range(1000):
        counted = count_windows(np.full(3, i + 1)) | {
            "scores": [i] * 20,
            "labels": {"a": 2, f"b{i % 2}": 1},
        }
        counted |= {
            "rows": 4,
            "labelled": 3,
            "tokens": 3 * i,
            "truncated": 1,
            "rejects": {"text is null": 1},
        }
        added.append({"name": str(i), **counted, "batches": 1, "room": 4096, "predict_s": 0.5})
        result.add(added[-1])
        if i % 300 == 299:
            result.flush()
    totals = result.totals()
    assert totals == add_up(shard_stats.table(added))
    assert totals["rows"] == 4000
    assert totals["rejected"] == totals["rejects"]["text is null"] == 1000
    assert totals["labels"] == {"a": 2000, "b0": 500, "b1": 500}
    assert totals["scores"] == [499_500] * 20
    assert totals["predict_s"] == 500
    assert totals["fill"] == pytest.approx(3 * 499_500 / 4_096_000)
    first = shard_stats.table(added[:2]).to_pylist()
    maps = [{name: dict(stats[name]) for name in ("labels", "rejects")} for stats in first]
    kept = [
        json.loads(shard_stats.footer(stats | counts))
        for stats, counts in zip(first, maps, strict=True)
    ]
    recovered = add_up(shard_stats.table(kept))
    assert (recovered["tokens"], recovered["labels"]) == (3, {"a": 4, "b0": 1, "b1": 1})
    assert recovered["fill"] is None
    assert add_up(shard_stats.table([]))["rows"] == 0


def test_items_of_lists_are_counted_with_their_bytes():
    lists = pa.array(
        [[[1.0, 2.0]], [], [[3.0, 4.0], [5.0, 6.0]]], pa.list_(pa.list_(pa.float16(), 2))
    )
    assert shard_stats.count_items(lists) == {"items": 3, "item_bytes": 3 * 2 * 2}
    assert shard_stats.count_items(lists[:1])["items"] == 1
