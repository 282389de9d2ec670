"""An input to shards, and shards to tables."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipelines.errors import UserError
from pipelines.input.columns import check_keys, partition, unify
from pipelines.input.files import current_version
from pipelines.input.formats import FORMATS
from pipelines.input.inspection import Inspection, unreadable
from pipelines.input.names import shard_name, split_shard_name
from pipelines.input.shards import MAX_SHARD_ROWS, STRIDE_ROWS, Corpus, DataFile, Rows, Scan, Shard
from pipelines.input.staging import read_part
from pipelines.input.types import convert
from pipelines.storage import Folder, Location

_SHARD_BYTES = 32 << 20
_WANTED_SHARDS = 32


def cut(found: Inspection, limit: int | None = None, shard_rows: int | None = None) -> Corpus:
    """Cut the input into shards of at most `shard_rows` rows; all files must be staged that need
    it.

    Args:
        found: the files.
        limit: the number of rows to take, None for all.
        shard_rows: None for the largest shards with which a small corpus still keeps all actors
            busy.

    Raises:
        UserError: for an input without rows, and for one where no file can be read.
    """
    types = unify(found)
    partitions = partition(found)
    found.broken |= partitions.misfits
    versions = {
        path: version for path, version in found.versions.items() if path not in found.broken
    }
    if not versions:
        raise unreadable(found)
    check_keys(found, types, partitions.schema.names)
    keys = {each.name: each.type for each in partitions.schema}
    schema = pa.schema(
        [*((name, type_) for name, type_ in types.items() if name not in keys), *keys.items()]
    )
    total = sum(found.scans[path].rows for path in versions)
    if not total and found.broken:
        raise unreadable(found)
    if not total:
        raise UserError(f"input '{found.source}' has no rows")
    size = shard_rows or min(
        MAX_SHARD_ROWS, -(-total // (_WANTED_SHARDS * STRIDE_ROWS)) * STRIDE_ROWS
    )
    left = limit if limit is not None else total
    shards: list[Shard] = []
    for path, version in versions.items():
        scan, start = found.scans[path], 0
        step = rows_per_shard(scan, size)
        for part, part_rows in scan.parts or [("", scan.rows)]:
            for part_start in range(0, min(part_rows, left), step):
                rows, first = (
                    min(step, part_rows - part_start, left - part_start),
                    start + part_start,
                )
                name = shard_name(found.names[path], version, first, first + rows)
                shards.append(
                    Shard(
                        name, path, found.format, first, rows, partitions.of[path], part, part_start
                    )
                )
            start, left = start + part_rows, left - min(part_rows, left)
    files = [
        DataFile(path, version, found.scans[path], found.names[path], found.former_name(path))
        for path, version in versions.items()
    ]
    return Corpus(files, found.format, schema, shards, size, found.broken, found.notes)


def rows_per_shard(scan: Scan, rows: int) -> int:
    """Return `rows`, or a smaller multiple of 64 if a file's rows are so large that a shard would
    exceed 32 MiB.
    """
    fit = _SHARD_BYTES * scan.rows // max(scan.size, 1)
    return min(rows, max(fit // STRIDE_ROWS, 1) * STRIDE_ROWS)


def read_shard(
    source: Location, output: Folder, shard: Shard, schema: pa.Schema, columns: list[str]
) -> Rows:
    """Read `columns` of a shard in the types of `schema`; columns that its file lacks are null.

    Args:
        source: the input.
        output: the output, which holds the staged files.
        shard: the shard.
        schema: the columns of the whole input.
        columns: the names of those wanted.

    Raises:
        ValueError: for a file that has changed since the plan was made.
        pa.ArrowException, OSError, EOFError: for one that cannot be read.
    """
    values = dict(shard.partition)
    wanted = [name for name in columns if name not in values]
    rows = read_part(output, shard, wanted) if shard.part else _read_in_place(source, shard, wanted)
    arrays = []
    for name in columns:
        type_ = schema.field(name).type
        if name in values:
            arrays.append(pa.repeat(pa.scalar(values[name], type_), len(rows.positions)))
        elif name in rows.table.column_names:
            arrays.append(convert(rows.table[name], type_))
        else:
            arrays.append(pa.nulls(len(rows.positions), type_))
    table = pa.table(arrays, schema=pa.schema([schema.field(name) for name in columns]))
    rows = Rows(table, rows.positions, rows.bad)
    return rows if shard.row_range is None else _within(rows, *shard.row_range)


def _read_in_place(source: Location, shard: Shard, columns: list[str]) -> Rows:
    """Read a shard from its file, which must be as it was planned after it was read, too."""
    reader = FORMATS[shard.format].read
    assert reader is not None
    filesystem, _ = source.filesystem_and_path
    table = reader(filesystem, shard.path, shard.start, shard.rows, columns)
    planned = split_shard_name(shard.name)
    if planned is not None and current_version(filesystem, shard.path) != planned.version:
        raise ValueError(
            f"{shard.path} has changed since the job began; the next run reads it again"
        )
    if len(table) != shard.rows:
        raise ValueError(
            f"{shard.path} has fewer rows than were planned: {len(table):,} from row "
            f"{shard.start:,} on"
        )
    return Rows(table, np.arange(shard.rows), [])


def _within(rows: Rows, first: int, stop: int) -> Rows:
    inside = np.flatnonzero((rows.positions >= first) & (rows.positions < stop))
    bad = [row for row in rows.bad if first <= row[0] < stop]
    return Rows(rows.table.take(pa.array(inside)), rows.positions[inside], bad)
