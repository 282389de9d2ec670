"""Parquet files: a shard is a run of rows in one or more row groups; a file with a huge row group is staged."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from pipelines.input.shards import MAX_SHARD_ROWS, Block, Format, Reading, Scan

HUGE_ROWS, HUGE_BYTES = 8 * MAX_SHARD_ROWS, 16 << 20
"""A row group of more rows and bytes would be decoded from its start for each of its shards."""


def inspect(filesystem: fs.FileSystem, path: str) -> tuple[Scan, pa.Schema] | None:
    """Read the footer."""
    with filesystem.open_input_file(path) as stream:
        file = pq.ParquetFile(stream)
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        if any(group.num_rows > HUGE_ROWS and group.total_byte_size > HUGE_BYTES for group in groups):
            return None
        return Scan(file.metadata.num_rows, sum(group.total_byte_size for group in groups)), file.schema_arrow


def blocks(reading: Reading) -> Iterator[Block]:
    """Yield the rows in order."""
    with reading.filesystem.open_input_file(reading.path) as stream:
        file = pq.ParquetFile(stream)
        rows = 0
        for batch in file.iter_batches(MAX_SHARD_ROWS, use_threads=False):
            rows += len(batch)
            yield Block(pa.Table.from_batches([batch]), [], rows / file.metadata.num_rows)
            if reading.options.limit and rows >= reading.options.limit:
                return


def read(filesystem: fs.FileSystem, path: str, start: int, rows: int, columns: list[str]) -> pa.Table:
    """Read the row groups that hold the rows."""
    with filesystem.open_input_file(path) as stream:
        file = pq.ParquetFile(stream)
        present = [name for name in columns if name in file.schema_arrow.names]
        if not present:
            return pa.table({"": pa.nulls(rows)})
        skip, groups = _row_groups(file.metadata, start, rows)
        batches = file.iter_batches(MAX_SHARD_ROWS, groups, present, use_threads=False)
        found = list(row_range(batches, skip, rows))
        return pa.Table.from_batches(found) if found else file.schema_arrow.empty_table().select(present)


def row_range(batches: Iterator[pa.RecordBatch], skip: int, rows: int) -> Iterator[pa.RecordBatch]:
    """Yield `rows` rows of record batches after the first `skip`."""
    for batch in batches:
        if skip >= batch.num_rows:
            skip -= batch.num_rows
            continue
        piece = batch.slice(skip, rows)
        skip, rows = 0, rows - piece.num_rows
        yield piece
        if not rows:
            return


def _row_groups(metadata: pq.FileMetaData, start: int, wanted: int) -> tuple[int, list[int]]:
    """Return the rows to skip in the first row group that holds the rows, and the groups."""
    skip, groups = start, list[int]()
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if not groups and skip >= rows:
            skip -= rows
            continue
        groups.append(group)
        if sum(metadata.row_group(i).num_rows for i in groups) >= skip + wanted:
            break
    return skip, groups


PARQUET = Format("parquet", (".parquet", ".pq"), blocks, inspect, read)
