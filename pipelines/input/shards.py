"""Shards, and the files and formats that they are cut from.

A shard is a fixed row range of one file, or the rows of several small files: the unit of work, of
retry, of commit and of resume.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import pyarrow as pa
from pyarrow import fs

from pipelines.input.names import shard_name, without_rows
from pipelines.input.shapes import Shape
from pipelines.input.text import TextOptions

BLOCK_ROWS = 4096
"""The rows that a file is decoded in at a time."""
_MAX_SUBSHARDS = 16


@dataclass(frozen=True)
class Scan:
    """The number of rows in a file and about how many bytes they take in memory."""

    rows: int
    size: int
    """About how many bytes the columns that are wanted take in memory."""
    parts: tuple[tuple[str, int], ...] = ()
    """For a file that was staged, the names of its parts and their rows (staging.py)."""
    group_rows: int = 0
    """The rows of its largest row group or record batch, which are decoded together; 0 where a
    read of any rows costs what these rows cost.
    """
    text_size: int = 0
    """About how many bytes the columns of texts take in memory; 0 where that is unknown."""


Partition: TypeAlias = tuple[tuple[str, str | int | None], ...]
"""The keys of a file's folders and their values."""


@dataclass(frozen=True)
class Piece:
    """Rows [start, start + rows) of one file."""

    path: str
    file: str
    """The name of the file in the names of parts."""
    version: str
    start: int
    rows: int
    partition: Partition = ()
    """The hive partition values in the file's path."""
    part: str = ""
    """The part of the staged file that holds its rows, and the row there at which it starts."""
    part_start: int = 0

    @property
    def stop(self) -> int:
        """The row after its last one."""
        return self.start + self.rows

    def cut(self, begin: int, end: int) -> Piece:
        """Return its rows [begin, end), counted from its start."""
        return replace(
            self,
            start=self.start + begin,
            rows=end - begin,
            part_start=self.part_start + begin,
        )


@dataclass(frozen=True)
class Shard:
    """Rows of one file, or all rows of several small files."""

    name: str
    """The stem of its output file: the input file's name, its version and the row range.

    It sorts in input order.
    """
    format: str
    """The name of the files' format, one of FORMATS."""
    pieces: tuple[Piece, ...]
    row_range: tuple[int, int] | None = None
    """The rows [first, stop) of a shard that was split, counted from its start; None for all."""
    unit: int = -1
    """Shards of one file and one unit that follow each other are decoded together; -1: alone."""

    @property
    def start(self) -> int:
        """Where the row numbers in its name begin: in its file, or 0 for several files."""
        return self.pieces[0].start if len(self.pieces) == 1 else 0

    @property
    def rows(self) -> int:
        """The rows of its pieces."""
        return sum(piece.rows for piece in self.pieces)

    @property
    def subshards(self) -> list[Shard]:
        """The shard cut into at most 16 row ranges, each a shard with a name of its own."""
        first, stop = self.row_range or (0, self.rows)
        stem = without_rows(self.name)
        step = math.ceil((stop - first) / _MAX_SUBSHARDS)
        subshards: list[Shard] = []
        for begin in range(first, stop, step):
            end = min(begin + step, stop)
            # The names count from the start of the file, as those of shards do.
            name = f"{stem}-{self.start + begin:09d}-{self.start + end:09d}"
            subshards.append(replace(self, name=name, row_range=(begin, end)))
        return subshards

    @property
    def count(self) -> int:
        """The number of rows in its row range."""
        if self.row_range is None:
            return self.rows
        first, stop = self.row_range
        return stop - first

    def inside(self) -> Iterator[tuple[Piece, int]]:
        """Yield the pieces in its row range, cut to it, each with the number of its first row in
        the shard.
        """
        first, stop = self.row_range or (0, self.rows)
        before = 0
        for piece in self.pieces:
            begin = max(first - before, 0)
            end = min(stop - before, piece.rows)
            if begin < end:
                yield piece.cut(begin, end), before + begin
            before += piece.rows

    @property
    def alone(self) -> list[Shard]:
        """A shard for each of its pieces, as if the file shared none."""
        return [
            Shard(shard_name(piece.file, piece.version, 0, piece.rows), self.format, (piece,))
            for piece in self.pieces
        ]

    def is_read_with(self, other: Shard) -> bool:
        """Tell whether a shard that follows it is decoded in the same pass over their file."""
        if self.unit < 0 or self.unit != other.unit:
            return False
        if self.row_range is not None or other.row_range is not None:
            return False
        return self.pieces[0].path == other.pieces[0].path

    def place(self, row: int) -> tuple[str, int]:
        """Return the path of the file that holds a row of the shard, and the row's number there."""
        for piece in self.pieces:
            if row < piece.rows:
                return piece.path, piece.start + row
            row -= piece.rows
        raise IndexError(row)


