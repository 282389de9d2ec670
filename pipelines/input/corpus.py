"""The plan of an input: its files, columns and shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np
import pyarrow as pa

from pipelines.input.names import shard_name
from pipelines.input.shards import DataFile, Partition, Piece, Shard

CUT = np.dtype(
    [
        *(("file", np.int32), ("start", np.int64), ("rows", np.int64)),
        *(("part", np.int32), ("part_start", np.int64), ("unit", np.int32)),
    ]
)
"""A shard in a table of shards: the number of its file, its rows there, the number of the staged
part that holds these, and the unit that it is read with.
"""


class Shards(Sequence[Shard]):
    """The shards of an input, made when they are asked for: millions take little memory."""

    def __init__(
        self,
        format_: str,
        files: Sequence[tuple[DataFile, Partition]],
        groups: Sequence[tuple[str, tuple[Piece, ...]]],
        cuts: np.ndarray,
    ):
        """Take the files with their partitions, and the names and pieces of shards that they share.

        `cuts`: (n,) of type `CUT`; where `file` is negative, -1 is the first of `groups`, and so
        on.
        """
        self._format = format_
        self._files = files
        self._groups = groups
        self._cuts = cuts

    def __len__(self) -> int:
        return len(self._cuts)

    @property
    def rows(self) -> int:
        """The rows of all shards."""
        return int(self._cuts["rows"].sum())

    @property
    def largest(self) -> int:
        """The rows of the largest shard."""
        return int(self._cuts["rows"].max(initial=0))

    @overload
    def __getitem__(self, index: int) -> Shard: ...

    @overload
    def __getitem__(self, index: slice) -> Shards: ...

    def __getitem__(self, index: int | slice) -> Shard | Shards:
        if isinstance(index, slice):
            return Shards(self._format, self._files, self._groups, self._cuts[index])
        file_number, start, rows, part, part_start, unit = self._cuts[index].item()
        if file_number < 0:
            name, pieces = self._groups[-1 - file_number]
            return Shard(name, self._format, pieces)
        file, partition = self._files[file_number]
        part_name = file.scan.parts[part][0] if part >= 0 else ""
        piece = Piece(
            file.path,
            file.name,
            file.version,
            start,
            rows,
            partition,
            part_name,
            part_start,
        )
        name = shard_name(file.name, file.version, start, start + rows)
        return Shard(name, self._format, (piece,), unit=unit)

    def take(self, indices: Sequence[int]) -> Shards:
        """Return some of the shards."""
        chosen = self._cuts[np.asarray(indices, np.int64)]
        return Shards(self._format, self._files, self._groups, chosen)


@dataclass(frozen=True)
class Corpus:
    """The plan of an input: its files, columns and shards."""

    files: list[DataFile]
    format: str
    schema: pa.Schema
    """The columns of every row, partition keys included."""
    shards: Shards
    gone: list[DataFile] = field(default_factory=list)
    """Files that have disappeared, of shards that others share with them."""
    broken: dict[str, str] = field(default_factory=dict)
    """Files that cannot be read, with the reason; they have no shards."""
    notes: list[str] = field(default_factory=list)
    """Messages for the user: files that are left out, or not UTF-8."""
    stems: frozenset[str] | None = None
    """For a table, the beginnings of the names of its parts: others are of files that it has
    removed. None where rows of files that are missing stay.
    """

    @property
    def rows(self) -> int:
        """The number of rows in all shards."""
        return self.shards.rows
