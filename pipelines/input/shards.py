"""Shards, and the files and formats that they are cut from.

A shard is a fixed row range of one file: the unit of work, of retry, of commit and of resume.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
from pyarrow import fs

MAX_SHARD_ROWS = 4096
STRIDE_ROWS = 64
"""Shards start at a multiple of this row number: text files keep the byte offset of every such record."""


@dataclass(frozen=True)
class Scan:
    """The number of rows in a file and, for a text file, where they lie."""

    rows: int
    row_offsets: np.ndarray
    """The byte at which record i * 64 starts; blank lines belong to the record before them. Empty for other files."""
    end: int
    """The bytes that all rows take: exact for text, for other formats about as much as in memory."""

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """Return the byte range of records [start, stop), a little more if `stop` is no multiple of 64."""
        if not len(self.row_offsets):
            return 0, 0
        last = -(-stop // STRIDE_ROWS)
        return int(self.row_offsets[start // STRIDE_ROWS]), int(self.row_offsets[last]) if last < len(
            self.row_offsets
        ) else self.end


@dataclass(frozen=True)
class Shard:
    """Rows [start, start + rows) of one file."""

    name: str
    """The stem of its output file: the input file's name, its version and the row range; sorts in input order."""
    path: str
    format: str
    """The name of the file's format, one of FORMATS."""
    start: int
    rows: int
    partition: tuple[tuple[str, str | int | None], ...] = ()
    """The hive partition values in the file's path."""
    span: tuple[int, int] = (0, 0)
    """The range of its rows in the decompressed bytes of a text file."""
    row_range: tuple[int, int] | None = None
    """The rows [first, stop) of a shard that was split, counted from its start; None for all."""

    @property
    def subshards(self) -> list[Shard]:
        """The shard cut into at most 16 row ranges, each a shard with a name of its own."""
        first, stop = self.row_range or (0, self.rows)
        stem, step = self.name.rsplit("-", 2)[0], -(-(stop - first) // 16)
        parts = [(a, min(a + step, stop)) for a in range(first, stop, step)]
        names = [f"{stem}-{self.start + a:09d}-{self.start + b:09d}" for a, b in parts]
        return [replace(self, name=name, row_range=part) for name, part in zip(names, parts, strict=True)]

    @property
    def count(self) -> int:
        """The number of rows in its row range."""
        return self.row_range[1] - self.row_range[0] if self.row_range else self.rows


@dataclass(frozen=True, eq=False)
class DataFile:
    """An input file as the plan found it."""

    path: str
    version: str
    """A digest of its size and modification time: a changed file has another version."""
    scan: Scan


@dataclass(frozen=True)
class Corpus:
    """The plan of an input: its files, columns and shards."""

    files: list[DataFile]
    format: str
    schema: pa.Schema
    """The columns of every row, partition keys included."""
    shards: list[Shard]
    shard_rows: int
    """The most rows in a shard."""
    broken: dict[str, str] = field(default_factory=dict)
    """Files that cannot be read, with the reason; they have no shards."""

    @property
    def rows(self) -> int:
        """The number of rows in all shards."""
        return sum(shard.rows for shard in self.shards)


BadRow = tuple[int, str, str]
"""(row number in the shard, reason, raw text) of a row that cannot be parsed."""


@dataclass(frozen=True)
class Rows:
    """The rows of a shard that can be read, and those that cannot."""

    table: pa.Table
    positions: np.ndarray
    """The row number in the shard of each row of `table`."""
    bad: list[BadRow]


@dataclass(frozen=True)
class Format:
    """A file format: how its files are recognised, inspected and read."""

    name: str
    """Its name in messages and in the record of an output's input files."""
    suffixes: tuple[str, ...]
    """The endings of its files' names, in lower case."""
    inspect: Callable[[fs.FileSystem, str], tuple[Scan, pa.Schema]]
    """Find the rows and columns of the file at a path; raises an Arrow error, OSError, EOFError or ValueError."""
    read: Callable[[fs.FileSystem, Shard, pa.Schema, list[str]], Rows]
    """Read the rows of a shard: (file system, shard, columns stored in the files, names of those wanted).

    The table lacks the wanted columns that the shard's file lacks."""
