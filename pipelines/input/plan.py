"""Files to shards, and shards to tables."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pyarrow as pa
from pyarrow import fs

from pipelines.errors import UserError
from pipelines.input.files import file_slug, find_files, hive_partitions
from pipelines.input.formats import FORMATS, file_format
from pipelines.input.shards import MAX_SHARD_ROWS, STRIDE_ROWS, Corpus, DataFile, Format, Rows, Scan, Shard
from pipelines.storage import redact_credentials, resolve_filesystem

_SHARD_BYTES = 32 << 20
_WANTED_SHARDS = 32


def plan_corpus(
    source: str, limit: int | None = None, shard_rows: int | None = None, earlier: Corpus | None = None
) -> Corpus:
    """Cut the input into shards of at most `shard_rows` rows.

    `limit`: the number of rows to take, None for all. `shard_rows`: None for the largest shards with which a small
    corpus still keeps all actors busy. `earlier`: the plan of an earlier run, whose unchanged files are not read again.
    Files that cannot be read are in `broken`. Raises UserError for an input that is missing, empty or unreadable.
    """
    filesystem, versions, base = find_files(source)
    name = file_format(next(iter(versions)))
    assert name
    known = {file.path: file for file in earlier.files} if earlier and earlier.format == name else {}
    fresh = [path for path, version in versions.items() if path not in known or known[path].version != version]
    with ThreadPoolExecutor(16) as pool:
        inspected = list(pool.map(partial(inspect_file, FORMATS[name], filesystem), fresh))
    broken = {path: result for path, result in zip(fresh, inspected, strict=True) if isinstance(result, str)}
    found = {path: result for path, result in zip(fresh, inspected, strict=True) if not isinstance(result, str)}
    if len(broken) == len(versions):
        raise UserError(f"input {redact_credentials(source)!r} cannot be read: {next(iter(broken.values()))}")
    versions = {path: version for path, version in versions.items() if path not in broken}
    schemas = [schema for _, schema in found.values()]
    if earlier and known:
        schemas.insert(0, earlier.schema)
    try:
        partitions, keys = hive_partitions(list(versions), base)
        stored = pa.unify_schemas(schemas, promote_options="permissive").remove_metadata()
    except (pa.ArrowException, ValueError) as error:
        raise UserError(
            f"input {redact_credentials(source)!r}: its files' columns differ: {str(error).splitlines()[0]}"
        ) from error
    schema = pa.schema([field for field in stored if field.name not in keys.names] + list(keys))
    scan_of = {path: found[path][0] if path in found else known[path].scan for path in versions}
    total = sum(scan.rows for scan in scan_of.values())
    if not total:
        raise UserError(f"input {redact_credentials(source)!r} has no rows")
    size = shard_rows or min(MAX_SHARD_ROWS, -(-total // (_WANTED_SHARDS * STRIDE_ROWS)) * STRIDE_ROWS)
    left = limit if limit is not None else total
    shards = []
    for (path, version), partition in zip(versions.items(), partitions, strict=True):
        scan, stem = scan_of[path], f"{file_slug(path, base)}-{version}"
        step = rows_per_shard(scan, size)
        for start in range(0, min(scan.rows, left), step):
            rows = min(step, scan.rows - start, left - start)
            span, shard = scan.span(start, start + rows), f"{stem}-{start:09d}-{start + rows:09d}"
            shards.append(Shard(shard, path, name, start, rows, partition, span))
        left -= min(scan.rows, left)
    files = [DataFile(path, version, scan_of[path]) for path, version in versions.items()]
    return Corpus(files, name, schema, shards, size, broken)


def inspect_file(format_: Format, filesystem: fs.FileSystem, path: str) -> tuple[Scan, pa.Schema] | str:
    """Find a file's rows and columns; a text is the reason why it cannot be read."""
    try:
        return format_.inspect(filesystem, path)
    except (pa.ArrowException, OSError, EOFError, ValueError) as error:
        return str(error).splitlines()[0]


def rows_per_shard(scan: Scan, rows: int) -> int:
    """Return `rows`, or a smaller multiple of 64 if a file's rows are so large that a shard would exceed 32 MiB."""
    fit = _SHARD_BYTES * scan.rows // max(scan.end, 1)
    return min(rows, max(fit // STRIDE_ROWS, 1) * STRIDE_ROWS)


def read_shard(source: str, shard: Shard, schema: pa.Schema, columns: list[str]) -> Rows:
    """Read `columns` of a shard in the types of `schema`; columns that its file lacks are null."""
    filesystem, _ = resolve_filesystem(source)
    partition = dict(shard.partition)
    in_files = pa.schema([field for field in schema if field.name not in partition])
    rows = FORMATS[shard.format].read(filesystem, shard, in_files, [name for name in columns if name not in partition])
    table = rows.table
    arrays = []
    for name in columns:
        type_ = schema.field(name).type
        if name in partition:
            arrays.append(pa.repeat(pa.scalar(partition[name], type_), len(table)))
        elif name in table.column_names:
            arrays.append(table[name].cast(type_) if table[name].type != type_ else table[name])
        else:
            arrays.append(pa.nulls(len(table), type_))
    table = pa.table(arrays, schema=pa.schema([schema.field(name) for name in columns]))
    rows = Rows(table, rows.positions, rows.bad)
    return rows if shard.row_range is None else _within(rows, *shard.row_range)


def _within(rows: Rows, first: int, stop: int) -> Rows:
    inside = np.flatnonzero((rows.positions >= first) & (rows.positions < stop))
    bad = [row for row in rows.bad if first <= row[0] < stop]
    return Rows(rows.table.take(pa.array(inside)), rows.positions[inside], bad)
