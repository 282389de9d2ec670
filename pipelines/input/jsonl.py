"""JSONL files: an object a line; one malformed line spoils no other."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json as pa_json
from pyarrow import fs

from pipelines.input.shards import BadRow, Format, Rows, Scan, Shard
from pipelines.input.text import read_head, read_span, scan_text, with_gzip


def inspect(filesystem: fs.FileSystem, path: str) -> tuple[Scan, pa.Schema]:
    """Find the lines, and infer the columns from the first 8 MiB."""
    return scan_text(filesystem, path, header=False), _infer_schema(read_head(filesystem, path), path)


def read(filesystem: fs.FileSystem, shard: Shard, schema: pa.Schema, columns: list[str]) -> Rows:  # noqa: ARG001
    """Parse the lines of the shard in the types of `schema`."""
    return _parse(read_span(filesystem, shard.path, shard.span), shard.rows, schema)


def _infer_schema(head: bytes, path: str) -> pa.Schema:
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


def _parse(data: bytes, rows: int, schema: pa.Schema) -> Rows:
    lines = [line for line in data.split(b"\n") if line.strip(b"\r")][:rows]
    options = pa_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    try:
        table = pa_json.read_json(
            io.BytesIO(b"\n".join(lines)), pa_json.ReadOptions(use_threads=False, block_size=len(data) + 1), options
        )
        if len(table) == len(lines):
            return Rows(table, np.arange(rows), [])
    except pa.ArrowInvalid:
        pass  # some row does not fit: find it
    good, positions = [], []
    bad: list[BadRow] = []
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
    return Rows(pa.table(columns, schema=schema), np.array(positions, dtype=np.int64), bad)


def _one(value: Any, field: pa.Field) -> pa.Array:
    """Return `value` as an array of one; ValueError names the column."""
    try:
        if pa.types.is_timestamp(field.type) and isinstance(value, str):
            return pa.array([value]).cast(field.type)
        return pa.array([value], field.type)
    except (pa.ArrowException, TypeError, UnicodeEncodeError) as error:
        if isinstance(error, UnicodeEncodeError):
            raise ValueError(f"column {field.name!r} is not valid Unicode") from error
        raise ValueError(f"column {field.name!r}: {value!r:.80} is not of type {field.type}") from error


JSONL = Format("json", with_gzip(".jsonl", ".ndjson", ".json"), inspect, read)
