"""Iceberg tables: Parquet files as the table has them are read in place, all others by pyiceberg.

Others have deleted rows, or were written under another schema: columns are known by numbers there,
and may have been renamed, dropped, added or widened since.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import fs
from pyiceberg.expressions import AlwaysTrue
from pyiceberg.io.pyarrow import ArrowScan, schema_to_pyarrow
from pyiceberg.manifest import DataFile, FileFormat
from pyiceberg.schema import Schema
from pyiceberg.table import FileScanTask, StaticTable

from pipelines.input import parquet
from pipelines.input.ranges import cut_ranges
from pipelines.input.shards import BLOCK_ROWS, Block, Format, Reading, Scan
from pipelines.input.snapshots import Snapshot, TableLocation, file_version
from pipelines.storage import Location, open_input, store_options

_METADATA = re.compile(r"v?(\d+)(?:-.+)?\.metadata\.json")
_FIELD_ID = b"PARQUET:field_id"
_PROPERTIES = {
    "aws_access_key_id": "s3.access-key-id",
    "aws_secret_access_key": "s3.secret-access-key",
    "aws_session_token": "s3.session-token",
    "aws_region": "s3.region",
    "aws_endpoint": "s3.endpoint",
}
_NO_NUMBER = b"none"
"""The number of a field in a file that does not number its fields: pyiceberg knows them by name."""


def take_snapshot(source: Location) -> Snapshot:
    """Read the metadata of the table as it is now."""
    metadata = _current_metadata(*source.filesystem_and_path)
    location = TableLocation(source.uri, "Iceberg", "", metadata)
    current = _table(location).current_snapshot()
    snapshot = str(current.snapshot_id) if current else "none"
    location = TableLocation(source.uri, "Iceberg", snapshot, metadata)
    versions: dict[str, str] = {}
    for path, task in _tasks(location).items():
        if task.file.file_format != FileFormat.PARQUET:
            raise ValueError(f"its file {path} is {task.file.file_format.value}, not Parquet")
        deletes = sorted(_identity(file) for file in task.delete_files)
        versions[path] = file_version(_identity(task.file), deletes)
    return Snapshot(location, _schema(location), versions)


def table_format(location: TableLocation) -> Format:
    """Return the format of the data files of a snapshot."""
    return Format(
        "iceberg",
        (),
        blocks=partial(_blocks, location),
        inspect=partial(_inspect, location),
        read=partial(_read, location),
    )


def _current_metadata(filesystem: fs.FileSystem, folder: str) -> str:
    """Return the path of the metadata that a table without a catalog has now.

    It is the one that version-hint.text names, else the one with the highest number.
    """
    infos = filesystem.get_file_info(fs.FileSelector(f"{folder}/metadata"))
    names: dict[str, str] = {info.base_name: info.path for info in infos}
    if "version-hint.text" in names:
        with open_input(filesystem, names["version-hint.text"]) as stream:
            hint = stream.read().decode().strip()
        for name in (hint, f"{hint}.metadata.json", f"v{hint}.metadata.json"):
            if name in names and name.endswith(".metadata.json"):
                return names[name]
        raise ValueError(f"its version-hint.text names {hint!r}, of which there is no metadata")
    by_number: dict[int, list[str]] = {}
    for name, path in names.items():
        match = _METADATA.fullmatch(name)
        if match:
            by_number.setdefault(int(match[1]), []).append(path)
    if not by_number:
        raise ValueError("its folder metadata has no <number>-….metadata.json")
    last = by_number[max(by_number)]
    if len(last) > 1:
        raise ValueError(
            f"several files say that they are its last metadata: {', '.join(sorted(last))}; name "
            "the right one in metadata/version-hint.text"
        )
    return last[0]


def _identity(file: DataFile) -> list[object]:
    """Return what tells a file, or a part of one with deletes, from others, as JSON has it."""
    offset = getattr(file, "content_offset", None)  # of the deletes of one file in a Puffin file
    return [file.file_path, file.file_size_in_bytes, file.record_count, offset]


@lru_cache(maxsize=4)
def _table(location: TableLocation) -> StaticTable:
    scheme = "file" if location.is_local else "s3"
    _, options = store_options(location)
    properties = {key: options[name] for name, key in _PROPERTIES.items() if name in options}
    return StaticTable.from_metadata(f"{scheme}://{location.metadata}", properties)


@lru_cache(maxsize=4)
def _schema(location: TableLocation) -> pa.Schema:
    """Return the columns of the table in the types that pyiceberg reads them in."""
    return _without_large(_arrow_schema(_table(location).schema()))


def _arrow_schema(schema: Schema) -> pa.Schema:
    """Return a schema whose fields have their numbers as Parquet files have them."""
    return schema_to_pyarrow(schema, include_field_ids=True)


@lru_cache(maxsize=4)
def _tasks(location: TableLocation) -> dict[str, FileScanTask]:
    """Return what is to be read of each file, by its path in the file system of the table."""
    tasks: dict[str, FileScanTask] = {}
    for task in _table(location).scan().plan_files():
        path = _path(location, task.file.file_path)
        if path in tasks:
            raise ValueError(f"it lists the file {path} twice")
        tasks[path] = task
    return tasks


def _path(location: TableLocation, uri: str) -> str:
    """Return a file's path in the file system of the table."""
    scheme, separator, rest = uri.partition("://")
    if not separator and location.is_local:
        scheme, rest = "file", uri.removeprefix("file:")
    own = ("file",) if location.is_local else ("s3", "s3a", "s3n")
    if scheme not in own:
        raise ValueError(f"its file {uri} lies in another storage than the table")
    return unquote(rest) if scheme == "file" and separator else rest


