"""An input to shards, and shards to tables."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipelines.errors import UserError
from pipelines.input.columns import corpus_columns
from pipelines.input.files import current_version
from pipelines.input.formats import FORMATS
from pipelines.input.inspection import Inspection, unreadable
from pipelines.input.names import shard_name, split_shard_name
from pipelines.input.partitions import Partition
from pipelines.input.shards import MAX_SHARD_ROWS, STRIDE_ROWS, Corpus, DataFile, Rows, Scan, Shard
from pipelines.input.staging import read_part
from pipelines.input.types import convert
from pipelines.storage import Folder, Location

_SHARD_BYTES = 32 << 20
_WANTED_SHARDS = 32


def cut(inspection: Inspection, limit: int | None = None, shard_rows: int | None = None) -> Corpus:
    """Cut the input into shards; all files must be staged that need it.

    Args:
        inspection: the files and what is known of them.
        limit: the number of rows to take, None for all.
        shard_rows: the most rows in a shard; None for the largest shards with which a small corpus
            still keeps all actors busy.

    Raises:
        UserError: for an input without rows, and for one where no file can be read.
    """
    columns = corpus_columns(inspection)
    broken = {**inspection.broken, **columns.misfits}
    versions = {
        path: version for path, version in inspection.versions.items() if path not in broken
    }
    if not versions:
        raise unreadable(inspection.source, broken)
    total_rows = sum(inspection.scans[path].rows for path in versions)
    if not total_rows and broken:
        raise unreadable(inspection.source, broken)
    if not total_rows:
        raise UserError(f"input '{inspection.source}' has no rows")

    shard_rows = shard_rows or largest_shard(total_rows)
    rows_left = total_rows if limit is None else limit
    files: list[DataFile] = []
    shards: list[Shard] = []
    for path, version in versions.items():
        file = DataFile(
            path,
            version,
            inspection.scans[path],
            inspection.names[path],
            inspection.former_name(path),
        )
        partition = columns.partitions.of[path]
        new_shards = shards_of_file(file, inspection.format, partition, shard_rows, rows_left)
        rows_left -= sum(shard.rows for shard in new_shards)
        files.append(file)
        shards += new_shards
    return Corpus(
        files,
        inspection.format,
        columns.schema,
        shards,
        shard_rows,
        broken,
        list(inspection.notes),
    )


def largest_shard(total_rows: int) -> int:
    """Return the rows of the largest shards with which a small corpus keeps all actors busy."""
    strides = -(-total_rows // (_WANTED_SHARDS * STRIDE_ROWS))
    return min(MAX_SHARD_ROWS, strides * STRIDE_ROWS)


def shards_of_file(
    file: DataFile, format_: str, partition: Partition, shard_rows: int, limit: int
) -> list[Shard]:
    """Cut the first `limit` rows of a file into shards of at most `shard_rows` rows."""
    step = rows_per_shard(file.scan, shard_rows)
    shards: list[Shard] = []
    first_row_of_part = 0  # counted from the start of the file
    # A file that is read in place is one part without a name.
    for part, part_rows in file.scan.parts or (("", file.scan.rows),):
        wanted_rows = min(part_rows, limit)
        for part_start in range(0, wanted_rows, step):
            rows = min(step, wanted_rows - part_start)
            start = first_row_of_part + part_start
            name = shard_name(file.name, file.version, start, start + rows)
            shards.append(Shard(name, file.path, format_, start, rows, partition, part, part_start))
        first_row_of_part += part_rows
        limit -= wanted_rows
    return shards


def rows_per_shard(scan: Scan, rows: int) -> int:
    """Return `rows`, or a smaller multiple of 64 where a shard of them would exceed 32 MiB."""
    rows_that_fit = _SHARD_BYTES * scan.rows // max(scan.size, 1)
    strides = max(rows_that_fit // STRIDE_ROWS, 1)
    return min(rows, strides * STRIDE_ROWS)


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
    [table] = reader(filesystem, shard.path, [(shard.start, shard.rows)], columns)
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
