"""Packed batches hold every window once and keep to the budget."""

from __future__ import annotations

import numpy as np
import pytest

from pipelines.inference.bucketing import packed_batches


@pytest.mark.parametrize("seed", range(5))
def test_every_window_once_within_the_budget_sorted_by_length(seed):
    lengths = np.random.default_rng(seed).lognormal(5, 1, 3000).astype(int).clip(1, 9000)
    batches = packed_batches(lengths, 4096)
    assert sorted(np.concatenate(batches).tolist()) == list(range(3000))
    for batch in batches:
        assert lengths[batch].sum() <= 4096 or len(batch) == 1
        assert (np.diff(lengths[batch]) >= 0).all()
    filled = lengths.sum() / (len(batches) * 4096)
    assert (
        filled > 0.9
    )  # a sorted cut leaves about half a document empty in each batch, and long ones are rare


def test_edges():
    assert packed_batches([], 16) == []
    assert [batch.tolist() for batch in packed_batches([100], 16)] == [[0]]
    assert [batch.tolist() for batch in packed_batches([8, 8, 8], 16)] == [[1, 0], [2]]
    for lengths, budget in (([0, 3], 16), ([3], 0)):
        with pytest.raises(ValueError, match="at least 1"):
            packed_batches(lengths, budget)
