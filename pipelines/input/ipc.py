"""Arrow IPC files (also called Feather): a shard is a run of rows in one or more record batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow import fs

from pipelines.input.shards import Format, Rows, Scan, Shard


def inspect(filesystem: fs.FileSystem, path: str) -> tuple[Scan, pa.Schema]:
    """Read the footer."""
    data = ds.dataset([path], filesystem=filesystem, format="ipc")
    return Scan(data.count_rows(), np.empty(0, np.int64), filesystem.get_file_info(path).size), data.schema


def read(filesystem: fs.FileSystem, shard: Shard, schema: pa.Schema, columns: list[str]) -> Rows:  # noqa: ARG001
    """Read the record batches that hold the shard."""
    with filesystem.open_input_file(shard.path) as stream:
        reader = pa.ipc.open_file(stream)
        present = [name for name in columns if name in reader.schema.names]
        batches = (reader.get_batch(i).select(present) for i in range(reader.num_record_batches))
        return read_batches(batches, shard.start, shard.rows, columns)


def read_batches(batches: Iterator[pa.RecordBatch], skip: int, rows: int, columns: list[str]) -> Rows:
    """Return `rows` rows of record batches after the first `skip`."""
    if not columns:
        return Rows(pa.table({"": pa.nulls(rows)}), np.arange(rows), [])
    return Rows(pa.Table.from_batches(list(_row_range(batches, skip, rows))), np.arange(rows), [])


def _row_range(batches: Iterator[pa.RecordBatch], skip: int, rows: int) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        if skip >= batch.num_rows:
            skip -= batch.num_rows
            continue
        piece = batch.slice(skip, rows)
        skip, rows = 0, rows - piece.num_rows
        yield piece
        if not rows:
            return


IPC = Format("ipc", (".arrow", ".feather", ".ipc"), inspect, read)
