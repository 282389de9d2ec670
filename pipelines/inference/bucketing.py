"""Lengths and a token budget in, packed batches out. Pure numpy: no Ray, no torch.

Shapes: W windows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def packed_batches(lengths: Sequence[int] | np.ndarray, budget_tokens: int) -> list[np.ndarray]:
    """Cut windows into packed batches of at most `budget_tokens` tokens: arrays of indices into
    `lengths` (W,).

    Windows are taken from the longest to the shortest, so that equal lengths share a batch and the
    first batch is the one that needs most memory. Each batch holds its windows from the shortest to
    the longest. A window longer than the budget is a batch of its own. Raises ValueError for a
    length or budget below 1.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if budget_tokens < 1 or (lengths < 1).any():
        raise ValueError(
            f"lengths and budget_tokens must be at least 1, not {lengths.min(initial=1)}, "
            f"{budget_tokens}"
        )
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    batches, start, used = [], 0, 0
    while start < len(order):
        stop = max(start + 1, int(np.searchsorted(ends, used + budget_tokens, side="right")))
        batches.append(order[start:stop][::-1])
        used, start = int(ends[stop - 1]), stop
    return batches
