"""Input files to shards, and shards to tables.

A shard is a fixed row range of one file: the unit of work, of retry, of commit and of resume. Parquet, Arrow IPC, JSONL
and CSV (both plain or gzip) are cut alike; what differs is how the rows of a range are found.
"""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow import fs

from pipelines.errors import UserError
from pipelines.input.text import STRIDE_ROWS, Scan, infer_schema, parse_text, scan_text
from pipelines.storage import redact_credentials, resolve_filesystem

FORMATS = {
    "parquet": (".parquet", ".pq"),
    "ipc": (".arrow", ".feather", ".ipc"),
    "json": (".jsonl", ".ndjson", ".json"),
    "csv": (".csv",),
}
MAX_SHARD_ROWS = 4096
_SHARD_BYTES = 32 << 20
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
_WANTED_SHARDS = 32


@dataclass(frozen=True)
class Shard:
    """Rows [start, start + rows) of one file."""

    name: str
    """Stem of its output file: the file's place below the input, its version, the row range; sorts in order."""
    path: str
    format: str
    start: int
    rows: int
    partition: tuple[tuple[str, str | int | None], ...] = ()
    """Hive partition values of the file."""
    span: tuple[int, int] = (0, 0)
    """Where its rows lie in the decompressed bytes of a text file."""
    row_range: tuple[int, int] | None = None
    """Of a shard that was split, the rows [first, stop) that are meant, counted from its start; None: all."""

    @property
    def subshards(self) -> list[Shard]:
        """The shard cut into at most 16 parts, each a shard with a name of its own."""
        first, stop = self.row_range or (0, self.rows)
        stem, step = self.name.rsplit("-", 2)[0], -(-(stop - first) // 16)
        parts = [(a, min(a + step, stop)) for a in range(first, stop, step)]
        names = [f"{stem}-{self.start + a:09d}-{self.start + b:09d}" for a, b in parts]
        return [replace(self, name=name, row_range=part) for name, part in zip(names, parts, strict=True)]

    @property
    def count(self) -> int:
        """How many rows are meant."""
        return self.row_range[1] - self.row_range[0] if self.row_range else self.rows


@dataclass(frozen=True, eq=False)
class DataFile:
    """An input file, and what reading it told."""

    path: str
    version: str
    """A digest of its size and time of change: with another version it is another file."""
    scan: Scan
    """How many rows it has, and of a text file where."""


@dataclass(frozen=True)
class Corpus:
    """What an input holds."""

    files: list[DataFile]
    format: str
    schema: pa.Schema
    """The columns of every row, partition keys included."""
    shards: list[Shard]
    shard_rows: int
    """The most rows in a shard."""
    broken: dict[str, str] = field(default_factory=dict)
    """Files that cannot be read, and why; they have no shards."""

    @property
    def rows(self) -> int:
        """Rows in all shards."""
        return sum(shard.rows for shard in self.shards)


@dataclass(frozen=True)
class Rows:
    """The rows of a shard that could be read, and those that could not."""

    table: pa.Table
    positions: np.ndarray
    """The row number in the shard of each row of `table`."""
    bad: list[tuple[int, str, str]]
    """(row number in the shard, reason, the row's raw text)"""


def find_files(source: str) -> tuple[fs.FileSystem, dict[str, str], str]:
    """The data files of `source` (file, folder, glob, or one of these as a URI), sorted, and the folder they lie in.

    Each path comes with its file's version, from one listing.

    Raises UserError where there are none or where formats are mixed.
    """
    try:
        filesystem, path = fs.FileSystem.from_uri(source) if "://" in source else (fs.LocalFileSystem(), source)
    except pa.ArrowInvalid as error:
        raise UserError(f"input {redact_credentials(source)!r} is not a location that can be read: {error}") from error
    if "://" not in source:
        path = str(Path(source).expanduser().absolute())
    pattern = re.search(r"[*?\[]", path) is not None and filesystem.get_file_info(path).type == fs.FileType.NotFound
    if pattern:
        base = re.split(r"[*?\[]", path, maxsplit=1)[0].rpartition("/")[0]
        if isinstance(filesystem, fs.LocalFileSystem):
            found = [info for info in filesystem.get_file_info(glob.glob(path, recursive=True)) if info.is_file]
        else:
            found = [info for info in _walk(filesystem, base) if fnmatch(info.path, path)]
    elif (info := filesystem.get_file_info(path)).type == fs.FileType.Directory:
        base, found = path.rstrip("/"), _walk(filesystem, path)
    elif info.type == fs.FileType.File:
        base, found = path.rpartition("/")[0], [info]
    else:
        raise UserError(f"input {redact_credentials(source)!r} does not exist")
    files = {info.path: _version(info) for info in found if file_format(info.path)}
    if not files:
        known = ", ".join(suffix for suffixes in FORMATS.values() for suffix in suffixes)
        raise UserError(
            f"input {redact_credentials(source)!r} holds no data file; known are {known} (text also as .gz)"
        )
    formats = {file_format(file) for file in files}
    if len(formats) > 1:
        raise UserError(
            f"input {redact_credentials(source)!r} mixes {', '.join(sorted(map(str, formats)))} files; "
            "choose some with a glob"
        )
    return filesystem, {path: files[path] for path in sorted(files, key=partial(file_slug, base=base))}, base


def file_format(path: str) -> str | None:
    """The format that a file's name tells; None for a file that is no data."""
    name = path.lower()
    for kind, suffixes in FORMATS.items():
        if name.endswith(suffixes) or (kind in ("json", "csv") and name.endswith(tuple(s + ".gz" for s in suffixes))):
            return kind
    return None


def plan_corpus(
    source: str, limit: int | None = None, shard_rows: int | None = None, earlier: Corpus | None = None
) -> Corpus:
    """Cut the input into shards of at most `shard_rows` rows (None: fewer for a small corpus, so that all actors work).

    Files that `earlier`, the plan of an earlier run, has in the same version are not read again. Files that cannot be
    read are in `broken`. Raises UserError for an input that is missing, empty or not readable at all.
    """
    filesystem, versions, base = find_files(source)
    kind = file_format(next(iter(versions)))
    assert kind
    known = {file.path: file for file in earlier.files} if earlier and earlier.format == kind else {}
    fresh = [path for path, version in versions.items() if path not in known or known[path].version != version]
    with ThreadPoolExecutor(16) as pool:
        inspected = list(pool.map(lambda file: inspect_file(filesystem, file, kind), fresh))
    broken = {path: told for path, told in zip(fresh, inspected, strict=True) if isinstance(told, str)}
    found = {path: told for path, told in zip(fresh, inspected, strict=True) if not isinstance(told, str)}
    if len(broken) == len(versions):
        raise UserError(f"input {redact_credentials(source)!r} cannot be read: {next(iter(broken.values()))}")
    versions = {path: version for path, version in versions.items() if path not in broken}
    schemas = [schema for _, schema in found.values()]
    if earlier and known:
        schemas.insert(0, earlier.schema)
    try:
        partitions, keys = _hive_partitions(list(versions), base)
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
            span = scan.span(start, start + rows) if kind in ("json", "csv") else (0, 0)
            shards.append(Shard(f"{stem}-{start:09d}-{start + rows:09d}", path, kind, start, rows, partition, span))
        left -= min(scan.rows, left)
    files = [DataFile(path, version, scan_of[path]) for path, version in versions.items()]
    return Corpus(files, kind, schema, shards, size, broken)


def inspect_file(filesystem: fs.FileSystem, path: str, kind: str) -> tuple[Scan, pa.Schema] | str:
    """A file's rows and columns, or why it cannot be read."""
    try:
        if kind in ("parquet", "ipc"):
            data = ds.dataset([path], filesystem=filesystem, format=kind)
            return Scan(data.count_rows(), np.empty(0, np.int64), _bytes(data)), data.schema
        return scan_text(filesystem, path, header=kind == "csv"), infer_schema(filesystem, path, kind)
    except (pa.ArrowException, OSError, EOFError, ValueError) as error:
        return str(error).splitlines()[0]


def _bytes(data: ds.Dataset) -> int:
    """About how many bytes a file's rows take in memory."""
    (fragment,) = data.get_fragments()
    if isinstance(fragment, ds.ParquetFileFragment):
        return sum(group.total_byte_size for group in fragment.row_groups)
    return fragment.filesystem.get_file_info(fragment.path).size


def rows_per_shard(scan: Scan, rows: int) -> int:
    """At most `rows` rows: fewer, but a multiple of 64, where a file's rows are so large that a shard would be."""
    fit = _SHARD_BYTES * scan.rows // max(scan.end, 1)
    return min(rows, max(fit // STRIDE_ROWS, 1) * STRIDE_ROWS)


def read_shard(source: str, shard: Shard, schema: pa.Schema, columns: list[str]) -> Rows:
    """The rows of `shard` with `columns` in the types of `schema`; columns that its file lacks are null."""
    filesystem, _ = resolve_filesystem(source)
    partition = dict(shard.partition)
    stored = [name for name in columns if name not in partition]
    if shard.format in ("json", "csv"):
        names = [name for name in schema.names if name not in partition]
        wanted = pa.schema([schema.field(name) for name in names])
        table, positions, bad = parse_text(filesystem, shard.path, shard.format, shard.span, shard.rows, wanted)
    else:
        batches = (_parquet_batches if shard.format == "parquet" else _ipc_batches)(filesystem, shard, stored)
        table = pa.Table.from_batches(list(batches)) if stored else pa.table({"": pa.nulls(shard.rows)})
        positions, bad = np.arange(shard.rows), []
    arrays = []
    for name in columns:
        kind = schema.field(name).type
        if name in partition:
            arrays.append(pa.repeat(pa.scalar(partition[name], kind), len(table)))
        elif name in table.column_names:
            arrays.append(table[name].cast(kind) if table[name].type != kind else table[name])
        else:
            arrays.append(pa.nulls(len(table), kind))
    rows = Rows(pa.table(arrays, schema=pa.schema([schema.field(name) for name in columns])), positions, bad)
    return rows if shard.row_range is None else _part(rows, *shard.row_range)


def _part(rows: Rows, first: int, stop: int) -> Rows:
    inside = np.flatnonzero((rows.positions >= first) & (rows.positions < stop))
    bad = [told for told in rows.bad if first <= told[0] < stop]
    return Rows(rows.table.take(pa.array(inside)), rows.positions[inside], bad)


def _version(info: fs.FileInfo) -> str:
    return hashlib.sha256(f"{info.size} {info.mtime_ns}".encode()).hexdigest()[:8]


def _walk(filesystem: fs.FileSystem, folder: str) -> list[fs.FileInfo]:
    """The files below `folder`, without those that begin with a dot or an underscore, or lie in a folder that does."""
    infos = filesystem.get_file_info(fs.FileSelector(folder, recursive=True))
    below = len(folder.rstrip("/")) + 1
    return [info for info in infos if info.is_file and not re.search(r"(^|/)[._]", info.path[below:])]


def _hive_partitions(files: list[str], base: str) -> tuple[list[tuple[tuple[str, str | int | None], ...]], pa.Schema]:
    """What the folders named key=value below `base` say of each file, and the columns' types: whole numbers or text."""
    found: list[dict[str, str | int | None]] = []
    for file in files:
        pairs = (part.split("=", 1) for part in file[len(base) + 1 :].split("/")[:-1] if "=" in part)
        found.append({key: None if value == _HIVE_NULL else unquote(value) for key, value in pairs})
    names = sorted({name for values in found for name in values})
    numbers = {name for name in names if all(re.fullmatch(r"-?\d{1,18}", str(v.get(name) or 0)) for v in found)}
    typed = [
        tuple((name, int(value) if name in numbers and value is not None else value) for name, value in values.items())
        for values in found
    ]
    return typed, pa.schema([(name, pa.int64() if name in numbers else pa.string()) for name in names])


def file_slug(file: str, base: str) -> str:
    """A file's place below `base` as a file name; places that differ have names that differ."""
    place = file[len(base) + 1 :]
    name = re.sub(r"[^A-Za-z0-9._=-]", "_", place)
    return name if name == place else f"{name}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"


def _parquet_batches(filesystem: fs.FileSystem, shard: Shard, columns: list[str]) -> Iterator[pa.RecordBatch]:
    with filesystem.open_input_file(shard.path) as stream:
        file = pq.ParquetFile(stream)
        present = [name for name in columns if name in file.schema_arrow.names]
        skip = shard.start
        groups: list[int] = []
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if not groups and skip >= rows:
                skip -= rows
                continue
            groups.append(group)
            if sum(file.metadata.row_group(i).num_rows for i in groups) >= skip + shard.rows:
                break
        batches = file.iter_batches(MAX_SHARD_ROWS, groups, present, use_threads=False)
        yield from _row_range(batches, skip, shard.rows)


def _ipc_batches(filesystem: fs.FileSystem, shard: Shard, columns: list[str]) -> Iterator[pa.RecordBatch]:
    with filesystem.open_input_file(shard.path) as stream:
        reader = pa.ipc.open_file(stream)
        present = [name for name in columns if name in reader.schema.names]
        batches = (reader.get_batch(i).select(present) for i in range(reader.num_record_batches))
        yield from _row_range(batches, shard.start, shard.rows)


def _row_range(batches: Iterator[pa.RecordBatch], skip: int, rows: int) -> Iterator[pa.RecordBatch]:
    """`rows` rows of `batches` after the first `skip`."""
    for batch in batches:
        if skip >= batch.num_rows:
            skip -= batch.num_rows
            continue
        piece = batch.slice(skip, rows)
        skip, rows = 0, rows - piece.num_rows
        yield piece
        if not rows:
            return
