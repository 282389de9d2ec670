"""Parquet files: a shard is a run of rows in row groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from pipelines.input.int96 import int96_columns, int96_unit
from pipelines.input.ranges import cut_ranges, groups_of_ranges
from pipelines.input.shards import BLOCK_ROWS, Format, Scan
from pipelines.storage import open_input

_TOGETHER_BYTES = 32 << 20
"""Column chunks of at most so many bytes are read together, in few requests; larger ones piece by
piece."""
_MIN_PIECE_BYTES, _MAX_PIECE_BYTES = 64 << 10, 8 << 20


def inspect(
    filesystem: fs.FileSystem, path: str, wanted: frozenset[str] | None, texts: frozenset[str]
) -> tuple[Scan, pa.Schema]:
    """Read the footer."""
    with open_input(filesystem, path) as stream:
        file = pq.ParquetFile(stream)
        metadata = file.metadata
        times = int96_columns(metadata)
        if times and (wanted is None or not wanted.isdisjoint(times)):
            every_group = list(range(metadata.num_row_groups))
            file = _in_unit(stream, metadata, _int96_unit(stream, metadata, every_group, times))
        group_rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        scan = Scan(
            metadata.num_rows,
            _memory_bytes(metadata, wanted),
            group_rows=max(group_rows, default=0),
            text_size=_memory_bytes(metadata, texts),
        )
        return scan, file.schema_arrow


def read(
    filesystem: fs.FileSystem, path: str, ranges: Sequence[tuple[int, int]], columns: list[str]
) -> Iterator[pa.Table]:
    """Decode each row group that holds some of the rows once, from its start."""
    with open_input(filesystem, path) as stream:
        file = pq.ParquetFile(stream)
        metadata = file.metadata
        names_of_file = set(file.schema_arrow.names)
        present = [name for name in columns if name in names_of_file]
        if not present:
            for _, rows in ranges:
                yield pa.table({"": pa.nulls(rows)})
            return
        group_rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        groups, ranges_of_groups = groups_of_ranges(group_rows, ranges)
        unit = None
        times = int96_columns(metadata)
        if not set(times).isdisjoint(present):
            unit = _int96_unit(stream, metadata, groups, times)
            file = _in_unit(stream, metadata, unit)
        # Rows that are wanted together fit into memory together.
        batch_rows = min(max((rows for _, rows in ranges), default=1), BLOCK_ROWS)
        batches = _batches(stream, file, groups, present, batch_rows, unit)
        yield from cut_ranges(batches, ranges_of_groups, _select(file.schema_arrow, present))


def _batches(
    stream: pa.NativeFile,
    file: pq.ParquetFile,
    groups: Sequence[int],
    names: Sequence[str],
    batch_rows: int,
    unit: str | None,
) -> Iterator[pa.RecordBatch]:
    """Yield columns of row groups in order; neither a row group nor a large chunk is held whole.

    `unit`: that in which the file has INT96, if one of the columns does.
    """
    leaves = _leaves(file.metadata, set(names))
    in_pieces: pq.ParquetFile | None = None
    for run, run_bytes in _runs(file.metadata, groups, leaves):
        reader = file
        if run_bytes > _TOGETHER_BYTES:
            in_pieces = in_pieces or _in_pieces(stream, file.metadata, len(leaves), unit)
            reader = in_pieces
        for batch in reader.iter_batches(batch_rows, run, names, use_threads=False):
            yield batch.select(names)


def _in_pieces(
    stream: pa.NativeFile, metadata: pq.FileMetaData, leaves: int, unit: str | None
) -> pq.ParquetFile:
    """Open a file whose column chunks are read piece by piece, of `leaves` columns at a time."""
    piece_bytes = max(_TOGETHER_BYTES // leaves, _MIN_PIECE_BYTES)
    return pq.ParquetFile(
        stream,
        metadata=metadata,
        coerce_int96_timestamp_unit=unit,
        buffer_size=min(piece_bytes, _MAX_PIECE_BYTES),
        pre_buffer=False,
    )


def _runs(
    metadata: pq.FileMetaData, groups: Sequence[int], leaves: Sequence[int]
) -> Iterator[tuple[list[int], int]]:
    """Yield the row groups that are read together, and the bytes of their column chunks."""
    run: list[int] = []
    run_bytes = 0
    for i in groups:
        group = metadata.row_group(i)
        group_bytes = sum(group.column(leaf).total_compressed_size for leaf in leaves)
        if run and run_bytes + group_bytes > _TOGETHER_BYTES:
            yield run, run_bytes
            run, run_bytes = [], 0
        run.append(i)
        run_bytes += group_bytes
    if run:
        yield run, run_bytes


def _int96_unit(
    stream: pa.NativeFile, metadata: pq.FileMetaData, groups: Sequence[int], times: Sequence[str]
) -> str:
    """Return the unit that holds the times of row groups; all columns of INT96 have one."""

    def batches_in(unit: str) -> Iterator[pa.RecordBatch]:
        file = _in_unit(stream, metadata, unit)
        yield from _batches(stream, file, groups, times, BLOCK_ROWS, unit)

    return int96_unit(metadata, batches_in)


def _in_unit(stream: pa.NativeFile, metadata: pq.FileMetaData, unit: str) -> pq.ParquetFile:
    """Open a file whose INT96 is read as times of a unit."""
    return pq.ParquetFile(stream, metadata=metadata, coerce_int96_timestamp_unit=unit)


def _leaves(metadata: pq.FileMetaData, names: AbstractSet[str]) -> list[int]:
    """Return the numbers of the leaves of columns; the name of one may have dots, too."""
    schema = metadata.schema
    leaves: list[int] = []
    for i in range(metadata.num_columns):
        path = schema.column(i).path
        if path in names or _has_prefix_in(path, names):
            leaves.append(i)
    return leaves


def _has_prefix_in(path: str, names: AbstractSet[str]) -> bool:
    dot = path.find(".")
    while dot >= 0:
        if path[:dot] in names:
            return True
        dot = path.find(".", dot + 1)
    return False


def _memory_bytes(metadata: pq.FileMetaData, names: AbstractSet[str] | None) -> int:
    """Return about how many bytes columns take in memory, those of all if `names` is None."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    leaves = None if names is None else _leaves(metadata, names)
    if leaves is None or len(leaves) == metadata.num_columns:
        return sum(group.total_byte_size for group in groups)
    return sum(group.column(i).total_uncompressed_size for group in groups for i in leaves)


def _select(schema: pa.Schema, names: Sequence[str]) -> pa.Schema:
    return pa.schema([schema.field(name) for name in names])


PARQUET = Format("parquet", (".parquet", ".pq", ".parq"), inspect=inspect, read=read)
"""Parquet."""
