"""Staging: a file that cannot be read by row is read once, in order, into Parquet parts.

They lie in the output:

    OUTPUT/_staged/<file>-<version>[-<range>].json            its parts, and shapes of the columns
    OUTPUT/_staged/<file>-<version>[-<range>]-<part>.parquet  its records

Another part begins where columns are added. Every record of a text file is a row, a malformed one
with its reason and raw text. Columns are strings; they become typed when they are read
(types.convert).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from pipelines.input.formats import format_of
from pipelines.input.parquet import read
from pipelines.input.shapes import Shape
from pipelines.input.shards import BLOCK_ROWS, BadRow, Block, Piece, Reading, Rows, TryAgain
from pipelines.input.text import COMPRESSIONS, TextOptions, lines_file_spans
from pipelines.input.types import convert, plain_type, why_not_stored
from pipelines.storage import Folder, Location, file_info, temporary_name

STAGED = "_staged"
RANGED_BYTES, RANGE_BYTES = 1 << 30, 256 << 20
"""A larger file of lines is staged in ranges of this size side by side."""
_REASON, _RAW = "modernbert:reason", "modernbert:raw"
_RECORD_FIELDS = pa.schema([(_REASON, pa.string()), (_RAW, pa.string())])


class StagingFailed(OSError):
    """Raised where the output cannot be written."""


@contextmanager
def _writing() -> Iterator[None]:
    """Let an OSError of the block be one of the output, not of the file that is read."""
    try:
        yield
    except OSError as error:
        raise StagingFailed(error.errno, error.strerror or str(error)) from error


@dataclass(frozen=True)
class StageTask:
    """A file, or a range of one, to be staged by one worker."""

    path: str
    format: str
    name: str
    """The stem of the names of its parts."""
    span: tuple[int, int | None] = (0, None)


@dataclass
class StagedFile:
    """What staging knows of a file."""

    parts: list[tuple[str, int]] = field(default_factory=list)
    """The names of the parts, and their rows."""
    size: int = 0
    """The bytes of the values."""
    shapes: dict[str, Shape] = field(default_factory=dict)
    """The shapes of a text file's columns."""
    schema: pa.Schema | None = None
    """The columns of any other file."""
    notes: list[str] = field(default_factory=list)
    """Messages for the user about the file."""

    @property
    def rows(self) -> int:
        """The number of records."""
        return sum(rows for _, rows in self.parts)

    def add(self, other: StagedFile) -> None:
        """Add what a later range of the file holds."""
        self.parts += other.parts
        self.size += other.size
        self.notes += [note for note in other.notes if note not in self.notes]
        for name, shape in other.shapes.items():
            own = self.shapes.get(name, Shape())
            self.shapes[name] = own.merge(shape)
        self.schema = self.schema or other.schema

    def to_json(self) -> str:
        """Encode it for a file."""
        schema = None
        if self.schema:
            schema = base64.b64encode(self.schema.serialize()).decode()
        content = {
            "parts": self.parts,
            "size": self.size,
            "notes": self.notes,
            "shapes": {name: shape.to_json() for name, shape in self.shapes.items()},
            "schema": schema,
        }
        return json.dumps(content)

    @classmethod
    def from_json(cls, text: str | bytes) -> StagedFile:
        """Decode what `to_json` has encoded."""
        content = json.loads(text)
        schema = None
        if content["schema"]:
            schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(content["schema"])))
        return cls(
            parts=[(name, rows) for name, rows in content["parts"]],
            size=content["size"],
            shapes={name: Shape.from_json(shape) for name, shape in content["shapes"].items()},
            schema=schema,
            notes=content["notes"],
        )


def stage_tasks(
    source: Location, path: str, format_: str, stem: str, options: TextOptions
) -> list[StageTask]:
    """Return the tasks that stage a file: one, or one for each range of a large file of lines.

    Args:
        source: the input.
        path: the file's path there.
        format_: the name of its format.
        stem: the stem of the names of its parts; they say, too, how the file was read.
        options: how text files are read.
    """
    filesystem, _ = source.filesystem_and_path
    changed = options.changed()
    if changed:
        digest = hashlib.sha256(json.dumps(changed, sort_keys=True).encode()).hexdigest()
        stem = f"{stem}-{digest[:8]}"
    is_compressed = path.lower().endswith(COMPRESSIONS)
    is_of_lines = format_ in ("json", "text")
    has_plain_lines = is_of_lines and not is_compressed and options.encoding == "utf-8"
    if not has_plain_lines or options.limit is not None:
        return [StageTask(path, format_, stem)]
    if file_info(filesystem, path).size <= RANGED_BYTES:
        return [StageTask(path, format_, stem)]
    spans = lines_file_spans(filesystem, path, RANGE_BYTES)
    return [StageTask(path, format_, f"{stem}-{i:04d}", span) for i, span in enumerate(spans)]


def read_staged(folder: Folder, task: StageTask, present: set[str]) -> StagedFile | None:
    """Return what an earlier run has staged, None where some of it is missing.

    `present`: the names of the files in _staged.
    """
    if f"{task.name}.json" not in present:
        return None
    staged = StagedFile.from_json(folder.read(f"{STAGED}/{task.name}.json"))
    if all(name in present for name, _ in staged.parts):
        return staged
    return None


