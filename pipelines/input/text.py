"""Text files, plain or gzip: where their records lie, and the bytes of a range of records."""

from __future__ import annotations

import numpy as np
from pyarrow import fs

from pipelines.input.shards import STRIDE_ROWS, Scan

_BLOCK_BYTES = 8 << 20


def scan_text(filesystem: fs.FileSystem, path: str, header: bool) -> Scan:
    """Find a file's records in one pass.

    `header`: the first record is a header, and quotes may hold newlines, as in CSV.
    """
    starts: list[np.ndarray] = []
    offset, in_quotes, record_start, seen = 0, False, 0, 0
    with filesystem.open_input_stream(path, compression="detect") as stream:
        while block := stream.read(_BLOCK_BYTES):
            data = np.frombuffer(block, np.uint8)
            ends = np.flatnonzero(data == ord("\n"))
            if header:
                quotes = np.flatnonzero(data == ord('"'))
                inside = (np.searchsorted(quotes, ends) + in_quotes) % 2
                ends, in_quotes = ends[inside == 0], bool((len(quotes) + in_quotes) % 2)
            ends = ends + offset + 1
            begins = np.concatenate(([record_start], ends[:-1])) if len(ends) else np.empty(0, np.int64)
            blank = _blank(data, offset, begins, ends)
            starts.append(begins[~blank])
            seen += len(starts[-1])
            record_start = int(ends[-1]) if len(ends) else record_start
            offset += len(data)
    if record_start < offset:  # a last line without a newline
        starts.append(np.array([record_start]))
        seen += 1
    places = np.concatenate(starts) if starts else np.empty(0, np.int64)
    places = places[1:] if header else places
    return Scan(len(places), places[::STRIDE_ROWS], offset)


def read_head(filesystem: fs.FileSystem, path: str) -> bytes:
    """Read whole lines of the first 8 MiB, from which a file's columns are inferred."""
    with filesystem.open_input_stream(path, compression="detect") as stream:
        head = stream.read(_BLOCK_BYTES)
    return head[: head.rfind(b"\n") + 1] if len(head) == _BLOCK_BYTES else head


def read_span(filesystem: fs.FileSystem, path: str, span: tuple[int, int]) -> bytes:
    """Read a range of a file's decompressed bytes."""
    if path.endswith(".gz"):
        with filesystem.open_input_stream(path, compression="detect") as stream:
            for start in range(0, span[0], _BLOCK_BYTES):
                stream.read(min(_BLOCK_BYTES, span[0] - start))
            return stream.read(span[1] - span[0])
    with filesystem.open_input_file(path) as stream:
        stream.seek(span[0])
        return stream.read(span[1] - span[0])


def with_gzip(*suffixes: str) -> tuple[str, ...]:
    """Return the endings of plain and of compressed files."""
    return (*suffixes, *(f"{suffix}.gz" for suffix in suffixes))


def _blank(data: np.ndarray, offset: int, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Tell which records are empty lines, ended by a newline with or without a carriage return."""
    lengths = ends - begins
    blank = lengths == 1
    short = np.flatnonzero(lengths == 2)
    places = begins[short] - offset
    blank[short] = (places >= 0) & (data[np.maximum(places, 0)] == ord("\r"))
    return blank
