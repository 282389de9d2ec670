"""Where the record batches of Arrow files and streams lie, and their rows, by their headers alone.

pyarrow counts the rows of a file's record batches together, and reads the messages of a stream
with their bodies. The format: https://arrow.apache.org/docs/format/Columnar.html
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

import pyarrow as pa

MAGIC = b"ARROW1"
_ENDING_BYTES = 4 + len(MAGIC)
_TAIL_BYTES = 64 << 10
_HEAD_BYTES = 512
"""A header begins with what is looked for; the places of buffers, of many columns, follow."""
_CONTINUATION = -1
_RECORD_BATCHES = 3  # field of a footer
_HEADER_TYPE, _HEADER, _BODY_BYTES = 1, 2, 3  # fields of a message
_ROWS = 0  # field of a record batch
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3  # types of headers
_BLOCK = struct.Struct("<qi4xq")  # where a message begins, bytes of its header, of its body


class BatchPlace(NamedTuple):
    """A record batch in a stream."""

    begin: int
    """Where it begins, or the dictionaries do that come just before it."""
    rows: int
    has_dictionaries: bool
    """Whether dictionaries come just before it; they hold for all batches after them."""


class _Header(NamedTuple):
    type: int
    rows: int
    """Of a record batch."""
    stop: int
    """Where the message ends."""


def rows_of_file(stream: pa.NativeFile) -> list[int]:
    """Return the rows of each record batch of an Arrow file.

    Raises:
        ValueError: for a file that is cut off or damaged.
    """
    size = stream.size()
    tail_bytes = min(size, _TAIL_BYTES)
    tail = stream.read_at(tail_bytes, size - tail_bytes)
    if len(tail) < _ENDING_BYTES or not tail.endswith(MAGIC):
        raise ValueError("is cut off: an Arrow file ends with a footer and 'ARROW1'")
    try:
        footer_bytes = _int32(tail, len(tail) - _ENDING_BYTES)
        if not 0 < footer_bytes <= size - _ENDING_BYTES:
            raise ValueError(f"is damaged: its footer has {footer_bytes:,} bytes")
        if footer_bytes + _ENDING_BYTES > len(tail):
            tail = stream.read_at(footer_bytes, size - _ENDING_BYTES - footer_bytes)
        else:
            tail = tail[-_ENDING_BYTES - footer_bytes :]
        rows: list[int] = []
        for begin, _, _ in _blocks(tail):
            header = _read_header(stream, begin, size)
            if header is None or header.type != _RECORD_BATCH:
                raise ValueError(f"is damaged: it has no record batch at byte {begin:,}")
            rows.append(header.rows)
    except struct.error as error:
        raise ValueError("is damaged: its footer leads nowhere") from error
    return rows


def batches_of_stream(stream: pa.NativeFile) -> list[BatchPlace]:
    """Find the record batches of an Arrow stream.

    Raises:
        ValueError: for a stream that is cut off or damaged.
    """
    size = stream.size()
    places: list[BatchPlace] = []
    begin: int | None = None  # of the dictionaries before the next batch
    offset = 0
    try:
        while (header := _read_header(stream, offset, size)) is not None:
            if header.stop > size:
                missing = header.stop - size
                raise ValueError(f"is cut off: {missing:,} bytes of its last message are missing")
            if header.type == _DICTIONARY_BATCH and begin is None:
                begin = offset
            elif header.type == _RECORD_BATCH:
                has_dictionaries = begin is not None
                places.append(
                    BatchPlace(offset if begin is None else begin, header.rows, has_dictionaries)
                )
                begin = None
            offset = header.stop
    except struct.error as error:
        raise ValueError(f"is cut off or damaged: no Arrow message at byte {offset:,}") from error
    return places


def _read_header(stream: pa.NativeFile, offset: int, size: int) -> _Header | None:
    """Read the header of the message at an offset, None at the end of the stream."""
    if offset == size:
        return None
    if not 0 <= offset < size:
        raise struct.error
    data = stream.read_at(_HEAD_BYTES, offset)
    begin = 4
    length = _int32(data, 0)
    if length == _CONTINUATION:  # before Arrow 0.15 there was none
        begin = 8
        length = _int32(data, 4)
    if length == 0:
        return None
    if not 0 < length <= size - offset:
        raise struct.error
    try:
        return _header(data[begin:], offset + begin + length)
    except struct.error:
        return _header(stream.read_at(length, offset + begin), offset + begin + length)


def _header(data: bytes, body: int) -> _Header:
    """Read the header of a message, whose body begins at byte `body` of the file."""
    message = _table(data, 0)
    type_at = _field(data, message, _HEADER_TYPE)
    type_ = _byte(data, type_at) if type_at else 0
    body_bytes_at = _field(data, message, _BODY_BYTES)
    body_bytes = _int64(data, body_bytes_at) if body_bytes_at else 0
    rows = 0
    if type_ == _RECORD_BATCH:
        batch = _table(data, _field(data, message, _HEADER))
        rows_at = _field(data, batch, _ROWS)
        rows = _int64(data, rows_at) if rows_at else 0
    if body_bytes < 0 or rows < 0:
        raise struct.error
    return _Header(type_, rows, body + body_bytes)


def _blocks(footer: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield where each record batch begins, and the bytes of its header and of its body."""
    vector_at = _field(footer, _table(footer, 0), _RECORD_BATCHES)
    if not vector_at:
        return
    vector = _table(footer, vector_at)
    count = _int32(footer, vector)
    for i in range(count):
        yield _BLOCK.unpack_from(footer, vector + 4 + i * _BLOCK.size)


def _table(data: bytes, at: int) -> int:
    """Return where the table or vector lies, in flatbuffers, to which a place points."""
    return at + _int32(data, at)


def _field(data: bytes, table: int, number: int) -> int:
    """Return where a field of a table lies, 0 where it has its default."""
    vtable = table - _int32(data, table)
    if vtable < 0:
        raise struct.error
    (vtable_bytes,) = struct.unpack_from("<H", data, vtable)
    slot = 4 + 2 * number
    if slot + 2 > vtable_bytes:
        return 0
    (offset,) = struct.unpack_from("<H", data, vtable + slot)
    return table + offset if offset else 0


def _byte(data: bytes, at: int) -> int:
    (value,) = struct.unpack_from("<B", data, at)
    return int(value)


def _int32(data: bytes, at: int) -> int:
    (value,) = struct.unpack_from("<i", data, at)
    return int(value)


def _int64(data: bytes, at: int) -> int:
    (value,) = struct.unpack_from("<q", data, at)
    return int(value)
