"""An input to shards, and shards to tables.

`inspect_input` finds the files and what is known of them, `cut` makes shards once the files that need it are staged.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import numpy as np
import pyarrow as pa
from pyarrow import fs

from pipelines.errors import UserError
from pipelines.input.files import file_slug, find_files, hive_partitions
from pipelines.input.formats import FORMATS, file_format
from pipelines.input.shapes import Shape
from pipelines.input.shards import (
    MAX_SHARD_ROWS,
    STRIDE_ROWS,
    Block,
    Corpus,
    DataFile,
    Format,
    Reading,
    Rows,
    Scan,
    Shard,
)
from pipelines.input.staging import StagedFile, StageTask, read_part, stage_tasks
from pipelines.input.text import TextOptions
from pipelines.input.types import common_type, convert
from pipelines.storage import Folder, redact_credentials, resolve_filesystem

_SHARD_BYTES = 32 << 20
_WANTED_SHARDS = 32
Columns: TypeAlias = pa.Schema | dict[str, Shape]
"""The columns of a file: their types, or what the text in them is."""


@dataclass
class Inspection:
    """The files of an input and what is known of them."""

    source: str
    base: str
    """The folder that they lie in."""
    format: str
    options: TextOptions
    versions: dict[str, str]
    """The version of each file."""
    earlier: Corpus | None
    """The plan of an earlier run, whose columns stay as they are."""
    scans: dict[str, Scan] = field(default_factory=dict)
    columns: dict[str, Columns] = field(default_factory=dict)
    """The columns of files that the earlier run did not know."""
    unstaged: list[str] = field(default_factory=list)
    """Files that must be staged before their rows are known."""
    broken: dict[str, str] = field(default_factory=dict)
    """Files that cannot be read, with the reason."""
    notes: list[str] = field(default_factory=list)

    def stage_tasks(self, path: str) -> list[StageTask]:
        """Return the tasks that stage a file."""
        stem = f"{file_slug(path, self.base)}-{self.versions[path]}"
        return stage_tasks(self.source, path, self.format, stem, self.options)

    def add_staged(self, path: str, staged: StagedFile) -> None:
        """Add what staging has found in a file."""
        self.scans[path] = Scan(staged.rows, staged.size, tuple(staged.parts))
        self.columns[path] = staged.schema or staged.shapes
        self.notes += [f"{path} {note}" for note in staged.notes]


def inspect_input(source: str, options: TextOptions, earlier: Corpus | None = None) -> Inspection:
    """Find the files of an input, and their rows and columns where these can be read at once.

    Args:
        source: a file, a folder, a glob, or one of these as a URI.
        options: how text files are read.
        earlier: the plan of an earlier run, whose unchanged files are not read again.

    Raises:
        UserError: for an input that is missing, and where no file can be read.
    """
    filesystem, versions, base, left_out = find_files(source)
    name = file_format(next(iter(versions)))
    assert name
    earlier = earlier if earlier and earlier.format == name else None
    found = Inspection(source, base, name, options, versions, earlier)
    if left_out:
        shown = ", ".join(left_out[:5]) + (", …" if len(left_out) > 5 else "")
        found.notes.append(f"{len(left_out):,} files are left out, whose format is not read: {shown}")
    known = {file.path: file for file in earlier.files} if earlier else {}
    found.scans = {path: known[path].scan for path, v in versions.items() if path in known and known[path].version == v}
    fresh = [path for path in versions if path not in found.scans]
    with ThreadPoolExecutor(16) as pool:
        inspected = list(pool.map(partial(inspect_file, FORMATS[name], filesystem), fresh))
    for path, result in zip(fresh, inspected, strict=True):
        if result is None:
            found.unstaged.append(path)
        elif isinstance(result, str):
            found.broken[path] = result
        else:
            found.scans[path], found.columns[path] = result
    if len(found.broken) == len(versions):
        raise _unreadable(found)
    return found


def inspect_file(format_: Format, filesystem: fs.FileSystem, path: str) -> tuple[Scan, pa.Schema] | str | None:
    """Return a file's rows and columns, the reason why it cannot be read, or None if it must be staged."""
    if format_.inspect is None:
        return None
    try:
        return format_.inspect(filesystem, path)
    except (pa.ArrowException, OSError, EOFError, ValueError) as error:
        return one_line(error)


def one_line(error: Exception) -> str:
    """Give an error in one line, with its type unless reading and writing usually raise it."""
    text = next(iter(str(error).splitlines()), "")
    usual = text and isinstance(error, pa.ArrowException | OSError | EOFError | ValueError)
    return text if usual else f"{type(error).__name__}: {text}"


def sample(found: Inspection, paths: list[str]) -> Iterator[tuple[Block | None, dict[str, Shape]]]:
    """Yield the first records of files that are not staged, and the shapes of their columns; None of unreadable ones.

    Raises:
        UserError: where no file of the input can be read.
    """
    filesystem, _ = resolve_filesystem(found.source)
    failed: dict[str, str] = {}
    for path in paths:
        reading = Reading(filesystem, path, found.options)
        try:
            yield next(FORMATS[found.format].blocks(reading), Block(pa.table({}), [])), reading.shapes
        except (pa.ArrowException, OSError, EOFError, ValueError) as error:
            failed[path] = one_line(error)
            yield None, {}
    if len(failed) + len(found.broken) == len(found.versions):
        found.broken |= failed
        raise _unreadable(found)