def stage(source: Location, folder: Folder, task: StageTask, options: TextOptions) -> StagedFile:
    """Stage a file.

    Raises:
        StagingFailed: where the output cannot be written.
        ValueError, OSError, EOFError, pa.ArrowException: where the file cannot be read.
    """
    filesystem, _ = source.filesystem_and_path
    format_ = format_of(source, task.format)
    blocks = format_.blocks
    assert blocks is not None  # its files are staged
    attempt = 0
    while True:
        staged = StagedFile()
        writer = _Writer(folder, task.name, staged, is_text=format_.inspect is None)
        reading = Reading(filesystem, task.path, options, task.span, attempt, staged.shapes)
        try:
            for block in blocks(reading):
                writer.write(block)
                if options.limit is not None and writer.rows >= options.limit:
                    break
            writer.close()
        except TryAgain:
            writer.discard()
            attempt += 1
            continue
        except BaseException:
            writer.discard()
            raise
        _check_records(task, writer)
        # Written last: it says that all parts are there.
        with _writing():
            folder.write_atomic(f"{STAGED}/{task.name}.json", staged.to_json().encode())
        return staged


def _check_records(task: StageTask, writer: _Writer) -> None:
    """Raise ValueError for a file in which no record is a row: its name says the wrong format."""
    if writer.rows and writer.malformed == writer.rows and task.span == (0, None):
        raise ValueError(
            f"no record of it is a row of {task.format}: the first {writer.first_reason}"
        )


class _Writer:
    """The parts of a staged file as they are written."""

    def __init__(self, folder: Folder, name: str, staged: StagedFile, is_text: bool):
        self.folder = folder
        self.name = name
        self.staged = staged
        self.is_text = is_text
        self.filesystem, path = folder.filesystem_and_path
        self.path = f"{path}/{STAGED}"
        self.rows = 0
        self.malformed = 0
        self.first_reason = ""
        self.writer: pq.ParquetWriter | None = None
        self.part_rows = 0

    def write(self, block: Block) -> None:
        """Add records; a part begins where the columns are others."""
        if block.note and block.note not in self.staged.notes:
            self.staged.notes.append(block.note)
        if self.is_text:
            if block.malformed and not self.first_reason:
                _, self.first_reason, _ = block.malformed[0]
            self.malformed += len(block.malformed)
            table = _with_reasons(block)
        else:
            self.staged.schema = block.table.schema
            table = _storable(block.table)
        self.rows += len(table)
        self.staged.size += table.nbytes
        if self.writer is None or self.writer.schema != table.schema:
            self.close()
            self._open(table.schema)
        assert self.writer is not None
        with _writing():
            self.writer.write_table(table, row_group_size=BLOCK_ROWS)
        self.part_rows += len(table)

    def _open(self, schema: pa.Schema) -> None:
        self.part = f"{self.name}-{len(self.staged.parts):04d}.parquet"
        # An object store shows a file when it is whole; a disk at once.
        name = temporary_name(self.part) if self.folder.is_local else self.part
        self.written = f"{self.path}/{name}"
        with _writing():
            if self.folder.is_local:
                Path(self.path).mkdir(parents=True, exist_ok=True)
            self.stream = self.filesystem.open_output_stream(self.written)
        self.writer = pq.ParquetWriter(
            self.stream, schema, compression="lz4", use_dictionary=False, write_statistics=False
        )

    def close(self) -> None:
        """Finish the part; only a whole one has its name."""
        if self.writer is None:
            return
        with _writing():
            self.writer.close()
            self.stream.close()
            if self.folder.is_local:
                os.replace(self.written, f"{self.path}/{self.part}")
        self.staged.parts.append((self.part, self.part_rows))
        self.writer = None
        self.part_rows = 0

    def discard(self) -> None:
        """Leave the part that is being written."""
        if self.writer is not None and self.folder.is_local:
            Path(self.written).unlink(missing_ok=True)
        self.writer = None


def _with_reasons(block: Block) -> pa.Table:
    """Return the records of a text file with the reasons and raw texts of malformed ones."""
    reasons: list[str | None] = [None] * len(block.table)
    raws: list[str | None] = [None] * len(block.table)
    for record, reason, raw in block.malformed:
        reasons[record] = reason
        raws[record] = raw
    columns = {name: block.table[name] for name in block.table.column_names}
    columns[_REASON] = pa.array(reasons, pa.string())
    columns[_RAW] = pa.array(raws, pa.string())
    return pa.table(columns)


def _storable(table: pa.Table) -> pa.Table:
    """Return a table in plain types, without the columns that Parquet cannot hold.

    The plan refuses these, or leaves them out.
    """
    columns: dict[str, pa.ChunkedArray] = {}
    for i, column_field in enumerate(table.schema):
        type_ = plain_type(column_field.type)
        if why_not_stored(type_) is None:
            columns[column_field.name] = convert(table.column(i), type_)
    return pa.table(columns) if columns else table.select([])


def remove_staged(folder: Folder) -> None:
    """Remove all staged files."""
    filesystem, path = folder.filesystem_and_path
    if filesystem.get_file_info(f"{path}/{STAGED}").type != fs.FileType.NotFound:
        filesystem.delete_dir(f"{path}/{STAGED}")


def read_part(folder: Folder, piece: Piece, columns: list[str]) -> Rows:
    """Read columns of a piece of a staged file; its malformed records are the bad rows."""
    filesystem, path = folder.filesystem_and_path
    part = f"{path}/{STAGED}/{piece.part}"
    names = [*columns, *_RECORD_FIELDS.names]
    [table] = read(filesystem, part, [(piece.part_start, piece.rows)], names)
    if _REASON not in table.column_names:
        return Rows(table, np.arange(len(table)), [])
    reasons = table[_REASON].to_pylist()
    raws = table[_RAW].to_pylist()
    good: list[int] = []
    bad: list[BadRow] = []
    for row, reason in enumerate(reasons):
        if reason is None:
            good.append(row)
        else:
            bad.append((row, reason, raws[row]))
    positions = np.array(good, np.int64)
    readable = table.drop_columns([_REASON, _RAW]).take(pa.array(positions))
    return Rows(readable, positions, bad)
