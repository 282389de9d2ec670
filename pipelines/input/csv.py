"""CSV files with a header; one malformed row spoils no other."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
from pyarrow import fs

from pipelines.input.shards import BadRow, Format, Rows, Scan, Shard
from pipelines.input.text import read_head, read_span, scan_text, with_gzip


def inspect(filesystem: fs.FileSystem, path: str) -> tuple[Scan, pa.Schema]:
    """Find the records, and infer the columns from the first 8 MiB."""
    return scan_text(filesystem, path, header=True), _infer_schema(read_head(filesystem, path))


def read(filesystem: fs.FileSystem, shard: Shard, schema: pa.Schema, columns: list[str]) -> Rows:  # noqa: ARG001
    """Parse the records of the shard in the types of `schema`."""
    return _parse(read_span(filesystem, shard.path, shard.span), shard.rows, schema)


def _infer_schema(head: bytes) -> pa.Schema:
    options = pa_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=lambda _: "skip")
    convert = pa_csv.ConvertOptions(check_utf8=False)
    return pa_csv.read_csv(io.BytesIO(head), parse_options=options, convert_options=convert).schema


def _parse(data: bytes, rows: int, schema: pa.Schema) -> Rows:
    malformed: list[BadRow] = []

    def reject(row: pa_csv.InvalidRow) -> str:
        reason = f"has {row.actual_columns} fields where the header has {row.expected_columns}"
        malformed.append((row.number - 1, reason, row.text or ""))
        return "skip"

    def read(types: dict[str, pa.DataType]) -> pa.Table:
        malformed.clear()
        return pa_csv.read_csv(
            io.BytesIO(data),
            pa_csv.ReadOptions(column_names=schema.names, use_threads=False, block_size=len(data) + 1),
            pa_csv.ParseOptions(newlines_in_values=True, invalid_row_handler=reject),
            pa_csv.ConvertOptions(column_types=types, check_utf8=False),
        )

    bad: list[BadRow] = []
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
                reason = f"column {field.name!r} is not of type {field.type}"
                bad.append((int(positions[i]), reason, str(table.slice(i, 1).to_pylist()[0])))
        columns.append(column)
    keep &= positions < rows
    bad = [row for row in {row[0]: row for row in [*bad, *malformed]}.values() if row[0] < rows]
    return Rows(pa.table(columns, schema=schema).filter(pa.array(keep)), positions[keep], sorted(bad))


def _convert(column: pa.Array, type_: pa.DataType) -> tuple[pa.Array, list[int]]:
    """Convert a string column, empty strings to null; also return the indices of values that do not convert."""
    try:
        return _cast(column, type_), []
    except pa.ArrowInvalid:
        pass
    converted, misfits = [], []
    for i in range(len(column)):
        try:
            converted.append(_cast(column.slice(i, 1), type_))
        except pa.ArrowInvalid:
            converted.append(pa.nulls(1, type_))
            misfits.append(i)
    return pa.concat_arrays(converted), misfits


def _cast(column: pa.Array, type_: pa.DataType) -> pa.Array:
    empty = pa.compute.equal(pa.compute.binary_length(column), 0)
    return pa.compute.if_else(empty, pa.scalar(None, pa.string()), column).cast(type_)


CSV = Format("csv", with_gzip(".csv"), inspect, read)
