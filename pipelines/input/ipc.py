"""Arrow IPC files (or Feather) and streams: a shard is a run of rows in record batches."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa
from pyarrow import fs

from pipelines.input.ipc_messages import MAGIC, batches_of_stream, rows_of_file
from pipelines.input.ranges import cut_ranges, groups_of_ranges
from pipelines.input.shards import Format, Scan
from pipelines.storage import open_input

_AHEAD_BYTES = 4 << 20
"""The least that is read of a file in object storage in one request."""
_LARGE_BYTES = 16 << 20
"""A record batch of more bytes is not read for the size of its columns; in object storage, the
request for its header costs little beside it."""


@dataclass(frozen=True)
class _Batches:
    """The record batches of an open file."""

    schema: pa.Schema
    rows: list[int]
    """The rows of each."""
    read: Callable[[Sequence[int], AbstractSet[str]], Iterator[pa.RecordBatch]]
    """Yields batches, by ascending numbers, with the columns that have some names."""


def inspect(
    filesystem: fs.FileSystem, path: str, wanted: frozenset[str] | None, texts: frozenset[str]
) -> tuple[Scan, pa.Schema]:
    """Read the headers of the record batches and, for the size of columns, one batch."""
    with _open(filesystem, path) as stream:
        batches = _batches_of(stream)
        total_rows = sum(batches.rows)
        mean_bytes = stream.size() / max(len(batches.rows), 1)
        # A read in object storage requests the headers before its rows: of small batches all
        # rows are read together.
        has_cheap_headers = filesystem.type_name == "local" or mean_bytes > _LARGE_BYTES
        group_rows = max(batches.rows, default=0) if has_cheap_headers else total_rows
        size, text_size = stream.size(), 0
        if total_rows and mean_bytes <= _LARGE_BYTES:
            names = frozenset(batches.schema.names) if wanted is None else wanted | texts
            first = next(i for i, rows in enumerate(batches.rows) if rows)
            [batch] = batches.read([first], names)
            share = batch.num_rows / total_rows
            size = round(_memory_bytes(batch, names if wanted is None else wanted) / share)
            text_size = round(_memory_bytes(batch, texts) / share)
    return Scan(total_rows, size, group_rows=group_rows, text_size=text_size), batches.schema


def read(
    filesystem: fs.FileSystem, path: str, ranges: Sequence[tuple[int, int]], columns: list[str]
) -> Iterator[pa.Table]:
    """Read each record batch that holds some of the rows once."""
    with _open(filesystem, path) as stream:
        batches = _batches_of(stream)
        names_of_file = set(batches.schema.names)
        present = [name for name in columns if name in names_of_file]
        if not present:
            for _, rows in ranges:
                yield pa.table({"": pa.nulls(rows)})
            return
        numbers, ranges_of_batches = groups_of_ranges(batches.rows, ranges)
        selected = (batch.select(present) for batch in batches.read(numbers, set(present)))
        schema = pa.schema([batches.schema.field(name) for name in present])
        yield from cut_ranges(selected, ranges_of_batches, schema)


def _memory_bytes(batch: pa.RecordBatch, names: AbstractSet[str]) -> int:
    """Return the bytes of columns, of a dictionary's those of its indices."""
    total = 0
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if name in names:
            values = column.indices if pa.types.is_dictionary(column.type) else column
            total += values.nbytes
    return total


def _batches_of(stream: pa.NativeFile) -> _Batches:
    """Find the record batches of a file or a stream."""
    if stream.read_at(len(MAGIC), 0) == MAGIC:
        return _batches_of_file(stream)
    return _batches_of_stream(stream)


def _batches_of_file(stream: pa.NativeFile) -> _Batches:
    rows = rows_of_file(stream)
    schema = pa.ipc.open_file(stream).schema

    def read_batches(numbers: Sequence[int], names: AbstractSet[str]) -> Iterator[pa.RecordBatch]:
        reader = pa.ipc.open_file(stream, options=_with_columns(schema, names))
        for number in numbers:
            yield reader.get_batch(number)

    return _Batches(schema, rows, read_batches)


def _batches_of_stream(stream: pa.NativeFile) -> _Batches:
    stream.seek(0)
    schema = pa.ipc.open_stream(stream).schema
    places = batches_of_stream(stream)

    def read_batches(numbers: Sequence[int], names: AbstractSet[str]) -> Iterator[pa.RecordBatch]:
        stream.seek(0)
        reader = pa.ipc.open_stream(stream, options=_with_columns(schema, names))
        wanted = set(numbers)
        for number in range(max(numbers, default=-1) + 1):
            place = places[number]
            # The reader takes dictionaries together with the batch after them.
            if number in wanted or place.has_dictionaries:
                stream.seek(place.begin)
                batch = reader.read_next_batch()
                if number in wanted:
                    yield batch

    return _Batches(schema, [place.rows for place in places], read_batches)


def _with_columns(schema: pa.Schema, names: AbstractSet[str]) -> pa.ipc.IpcReadOptions:
    """Let only the columns that have some names be read."""
    numbers = [i for i, name in enumerate(schema.names) if name in names]
    return pa.ipc.IpcReadOptions(included_fields=numbers, use_threads=False)


@contextmanager
def _open(filesystem: fs.FileSystem, path: str) -> Iterator[pa.NativeFile]:
    with open_input(filesystem, path) as stream:
        if filesystem.type_name == "local":
            yield stream
        else:
            yield pa.PythonFile(_ReadAhead(stream), "r")


class _ReadAhead(io.RawIOBase):
    """A file of which no less than `_AHEAD_BYTES` are read at a time."""

    def __init__(self, stream: pa.NativeFile):
        self.stream = stream
        self.size = stream.size()
        self.position = 0
        self.ahead = b""
        self.ahead_at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        self.position = origin + offset
        return self.position

    def read(self, count: int = -1) -> bytes:
        left = self.size - self.position
        count = left if count is None or count < 0 else min(count, left)
        begin = self.position - self.ahead_at
        if begin < 0 or begin + count > len(self.ahead):
            self.ahead = self.stream.read_at(max(count, _AHEAD_BYTES), self.position)
            self.ahead_at = self.position
            begin = 0
        data = self.ahead[begin : begin + count]
        self.position += len(data)
        return data


IPC = Format("ipc", (".arrow", ".feather", ".ipc"), inspect=inspect, read=read)
"""Arrow."""