def _inspect(
    location: TableLocation,
    filesystem: fs.FileSystem,
    path: str,
    wanted: frozenset[str] | None = None,
    texts: frozenset[str] = frozenset(),
) -> tuple[Scan, pa.Schema] | None:
    """Read the footer; None for a file that takes pyiceberg to be read."""
    if _tasks(location)[path].delete_files:
        return None
    scan, in_file = parquet.inspect(filesystem, path, wanted, texts)
    if not _is_as_now(in_file, _schema(location)):
        return None
    return scan, _schema(location)


def _is_as_now(in_file: pa.Schema, schema: pa.Schema) -> bool:
    """Tell whether a file has each column of the table, under its name, number and type."""
    held = {column.name: _identities(column) for column in in_file}
    if len(held) < len(in_file.names):
        return False
    are_numbered = not any(repr(_NO_NUMBER) in "".join(each) for each in held.values())
    return are_numbered and all(held.get(column.name) == _identities(column) for column in schema)


def _identities(column: pa.Field) -> list[str]:
    """Return the name, number and type of a field, then those of the fields in it."""
    number = (column.metadata or {}).get(_FIELD_ID, _NO_NUMBER)
    type_ = column.type
    if not pa.types.is_nested(type_):
        plain = str(type_).removeprefix("large_")
        return [f"{column.name} {number!r} {plain}"]
    if pa.types.is_struct(type_):
        identities = [f"{column.name} {number!r} struct"]
        children = list(type_)
    elif pa.types.is_map(type_):
        identities = [f"{column.name} {number!r} map"]
        children = [type_.key_field.with_name("key"), type_.item_field.with_name("value")]
    else:
        identities = [f"{column.name} {number!r} list"]
        children = [type_.value_field.with_name("element")]  # writers name it as they like
    for child in children:
        identities += _identities(child)
    return identities


def _blocks(location: TableLocation, reading: Reading) -> Iterator[Block]:
    """Yield the rows that are left, in order, in the columns of the table."""
    rows = 0
    total = max(_tasks(location)[reading.path].file.record_count, 1)
    for batch in _batches(location, reading.path, _schema(location).names):
        for first in range(0, len(batch), BLOCK_ROWS):
            piece = batch.slice(first, BLOCK_ROWS)
            rows += len(piece)
            yield Block(pa.Table.from_batches([piece]), [], min(rows / total, 1.0))
            if reading.options.limit and rows >= reading.options.limit:
                return
    if not rows:
        yield Block(_schema(location).empty_table(), [])


def _read(
    location: TableLocation,
    filesystem: fs.FileSystem,
    path: str,
    ranges: Sequence[tuple[int, int]],
    columns: list[str],
) -> Iterator[pa.Table]:
    """Yield rows; in place where the file still is as the table is now.

    An earlier run may have planned it before the columns of the table became others.
    """
    if _inspect(location, filesystem, path) is not None:
        yield from parquet.read(filesystem, path, ranges, columns)
        return
    schema = _schema(location)
    present = [name for name in columns if name in schema.names]
    if not present:
        for _, rows in ranges:
            yield pa.table({"": pa.nulls(rows)})
        return
    types = pa.schema([schema.field(name) for name in present])
    yield from cut_ranges(_batches(location, path, present), ranges, types.remove_metadata())


def _batches(location: TableLocation, path: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Read columns of a file by pyiceberg, without the rows that are deleted from it."""
    table = _table(location)
    projection = table.schema().select(*columns)
    scan = ArrowScan(table.metadata, table.io, projection, AlwaysTrue())
    types = pa.schema([_schema(location).field(name) for name in columns])
    for batch in scan.to_record_batches([_tasks(location)[path]]):
        as_table = pa.Table.from_batches([batch]).select(columns)
        yield from as_table.cast(types.remove_metadata()).to_batches()


def _without_large(schema: pa.Schema) -> pa.Schema:
    """Return a schema with strings, bytes and lists in the types that Parquet files come in."""
    return pa.schema([_field_without_large(column) for column in schema])


def _field_without_large(column: pa.Field) -> pa.Field:
    type_ = column.type
    if pa.types.is_large_string(type_):
        type_ = pa.string()
    elif pa.types.is_large_binary(type_):
        type_ = pa.binary()
    elif pa.types.is_large_list(type_) or pa.types.is_list(type_):
        type_ = pa.list_(_field_without_large(type_.value_field))
    elif pa.types.is_struct(type_):
        type_ = pa.struct([_field_without_large(child) for child in type_])
    elif pa.types.is_map(type_):
        key, item = _field_without_large(type_.key_field), _field_without_large(type_.item_field)
        type_ = pa.map_(key, item)
    return column.with_type(type_)
