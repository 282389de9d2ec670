"""Shards to tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from pipelines.input.files import current_version
from pipelines.input.formats import format_of
from pipelines.input.shards import BadRow, Piece, Rows, Shard
from pipelines.input.snapshots import TableLocation
from pipelines.input.staging import read_part
from pipelines.input.types import convert, is_stringlike
from pipelines.storage import Folder, Location


def read_shard(
    source: Location, output: Folder, shard: Shard, schema: pa.Schema, columns: list[str]
) -> Rows:
    """Read `columns` of a shard in the types of `schema`; columns that its files lack are null.

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
    return next(read_unit(source, output, [shard], schema, columns))


def read_unit(
    source: Location,
    output: Folder,
    shards: Sequence[Shard],
    schema: pa.Schema,
    columns: list[str],
) -> Iterator[Rows]:
    """Yield the rows of shards that are read together, as `read_shard` does.

    `shards`: one, or those of a unit, whose rows are decoded in one pass over their file.
    """
    wanted = pa.schema([schema.field(name) for name in columns])
    if len(shards) > 1:
        pieces = [shard.pieces[0] for shard in shards]
        yield from _read_pieces(source, output, pieces, shards[0].format, wanted)
        return
    shard = shards[0]
    tables: list[pa.Table] = []
    positions: list[np.ndarray] = []
    bad: list[BadRow] = []
    for piece, first_row in shard.inside():
        for rows in _read_pieces(source, output, [piece], shard.format, wanted):
            tables.append(rows.table)
            positions.append(rows.positions + first_row)
            bad += [(first_row + row, reason, raw) for row, reason, raw in rows.bad]
    yield Rows(pa.concat_tables(tables), np.concatenate(positions), bad)


def _read_pieces(
    source: Location, output: Folder, pieces: Sequence[Piece], format_: str, wanted: pa.Schema
) -> Iterator[Rows]:
    """Yield the rows of pieces of one file, ascending, in the columns and types of `wanted`."""
    values = dict(pieces[0].partition)
    of_file = [name for name in wanted.names if name not in values]
    for rows in _rows_of(source, output, pieces, format_, of_file):
        present = set(rows.table.column_names)  # made anew at each access
        arrays = []
        for column in wanted:
            if column.name in values:
                value = _scalar(values[column.name], column.type)
                arrays.append(pa.repeat(value, len(rows.positions)))
            elif column.name in present:
                arrays.append(convert(rows.table[column.name], column.type))
            else:
                arrays.append(pa.nulls(len(rows.positions), column.type))
        table = pa.table(arrays, schema=wanted)
        yield Rows(table, rows.positions, rows.bad)


def _scalar(value: str | int | None, type_: pa.DataType) -> pa.Scalar:
    """Return the value of a key; the log of a table has dates, decimals and the like as text."""
    if isinstance(value, str) and not is_stringlike(type_):
        return pa.scalar(value).cast(type_)
    return pa.scalar(value, type_)


def _rows_of(
    source: Location, output: Folder, pieces: Sequence[Piece], format_: str, columns: list[str]
) -> Iterator[Rows]:
    """Yield the rows of pieces of one file in its own types."""
    if pieces[0].part:
        for piece in pieces:
            yield read_part(output, piece, columns)
        return
    reader = format_of(source, format_).read
    assert reader is not None
    filesystem, _ = source.filesystem_and_path
    path = pieces[0].path
    ranges = [(piece.start, piece.rows) for piece in pieces]
    for piece, table in zip(pieces, reader(filesystem, path, ranges, columns), strict=True):
        # As planned after it was read, too; the files of a table are never written again.
        may_change = not isinstance(source, TableLocation)
        if may_change and current_version(filesystem, path) != piece.version:
            raise ValueError(f"{path} has changed since the job began; the next run reads it again")
        if len(table) != piece.rows:
            raise ValueError(
                f"{path} has fewer rows than were planned: {len(table):,} from row "
                f"{piece.start:,} on"
            )
        yield Rows(table, np.arange(piece.rows), [])
