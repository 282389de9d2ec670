"""Parquet files: a shard is a run of rows in row groups; a file with a huge one is staged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow import fs

from pipelines.input.shards import BLOCK_ROWS, Block, Format, Reading, Scan
from pipelines.storage import open_input

HUGE_ROWS, HUGE_BYTES = 8 * BLOCK_ROWS, 16 << 20
"""A row group of more rows and bytes would be decoded from its start for each of its shards."""


def inspect(
    filesystem: fs.FileSystem,
    path: str,
    wanted: frozenset[str] | None,  # noqa: ARG001
    texts: frozenset[str],  # noqa: ARG001
) -> tuple[Scan, pa.Schema] | None:
    """Read the footer; None for a file with a huge row group."""
    with open_input(filesystem, path) as stream:
        file = pq.ParquetFile(stream)
        if _int96_columns(file):
            file = _with_unit(stream, file, _int96_unit(stream, file))
        size = 0
        for i in range(file.metadata.num_row_groups):
            group = file.metadata.row_group(i)
            if group.num_rows > HUGE_ROWS and group.total_byte_size > HUGE_BYTES:
                return None
            size += group.total_byte_size
        return Scan(file.metadata.num_rows, size), file.schema_arrow


def blocks(reading: Reading) -> Iterator[Block]:
    """Yield the rows in order."""
    with open_input(reading.filesystem, reading.path) as stream:
        file = pq.ParquetFile(stream)
        if _int96_columns(file):
            file = _with_unit(stream, file, _int96_unit(stream, file))
        rows = 0
        for batch in file.iter_batches(BLOCK_ROWS, use_threads=False):
            rows += len(batch)
            yield Block(pa.Table.from_batches([batch]), [], rows / file.metadata.num_rows)
            if reading.options.limit and rows >= reading.options.limit:
                return


def read(
    filesystem: fs.FileSystem, path: str, ranges: Sequence[tuple[int, int]], columns: list[str]
) -> Iterator[pa.Table]:
    """Read the row groups that hold the rows."""
    for start, rows in ranges:
        yield _read_rows(filesystem, path, start, rows, columns)


def _read_rows(
    filesystem: fs.FileSystem, path: str, start: int, rows: int, columns: list[str]
) -> pa.Table:
    with open_input(filesystem, path) as stream:
        file = pq.ParquetFile(stream)
        present = [name for name in columns if name in file.schema_arrow.names]
        if not present:
            return pa.table({"": pa.nulls(rows)})
        skip, groups = _row_groups(file.metadata, start, rows)
        if set(present).intersection(_int96_columns(file)):
            file = _with_unit(stream, file, _int96_unit(stream, file, groups))
        group_batches = file.iter_batches(BLOCK_ROWS, groups, present, use_threads=False)
        batches = list(row_range(group_batches, skip, rows))
        if not batches:
            return file.schema_arrow.empty_table().select(present)
        return pa.Table.from_batches(batches).select(present)


def _int96_columns(file: pq.ParquetFile) -> list[str]:
    """Return the columns that hold INT96, the times of Impala, Hive and Spark.

    Arrow makes nanoseconds of them.
    """
    names: dict[str, None] = {}  # each once: a nested column has several leaves
    for i in range(len(file.schema)):
        leaf = file.schema.column(i)
        if leaf.physical_type == "INT96":
            names[leaf.path.split(".")[0]] = None
    return list(names)


def _with_unit(stream: pa.NativeFile, file: pq.ParquetFile, unit: str) -> pq.ParquetFile:
    return pq.ParquetFile(stream, metadata=file.metadata, coerce_int96_timestamp_unit=unit)


def _int96_unit(
    stream: pa.NativeFile, file: pq.ParquetFile, groups: list[int] | None = None
) -> str:
    """Return the unit that holds the INT96 times of some row groups, by default all, unchanged.

    It is "us", or "ns" where a time is so fine. INT96 holds nanoseconds of any year; 64 bits of
    nanoseconds hold the years 1677 to 2262, and Arrow wraps all others around. Spark's times are
    microseconds.
    """
    if b"org.apache.spark.version" in (file.metadata.metadata or {}):
        return "us"
    if groups is None:
        groups = list(range(file.metadata.num_row_groups))
    names = _int96_columns(file)

    def batches_in(unit: str) -> Iterator[pa.RecordBatch]:
        in_unit = _with_unit(stream, file, unit)
        yield from in_unit.iter_batches(BLOCK_ROWS, groups, names, use_threads=False)

    for coarse, fine in zip(batches_in("us"), batches_in("ns"), strict=True):
        for coarse_column, fine_column in zip(coarse.columns, fine.columns, strict=True):
            if _loses_nanoseconds(coarse_column, fine_column):
                return "ns"
    return "us"


def _loses_nanoseconds(coarse: pa.Array, fine: pa.Array) -> bool:
    """Tell whether times in nanoseconds, nested ones too, say more than those in microseconds."""
    if pa.types.is_struct(coarse.type):
        children = zip(coarse.flatten(), fine.flatten(), strict=True)
        return any(_loses_nanoseconds(a, b) for a, b in children)
    if pa.types.is_map(coarse.type):
        if _loses_nanoseconds(coarse.keys, fine.keys):
            return True
        return _loses_nanoseconds(coarse.items, fine.items)
    if pa.types.is_nested(coarse.type):
        return _loses_nanoseconds(coarse.flatten(), fine.flatten())
    if coarse.type == fine.type:
        return False
    # Arrow divides towards zero; microseconds of a time before 1970 are those below it.
    fine_ns = fine.cast(pa.int64())
    divided_us = pc.divide(fine_ns, 1000)
    divided_ns = pc.multiply(divided_us, 1000)
    is_above = pc.less(fine_ns, divided_ns)
    floor_us = pc.if_else(is_above, pc.subtract(divided_us, 1), divided_us)
    # Out of the range of nanoseconds, the two are different times: the coarse one is right.
    in_range = pc.equal(floor_us, coarse.cast(pa.int64()))
    has_remainder = pc.not_equal(divided_ns, fine_ns)
    return pc.any(pc.and_(in_range, has_remainder)).as_py() is True


def row_range(batches: Iterator[pa.RecordBatch], skip: int, rows: int) -> Iterator[pa.RecordBatch]:
    """Yield `rows` rows of record batches after the first `skip`."""
    for batch in batches:
        if skip >= batch.num_rows:
            skip -= batch.num_rows
            continue
        piece = batch.slice(skip, rows)
        skip = 0
        rows -= piece.num_rows
        yield piece
        if not rows:
            return


def _row_groups(metadata: pq.FileMetaData, start: int, wanted: int) -> tuple[int, list[int]]:
    """Return the rows to skip in the first row group that holds the rows, and the groups."""
    skip = start
    groups: list[int] = []
    chosen_rows = 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if not groups and skip >= rows:
            skip -= rows
            continue
        groups.append(group)
        chosen_rows += rows
        if chosen_rows >= skip + wanted:
            break
    return skip, groups


PARQUET = Format("parquet", (".parquet", ".pq", ".parq"), blocks, inspect, read)
