"""Delta tables: the log says which Parquet files count, and which of their rows are deleted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
from deltalake import DeltaTable
from pyarrow import fs

from pipelines.input import parquet
from pipelines.input.shards import Format, Scan
from pipelines.input.snapshots import Snapshot, TableLocation, file_version
from pipelines.input.types import convert, is_exact, plain_type
from pipelines.storage import Location, store_options

_KNOWN_FEATURES = {
    *("deletionVectors", "timestampNtz", "v2Checkpoint", "vacuumProtocolCheck"),
    *("typeWidening", "typeWidening-preview"),
}
"""What a reader must know to read a table; others change what its files mean."""
_PARTITION = "partition."


def take_snapshot(source: Location) -> Snapshot:
    """Read the log of the table as it is now."""
    _, folder = source.filesystem_and_path
    uri, options = store_options(source)
    table = DeltaTable(uri, storage_options=options)
    _check_features(table)
    schema = pa.schema(table.schema().to_arrow())
    location = TableLocation(source.uri, "Delta", str(table.version()))
    actions = pa.table(table.get_add_actions(flatten=True))
    deleted = _deletions(location)
    versions: dict[str, str] = {}
    for action in actions.select(["path", "size_bytes", "modification_time"]).to_pylist():
        written = action["path"]
        if "://" in written or written.startswith("/"):
            raise ValueError(f"its file {written} lies outside of its folder (a shallow clone)")
        path = f"{folder}/{unquote(written)}"
        of_deletions = None
        if path in deleted:
            of_deletions = hashlib.sha256(np.packbits(deleted[path]).tobytes()).hexdigest()
        versions[path] = file_version(
            written, action["size_bytes"], action["modification_time"], of_deletions
        )
    unknown = deleted.keys() - versions.keys()
    if unknown:
        raise ValueError(f"rows are deleted from {min(unknown)}, which it does not list")
    return Snapshot(location, schema, versions, _partitions(actions, schema, list(versions)))


def table_format(location: TableLocation) -> Format:
    """Return the format of the data files of a snapshot."""
    return Format(
        "delta",
        (),
        inspect=partial(_inspect, location),
        read=partial(_read, location),
    )


def _check_features(table: DeltaTable) -> None:
    """Raise ValueError for a table whose files mean something else than they say."""
    mapping = table.metadata().configuration.get("delta.columnMapping.mode") or "none"
    if mapping != "none":
        raise ValueError(f"its columns have other names in its files (column mapping by {mapping})")
    # A table may have the feature without its use: what counts is the mode above.
    features = {*(table.protocol().reader_features or ())} - {"columnMapping"}
    unknown = features - _KNOWN_FEATURES
    if unknown:
        raise ValueError(f"it needs {', '.join(sorted(unknown))}, which is not known here")


def _partitions(
    actions: pa.Table, schema: pa.Schema, paths: list[str]
) -> dict[str, tuple[tuple[str, str | int | None], ...]]:
    """Return the values of the columns that the log alone has."""
    names = [name for name in actions.column_names if name.startswith(_PARTITION)]
    values_by_column: dict[str, list[str | int | None]] = {}
    for name in names:
        column = name.removeprefix(_PARTITION)
        typed = actions[name].cast(schema.field(column).type)
        values_by_column[column] = _texts(typed, column)
    partitions: dict[str, tuple[tuple[str, str | int | None], ...]] = {}
    for number, path in enumerate(paths):
        values = [(column, of_files[number]) for column, of_files in values_by_column.items()]
        partitions[path] = tuple(values)
    return partitions


def _texts(values: pa.ChunkedArray, column: str) -> list[str | int | None]:
    """Return values as numbers or texts; ValueError where a text does not give its value again."""
    if pa.types.is_integer(values.type):
        numbers: list[str | int | None] = values.to_pylist()
        return numbers
    texts = values.cast(pa.string())
    if not texts.cast(values.type).equals(values):
        raise ValueError(f"its partition column {column!r} holds {values.type}, which has no text")
    as_list: list[str | int | None] = texts.to_pylist()
    return as_list


@lru_cache(maxsize=4)
def _table(location: TableLocation) -> DeltaTable:
    uri, options = store_options(location)
    return DeltaTable(uri, version=int(location.snapshot), storage_options=options)


@lru_cache(maxsize=4)
def _schema(location: TableLocation) -> pa.Schema:
    return pa.schema(_table(location).schema().to_arrow())


@lru_cache(maxsize=4)
def _deletions(location: TableLocation) -> dict[str, np.ndarray]:
    """Return for each file with deleted rows, by its path, which rows of its first ones are left.

    All rows behind these are left.
    """
    table = _table(location)
    if "deletionVectors" not in (table.protocol().reader_features or ()):
        return {}
    _, folder = location.filesystem_and_path
    root = table.table_uri.rstrip("/") + "/"
    left: dict[str, np.ndarray] = {}
    for batch in pa.table(table.deletion_vectors()).to_batches():
        for uri, vector in zip(batch["filepath"], batch["selection_vector"], strict=True):
            name = unquote(_below(uri.as_py(), root, folder))
            left[f"{folder}/{name}"] = vector.values.to_numpy(zero_copy_only=False)
    return left


def _below(uri: str, root: str, folder: str) -> str:
    """Return the part of a file's URI below the table's folder."""
    for start in (root, f"file://{folder}/", f"{folder}/"):
        if uri.startswith(start):
            return uri.removeprefix(start)
    raise ValueError(f"its file {uri} lies outside of its folder (a shallow clone)")


def _inspect(
    location: TableLocation,
    filesystem: fs.FileSystem,
    path: str,
    wanted: frozenset[str] | None,
    texts: frozenset[str],
) -> tuple[Scan, pa.Schema] | None:
    """Read the footer; the columns have the types that the table gives them."""
    scan, in_file = parquet.inspect(filesystem, path, wanted, texts)
    left = _deletions(location).get(path)
    if left is not None:
        # Rows that are left are at other places than the row groups say.
        scan = replace(scan, rows=scan.rows - int(np.count_nonzero(~left)), group_rows=0)
    columns: list[pa.Field] = []
    for column in _schema(location):
        if column.name not in in_file.names:
            continue
        held = in_file.field(column.name).type
        if not _means(held, column.type):
            raise ValueError(
                f"column {column.name!r} holds {held}, where the table has {column.type}"
            )
        columns.append(column)
    return scan, pa.schema(columns)


def _means(held: pa.DataType, type_: pa.DataType) -> bool:
    """Tell whether each value of a file's type is one of the table's type."""
    if pa.types.is_timestamp(held) and pa.types.is_timestamp(type_) and held.tz is None:
        held = pa.timestamp(held.unit, type_.tz)  # INT96 of Spark says no zone, and means UTC
    if pa.types.is_timestamp(held) and pa.types.is_timestamp(type_):
        return bool(held.tz == type_.tz)
    return is_exact(plain_type(held), plain_type(type_))


def _read(
    location: TableLocation,
    filesystem: fs.FileSystem,
    path: str,
    ranges: Sequence[tuple[int, int]],
    columns: list[str],
) -> Iterator[pa.Table]:
    """Yield rows, counted without those that are deleted."""
    left = _deletions(location).get(path)
    if left is None:
        yield from parquet.read(filesystem, path, ranges, columns)
        return
    numbers = [_rows_left(left, start, rows) for start, rows in ranges]
    around = [(int(each[0]), int(each[-1]) + 1 - int(each[0])) for each in numbers]
    tables = parquet.read(filesystem, path, around, columns)
    for each, table in zip(numbers, tables, strict=True):
        if len(table) <= each[-1] - each[0]:
            raise ValueError(
                f"has fewer rows than the log of the table says: {each[0] + len(table)}"
            )
        yield _plain(table).take(pa.array(each - each[0]))


def _plain(table: pa.Table) -> pa.Table:
    """Return a table in types of which Arrow can take rows: it can of no views."""
    columns = [convert(column, plain_type(column.type)) for column in table.columns]
    return pa.table(columns, names=table.column_names)


def _rows_left(left: np.ndarray, start: int, rows: int) -> np.ndarray:
    """Return the numbers in the file of the rows [start, start + rows) of those that are left."""
    among_first = np.flatnonzero(left)
    numbers = among_first[start : start + rows]
    missing = rows - len(numbers)
    # Behind the rows of which something is known, all are left.
    skipped = max(start - len(among_first), 0)
    behind = len(left) + skipped + np.arange(missing)
    return np.concatenate([numbers, behind])
