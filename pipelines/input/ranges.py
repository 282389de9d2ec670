"""Ranges of the rows of a file, cut from the row groups or record batches that hold them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa


def groups_of_ranges(
    group_rows: Sequence[int], ranges: Sequence[tuple[int, int]]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Find the groups of rows that hold ranges of rows.

    Args:
        group_rows: the rows of each group.
        ranges: (first row, number of rows), one after the other.

    Returns:
        The numbers of the groups, and the ranges counted from the first row of these groups alone.
    """
    rows = np.asarray(group_rows, np.int64)
    stops = np.cumsum(rows)
    starts = stops - rows
    is_needed = np.zeros(len(rows), bool)
    for start, count in ranges:
        first = np.searchsorted(stops, start, side="right")
        stop = np.searchsorted(starts, start + count, side="left")
        is_needed[first:stop] = True
    left_out = np.where(is_needed, 0, rows)
    left_out_before = np.concatenate([[0], np.cumsum(left_out)])
    from_first_group: list[tuple[int, int]] = []
    for start, count in ranges:
        first = np.searchsorted(stops, start, side="right")
        from_first_group.append((start - int(left_out_before[first]), count))
    return np.flatnonzero(is_needed).tolist(), from_first_group


def cut_ranges(
    batches: Iterator[pa.RecordBatch], ranges: Sequence[tuple[int, int]], schema: pa.Schema
) -> Iterator[pa.Table]:
    """Yield a table for each range of the rows of record batches, which are taken once, in order.

    A table has fewer rows where the batches end before.
    """
    current: pa.RecordBatch | None = next(batches, None)
    first = 0  # the row at which the current batch begins
    for start, count in ranges:
        stop = start + count
        pieces: list[pa.RecordBatch] = []
        while current is not None:
            stop_of_batch = first + current.num_rows
            begin, end = max(start, first), min(stop, stop_of_batch)
            if begin < end:
                pieces.append(_piece(current, begin - first, end - begin))
            if stop <= stop_of_batch:
                break
            current = next(batches, None)
            first = stop_of_batch
        yield pa.Table.from_batches(pieces, schema)


def _piece(batch: pa.RecordBatch, start: int, rows: int) -> pa.RecordBatch:
    """Return rows of a batch, as a copy where they are few: a slice keeps the whole alive."""
    piece = batch.slice(start, rows)
    if 2 * rows >= batch.num_rows:
        return piece
    columns = [pa.concat_arrays([column]) for column in piece.columns]
    return pa.RecordBatch.from_arrays(columns, schema=piece.schema)
