"""Parquet files: a shard is a run of rows in one or more row groups."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow import fs

from pipelines.input.ipc import read_batches
from pipelines.input.shards import MAX_SHARD_ROWS, Format, Rows, Scan, Shard


def inspect(filesystem: fs.FileSystem, path: str) -> tuple[Scan, pa.Schema]:
    """Read the footer."""
    data = ds.dataset([path], filesystem=filesystem, format="parquet")
    (fragment,) = data.get_fragments()
    size = sum(group.total_byte_size for group in fragment.row_groups)
    return Scan(data.count_rows(), np.empty(0, np.int64), size), data.schema


def read(filesystem: fs.FileSystem, shard: Shard, schema: pa.Schema, columns: list[str]) -> Rows:  # noqa: ARG001
    """Read the row groups that hold the shard."""
    with filesystem.open_input_file(shard.path) as stream:
        file = pq.ParquetFile(stream)
        present = [name for name in columns if name in file.schema_arrow.names]
        skip, groups = _row_groups(file.metadata, shard)
        batches: Iterator[pa.RecordBatch] = file.iter_batches(MAX_SHARD_ROWS, groups, present, use_threads=False)
        return read_batches(batches, skip, shard.rows, columns)


def _row_groups(metadata: pq.FileMetaData, shard: Shard) -> tuple[int, list[int]]:
    """Return the rows to skip in the first row group that holds the shard, and the groups."""
    skip, groups = shard.start, list[int]()
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if not groups and skip >= rows:
            skip -= rows
            continue
        groups.append(group)
        if sum(metadata.row_group(i).num_rows for i in groups) >= skip + shard.rows:
            break
    return skip, groups


PARQUET = Format("parquet", (".parquet", ".pq"), inspect, read)
