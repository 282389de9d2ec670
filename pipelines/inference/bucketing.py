"""Lengths and a token budget in, packed batches out. Pure numpy: no Ray, no torch.

Shapes: W windows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def packed_batches(lengths: Sequence[int] | np.ndarray, budget_tokens: int) -> list[np.ndarray]:
    """Cut windows into packed batches of at most `budget_tokens` tokens.

    Returns arrays of indices into `lengths` (W,), the tokens of windows.

    Windows are taken from the longest to the shortest, so that equal lengths share a batch and the
    first batch is the one that needs most memory. Each batch holds its windows from the shortest to
    the longest. A window longer than the budget is a batch of its own. Raises ValueError for a
    length or budget below 1.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    if budget_tokens < 1 or (lengths < 1).any():
        shortest = lengths.min(initial=1)
        raise ValueError(
            f"lengths and budget_tokens must be at least 1, not {shortest}, {budget_tokens}"
        )
    order = np.argsort(-lengths, kind="stable")
    tokens_until = np.cumsum(lengths[order])
    batches = []
    start = 0
    tokens_before = 0
    while start < len(order):
        most_tokens = tokens_before + budget_tokens
        stop = int(np.searchsorted(tokens_until, most_tokens, side="right"))
        stop = max(start + 1, stop)  # a window longer than the budget
        from_short_to_long = order[start:stop][::-1]
        batches.append(from_short_to_long)
        tokens_before = int(tokens_until[stop - 1])
        start = stop
    return batches