@dataclass(frozen=True, eq=False)
class DataFile:
    """An input file as the plan found it."""

    path: str
    version: str
    """A digest of its size and modification time: a changed file has another version."""
    scan: Scan
    name: str = ""
    """Its name in the names of its parts."""
    former: str = ""
    """The name that these have had where it is another now: parts under it are replaced."""
    step: int = 0
    """The most rows in a shard of it, which stays while the file does."""
    group: str = ""
    """The name of the shard that it shares with other files; empty where it has its own."""


BadRow = tuple[int, str, str]
"""(row number in the shard, reason, raw text) of a row that cannot be parsed."""


@dataclass(frozen=True)
class Rows:
    """The rows of a shard that can be read, and those that cannot."""

    table: pa.Table
    positions: np.ndarray
    """The row number in the shard of each row of `table`."""
    bad: list[BadRow]


Malformed = tuple[int, str, str]
"""(record in the block, reason, raw text) of a record that is not a row."""


class Block(NamedTuple):
    """Records of a file that is being staged, in order."""

    table: pa.Table
    """A row for each record, of nulls for a malformed one."""
    malformed: list[Malformed]
    share: float = 1.0
    """The share of the file that was read so far."""
    note: str | None = None
    """A message for the user about the file."""


@dataclass(frozen=True)
class Reading:
    """A file that is read in order, and what its columns hold as far as it was read."""

    filesystem: fs.FileSystem
    path: str
    options: TextOptions
    span: tuple[int, int | None] = (0, None)
    """The range of the bytes of a file of lines."""
    attempt: int = 0
    """How often the file was read from its start already (`TryAgain`)."""
    shapes: dict[str, Shape] = field(default_factory=dict)
    """What the columns of a text format hold; filled while it is read."""


class TryAgain(Exception):
    """Raised by `Format.blocks` where the file must be read again, with the next `attempt`."""


class Inspect(Protocol):
    """Finds the rows and columns of a file."""

    def __call__(
        self,
        filesystem: fs.FileSystem,
        path: str,
        wanted: frozenset[str] | None,
        texts: frozenset[str],
    ) -> tuple[Scan, pa.Schema] | None:
        """Return the rows and all columns of a file, None for one that must be staged.

        Args:
            filesystem: the file system.
            path: the file's path there.
            wanted: the columns that the job reads or keeps, None for all.
            texts: those that hold its texts.

        Raises:
            pa.ArrowException, OSError, EOFError, ValueError: for a file that cannot be read.
        """
        ...


class Read(Protocol):
    """Reads rows of a file."""

    def __call__(
        self,
        filesystem: fs.FileSystem,
        path: str,
        ranges: Sequence[tuple[int, int]],
        columns: list[str],
    ) -> Iterator[pa.Table]:
        """Yield a table for each range of rows, with fewer rows where the file ends before.

        Args:
            filesystem: the file system.
            path: the file's path there.
            ranges: (first row, number of rows), one after the other.
            columns: those to read. The tables lack the columns that the file lacks; where it lacks
                all, they have one of nulls.

        Raises:
            pa.ArrowException, OSError, EOFError, ValueError: for a file that cannot be read.
        """
        ...


@dataclass(frozen=True)
class Format:
    """A file format: how its files are recognised, inspected, read by row, or staged."""

    name: str
    """Its name in messages and in the record of an output's input files."""
    suffixes: tuple[str, ...]
    """The endings of its files' names, in lower case."""
    blocks: Callable[[Reading], Iterator[Block]] | None = None
    """Yields the records of a file that is staged, in order; those of a text format as columns of
    strings.
    """
    inspect: Inspect | None = None
    """None for text formats, whose files are always staged."""
    read: Read | None = None
    """None for text formats."""
