"""Arrow IPC files (or Feather): a shard is a run of rows in record batches; streams are staged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow import fs

from pipelines.input.parquet import HUGE_BYTES, HUGE_ROWS, row_range
from pipelines.input.shards import BLOCK_ROWS, Block, Format, Reading, Scan
from pipelines.storage import open_input


def inspect(
    filesystem: fs.FileSystem,
    path: str,
    wanted: frozenset[str] | None,  # noqa: ARG001
    texts: frozenset[str],  # noqa: ARG001
) -> tuple[Scan, pa.Schema] | None:
    """Read the footer; None for a stream, which has none, and for huge record batches."""
    with open_input(filesystem, path) as stream:
        if not _is_file(stream):
            return None
        reader = pa.ipc.open_file(stream)
        batches = reader.num_record_batches
        size = stream.size()
        rows = ds.IpcFileFormat().make_fragment(stream).count_rows()
    if rows > HUGE_ROWS * batches and size > HUGE_BYTES * batches:
        return None
    return Scan(rows, size), reader.schema


def blocks(reading: Reading) -> Iterator[Block]:
    """Yield the rows in order."""
    with open_input(reading.filesystem, reading.path) as stream:
        size = stream.size()
        rows = 0
        batches: Iterator[pa.RecordBatch]
        if _is_file(stream):
            reader = pa.ipc.open_file(stream)
            batches = _batches(reader)
        else:
            reader = pa.ipc.open_stream(stream)
            batches = iter(reader)
        for batch in batches:
            for first in range(0, batch.num_rows, BLOCK_ROWS):
                piece = pa.Table.from_batches([batch.slice(first, BLOCK_ROWS)])
                rows += len(piece)
                yield Block(piece, [], stream.tell() / size)
                if reading.options.limit and rows >= reading.options.limit:
                    return
        if not rows:
            yield Block(reader.schema.empty_table(), [])


def read(
    filesystem: fs.FileSystem, path: str, ranges: Sequence[tuple[int, int]], columns: list[str]
) -> Iterator[pa.Table]:
    """Read the record batches that hold the rows."""
    for start, rows in ranges:
        yield _read_rows(filesystem, path, start, rows, columns)


def _read_rows(
    filesystem: fs.FileSystem, path: str, start: int, rows: int, columns: list[str]
) -> pa.Table:
    with open_input(filesystem, path) as stream:
        reader = pa.ipc.open_file(stream)
        present = [name for name in columns if name in reader.schema.names]
        if not present:
            return pa.table({"": pa.nulls(rows)})
        batches = (batch.select(present) for batch in _batches(reader))
        return pa.Table.from_batches(list(row_range(batches, start, rows)))


def _batches(reader: pa.ipc.RecordBatchFileReader) -> Iterator[pa.RecordBatch]:
    for i in range(reader.num_record_batches):
        yield reader.get_batch(i)


def _is_file(stream: pa.NativeFile) -> bool:
    beginning: bytes = stream.read(6)
    stream.seek(0)
    return beginning == b"ARROW1"


IPC = Format("ipc", (".arrow", ".feather", ".ipc"), blocks, inspect, read)