def _unreadable(found: Inspection) -> UserError:
    path, reason = next(iter(found.broken.items()))
    return UserError(f"input {redact_credentials(found.source)!r} cannot be read: {path}: {reason}")


def cut(found: Inspection, limit: int | None = None, shard_rows: int | None = None) -> Corpus:
    """Cut the input into shards of at most `shard_rows` rows; all files must be staged that need it.

    Args:
        found: the files.
        limit: the number of rows to take, None for all.
        shard_rows: None for the largest shards with which a small corpus still keeps all actors busy.

    Raises:
        UserError: for an input without rows.
    """
    if len(found.broken) == len(found.versions):
        raise _unreadable(found)
    fields = unify(found)
    versions = {path: version for path, version in found.versions.items() if path not in found.broken}
    partitions, keys = hive_partitions(list(versions), found.base)
    schema = pa.schema([*((n, t) for n, t in fields.items() if n not in keys.names), *keys])
    total = sum(found.scans[path].rows for path in versions)
    if not total:
        raise UserError(f"input {redact_credentials(found.source)!r} has no rows")
    size = shard_rows or min(MAX_SHARD_ROWS, -(-total // (_WANTED_SHARDS * STRIDE_ROWS)) * STRIDE_ROWS)
    left = limit if limit is not None else total
    shards: list[Shard] = []
    for (path, version), partition in zip(versions.items(), partitions, strict=True):
        scan, stem, start = found.scans[path], f"{file_slug(path, found.base)}-{version}", 0
        step = rows_per_shard(scan, size)
        for part, part_rows in scan.parts or [("", scan.rows)]:
            for part_start in range(0, min(part_rows, left), step):
                rows, first = min(step, part_rows - part_start, left - part_start), start + part_start
                name = f"{stem}-{first:09d}-{first + rows:09d}"
                shards.append(Shard(name, path, found.format, first, rows, partition, part, part_start))
            start, left = start + part_rows, left - min(part_rows, left)
    files = [DataFile(path, version, found.scans[path]) for path, version in versions.items()]
    return Corpus(files, found.format, schema, shards, size, found.broken, found.notes)


def unify(found: Inspection) -> dict[str, pa.DataType]:
    """Return the columns of all known files; a file whose columns do not meet those of the others is broken."""
    fixed = {each.name: each.type for each in found.earlier.schema} if found.earlier else {}
    shapes: dict[str, Shape] = {}
    types = dict(fixed)
    for path, columns in found.columns.items():
        if path in found.broken or not found.scans[path].rows:
            continue
        if isinstance(columns, dict):
            misfits = [name for name, shape in columns.items() if name in fixed and not shape.fits(fixed[name])]
        else:
            met = {each.name: common_type(types.get(each.name, each.type), each.type) for each in columns}
            misfits = [name for name, type_ in met.items() if type_ is None or fixed.get(name, type_) != type_]
        if misfits:
            held = columns[misfits[0]].type if isinstance(columns, dict) else columns.field(misfits[0]).type
            found.broken[path] = (
                f"column {misfits[0]!r} holds {held}, where the {'output' if fixed else 'files before it'}"
                f" has {types[misfits[0]]}"
            )
        elif isinstance(columns, dict):
            shapes |= {name: shapes.get(name, Shape()).merge(shape) for name, shape in columns.items()}
        else:
            types |= {name: type_ for name, type_ in met.items() if type_ is not None}
    return types | {name: shape.type for name, shape in shapes.items() if name not in fixed}


def rows_per_shard(scan: Scan, rows: int) -> int:
    """Return `rows`, or a smaller multiple of 64 if a file's rows are so large that a shard would exceed 32 MiB."""
    fit = _SHARD_BYTES * scan.rows // max(scan.size, 1)
    return min(rows, max(fit // STRIDE_ROWS, 1) * STRIDE_ROWS)


def read_shard(source: str, output: Folder, shard: Shard, schema: pa.Schema, columns: list[str]) -> Rows:
    """Read `columns` of a shard in the types of `schema`; columns that its file lacks are null.

    Args:
        source: the input.
        output: the output, which holds the staged files.
        shard: the shard.
        schema: the columns of the whole input.
        columns: the names of those wanted.
    """
    partition = dict(shard.partition)
    wanted = [name for name in columns if name not in partition]
    if shard.part:
        rows = read_part(output, shard, wanted)
    else:
        reader = FORMATS[shard.format].read
        assert reader is not None
        filesystem, _ = resolve_filesystem(source)
        rows = Rows(reader(filesystem, shard.path, shard.start, shard.rows, wanted), np.arange(shard.rows), [])
    arrays = []
    for name in columns:
        type_ = schema.field(name).type
        if name in partition:
            arrays.append(pa.repeat(pa.scalar(partition[name], type_), len(rows.positions)))
        elif name in rows.table.column_names:
            arrays.append(convert(rows.table[name], type_))
        else:
            arrays.append(pa.nulls(len(rows.positions), type_))
    table = pa.table(arrays, schema=pa.schema([schema.field(name) for name in columns]))
    rows = Rows(table, rows.positions, rows.bad)
    return rows if shard.row_range is None else _within(rows, *shard.row_range)


def _within(rows: Rows, first: int, stop: int) -> Rows:
    inside = np.flatnonzero((rows.positions >= first) & (rows.positions < stop))
    bad = [row for row in rows.bad if first <= row[0] < stop]
    return Rows(rows.table.take(pa.array(inside)), rows.positions[inside], bad)
