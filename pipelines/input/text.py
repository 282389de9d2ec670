"""JSONL and CSV files, plain or gzip: where records lie, and their parsing in which one bad row spoils no other."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.json as pa_json
from pyarrow import fs

_BLOCK_BYTES = 8 << 20
STRIDE_ROWS = 64
"""A record's place is kept every so many rows; shards start there."""


@dataclass(frozen=True)
class Scan:
    """How many records a file has, and of a text file where."""

    rows: int
    row_offsets: np.ndarray
    """The byte at which record i * 64 starts; blank lines before it belong to the record before."""
    end: int
    """How many bytes they take, of compressed text and of Parquet about as much as in memory."""

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """The bytes of records [start, stop), a little more where `stop` is no multiple of 64."""
        last = -(-stop // STRIDE_ROWS)
        return int(self.row_offsets[start // STRIDE_ROWS]), int(self.row_offsets[last]) if last < len(
            self.row_offsets
        ) else self.end


def scan_text(filesystem: fs.FileSystem, path: str, header: bool) -> Scan:
    """Find a file's records in one pass; `header`: CSV, where the first is a header and quotes may hold newlines."""
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


def infer_schema(filesystem: fs.FileSystem, path: str, kind: str) -> pa.Schema:
    """The columns of a text file, from its first 8 MiB; malformed rows are passed over."""
    with filesystem.open_input_stream(path, compression="detect") as stream:
        head = stream.read(_BLOCK_BYTES)
    if len(head) == _BLOCK_BYTES:
        head = head[: head.rfind(b"\n") + 1]
    if kind == "csv":
        options = pa_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=lambda _: "skip")
        convert = pa_csv.ConvertOptions(check_utf8=False)
        return pa_csv.read_csv(io.BytesIO(head), parse_options=options, convert_options=convert).schema
    try:
        return pa_json.read_json(io.BytesIO(head), pa_json.ReadOptions(block_size=len(head) + 1)).schema
    except pa.ArrowInvalid:
        pass  # some row is malformed, or has another type: take each column's first type
    types: dict[str, pa.DataType] = {}
    for line in head.split(b"\n"):
        try:
            schema = pa_json.read_json(io.BytesIO(line)).schema if line.strip() else ()
        except pa.ArrowInvalid:
            continue
        for field in schema:
            known = types.get(field.name, pa.null())
            if known == pa.null() or (known, field.type) == (pa.int64(), pa.float64()):
                types[field.name] = field.type
    if not types:
        raise ValueError(f"no line of {path} is a JSON object")
    return pa.schema(list(types.items()))


def _blank(data: np.ndarray, offset: int, begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Which records are empty lines, ended by a newline with or without a carriage return."""
    lengths = ends - begins
    blank = lengths == 1
    short = np.flatnonzero(lengths == 2)
    places = begins[short] - offset
    blank[short] = (places >= 0) & (data[np.maximum(places, 0)] == ord("\r"))
    return blank


def parse_text(
    filesystem: fs.FileSystem, path: str, kind: str, span: tuple[int, int], rows: int, schema: pa.Schema
) -> tuple[pa.Table, np.ndarray, list[tuple[int, str, str]]]:
    """The first `rows` records in the bytes `span` of a file, in the types of `schema`.

    Returns the table of those that fit, their positions, and (position, reason, raw text) of those that do not.
    """
    if path.endswith(".gz"):
        with filesystem.open_input_stream(path, compression="detect") as stream:
            for start in range(0, span[0], _BLOCK_BYTES):
                stream.read(min(_BLOCK_BYTES, span[0] - start))
            data = stream.read(span[1] - span[0])
    else:
        with filesystem.open_input_file(path) as stream:
            stream.seek(span[0])
            data = stream.read(span[1] - span[0])
    return (_parse_csv if kind == "csv" else _parse_json)(data, rows, schema)


def _parse_json(data: bytes, rows: int, schema: pa.Schema):
    lines = [line for line in data.split(b"\n") if line.strip(b"\r")][:rows]
    options = pa_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    try:
        table = pa_json.read_json(
            io.BytesIO(b"\n".join(lines)), pa_json.ReadOptions(use_threads=False, block_size=len(data) + 1), options
        )
        if len(table) == len(lines):
            return table, np.arange(rows), []
    except pa.ArrowInvalid:
        pass  # some row does not fit: find it
    good, positions, bad = [], [], []
    for i, line in enumerate(lines):
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"a row must be an object, not {type(row).__name__}")
            good.append([_one(row.get(field.name), field) for field in schema])
            positions.append(i)
        except (ValueError, TypeError, pa.ArrowException) as error:
            reason = str(error).splitlines()[0]
            bad.append((i, f"not readable as JSON: {reason}", line.decode(errors="replace")))
    columns = [pa.concat_arrays(c) for c in zip(*good, strict=True)] if good else [pa.array([], f.type) for f in schema]
    return pa.table(columns, schema=schema), np.array(positions, dtype=np.int64), bad


def _one(value: Any, field: pa.Field) -> pa.Array:
    """`value` as an array of one; raises ValueError that names the column."""
    try:
        if pa.types.is_timestamp(field.type) and isinstance(value, str):
            return pa.array([value]).cast(field.type)
        return pa.array([value], field.type)
    except (pa.ArrowException, TypeError, UnicodeEncodeError) as error:
        if isinstance(error, UnicodeEncodeError):
            raise ValueError(f"column {field.name!r} is not valid Unicode") from error
        raise ValueError(f"column {field.name!r}: {value!r:.80} is not of type {field.type}") from error


def _parse_csv(data: bytes, rows: int, schema: pa.Schema):
    malformed: list[tuple[int, str, str]] = []

    def set_aside(row: pa_csv.InvalidRow) -> str:
        reason = f"has {row.actual_columns} fields where the header has {row.expected_columns}"
        malformed.append((row.number - 1, reason, row.text or ""))
        return "skip"

    def read(types: dict[str, pa.DataType]) -> pa.Table:
        malformed.clear()
        return pa_csv.read_csv(
            io.BytesIO(data),
            pa_csv.ReadOptions(column_names=schema.names, use_threads=False, block_size=len(data) + 1),
            pa_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=set_aside),
            pa_csv.ConvertOptions(column_types=types, check_utf8=False),
        )

    bad: list[tuple[int, str, str]] = []
    try:
        table = read({field.name: field.type for field in schema})
    except pa.ArrowInvalid:  # some value does not fit its column: read text, and convert what converts
        table = read({field.name: pa.string() for field in schema})
    positions = np.setdiff1d(np.arange(len(table) + len(malformed)), [row for row, _, _ in malformed])
    keep = np.ones(len(table), dtype=bool)
    columns = []
    for field in schema:
        column = table[field.name].combine_chunks()
        if column.type != field.type:
            column, misfits = _convert(column, field.type)
            for i in misfits:
                keep[i] = False
                bad.append(
                    (
                        int(positions[i]),
                        f"column {field.name!r} is not of type {field.type}",
                        str(table.slice(i, 1).to_pylist()[0]),
                    )
                )
        columns.append(column)
    keep &= positions < rows
    bad = [row for row in {row[0]: row for row in [*bad, *malformed]}.values() if row[0] < rows]
    return pa.table(columns, schema=schema).filter(pa.array(keep)), positions[keep], sorted(bad)


def _convert(column: pa.Array, kind: pa.DataType) -> tuple[pa.Array, list[int]]:
    """A string column as `kind`, an empty one as null, and the places of values that do not convert."""
    try:
        return _csv_cast(column, kind), []
    except pa.ArrowInvalid:
        pass
    pieces, misfits = [], []
    for i in range(len(column)):
        try:
            pieces.append(_csv_cast(column.slice(i, 1), kind))
        except pa.ArrowInvalid:
            pieces.append(pa.nulls(1, kind))
            misfits.append(i)
    return pa.concat_arrays(pieces), misfits


def _csv_cast(column: pa.Array, kind: pa.DataType) -> pa.Array:
    empty = pa.compute.equal(pa.compute.binary_length(column), 0)
    return pa.compute.if_else(empty, pa.scalar(None, pa.string()), column).cast(kind)
