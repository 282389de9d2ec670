"""Snapshots of tables: the data files that count now, with their versions, columns and partitions.

A file here is what a table adds and removes as a whole: a Parquet file of Delta and Iceberg, a
fragment of Lance. Its version changes with the rows that are deleted from it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import pyarrow as pa
from pyarrow import fs

from pipelines.errors import UserError
from pipelines.input.shards import Block, Format, Reading, Scan
from pipelines.storage import Location, one_line

_LIBRARIES = {"Delta": "deltalake", "Iceberg": "pyiceberg", "Lance": "lance"}
"""The modules that read the logs of tables; the extra that installs one has the table's name."""


@dataclass(frozen=True, repr=False)
class TableLocation(Location):
    """A table at one of its snapshots, which stays as it is when the table moves on."""

    kind: str = ""
    snapshot: str = ""
    """What the table calls it: a version of Delta or Lance, an id of Iceberg."""
    metadata: str = ""
    """The file that describes the snapshot, where the snapshot's name does not lead to it."""

    def __reduce__(self) -> tuple[type[Location], tuple[str, ...]]:  # type: ignore[override]
        return type(self), (self.uri, self.kind, self.snapshot, self.metadata)

    @property
    def title(self) -> str:
        """The snapshot in words, for records and messages."""
        word = "snapshot" if self.kind == "Iceberg" else "version"
        return f"{self.kind} {word} {self.snapshot}"


@dataclass(frozen=True)
class Snapshot:
    """What the log of a table says of its rows."""

    location: TableLocation
    schema: pa.Schema
    """The columns of every row."""
    versions: dict[str, str]
    """The version of each file by its path."""
    partitions: dict[str, tuple[tuple[str, str | int | None], ...]] = field(default_factory=dict)
    """The values of columns that the log alone has, by path; as text where they are no numbers."""


def take_snapshot(source: Location, kind: str) -> Snapshot:
    """Read the log of a table as it is now.

    Args:
        source: the table, as the user named it.
        kind: its kind, of those in tables.py.

    Raises:
        UserError: where its library is missing, and for a table that is not understood.
    """
    if kind not in _LIBRARIES:
        raise UserError(
            f"input '{source}' is a {kind} table, which is not read; write a snapshot of it as "
            "Parquet, and give that"
        )
    if find_spec(_LIBRARIES[kind]) is None:
        raise UserError(
            f"input '{source}' is a {kind} table: to read it, pip install "
            f"'modernbert-ray[{kind.lower()}]' on each node"
        )
    try:
        snapshot: Snapshot = _module(kind).take_snapshot(source)
    except Exception as error:  # each library has errors of its own
        raise UserError(
            f"input '{source}' is a {kind} table that cannot be read: {one_line(error)}"
        ) from error
    return snapshot


@cache
def table_format(location: TableLocation) -> Format:
    """Return the format of a snapshot's files: its functions read them as the snapshot has them."""
    of_kind: Format = _module(location.kind).table_format(location)
    inspect_file, read_file, blocks_of_file = of_kind.inspect, of_kind.read, of_kind.blocks
    assert inspect_file is not None
    assert read_file is not None

    def inspect(
        filesystem: fs.FileSystem,
        path: str,
        wanted: frozenset[str] | None,
        texts: frozenset[str],
    ) -> tuple[Scan, pa.Schema] | None:
        with _changes_named(location):
            return inspect_file(filesystem, path, wanted, texts)

    def read(
        filesystem: fs.FileSystem, path: str, ranges: Sequence[tuple[int, int]], columns: list[str]
    ) -> Iterator[pa.Table]:
        with _changes_named(location):
            yield from read_file(filesystem, path, ranges, columns)

    def blocks(reading: Reading) -> Iterator[Block]:
        assert blocks_of_file is not None
        with _changes_named(location):
            yield from blocks_of_file(reading)

    return replace(of_kind, inspect=inspect, read=read, blocks=blocks_of_file and blocks)


@contextmanager
def _changes_named(location: TableLocation) -> Iterator[None]:
    """Turn an error into one that says so where the table is no longer as the snapshot has it.

    What removes old files (a vacuum, an expiry) leaves those that the table has now.
    """
    try:
        yield
    except Exception as error:  # each library has errors of its own
        if not _has_changed(location):
            raise
        raise ValueError(
            f"the table has changed since {location.title} was planned, whose files may be gone "
            "(a vacuum, expired snapshots); the same command, run again, reads the table as it is "
            f"then: {one_line(error)}"
        ) from error


def _has_changed(location: TableLocation) -> bool:
    try:
        return take_snapshot(Location(location.uri), location.kind).location != location
    except UserError:  # the table itself is gone, which the first error says
        return False


def _module(kind: str) -> ModuleType:
    """Import what reads a kind of table; its library takes long to import."""
    return import_module(f"pipelines.input.{kind.lower()}")


def file_version(*of: object) -> str:
    """Return the version of a file from what decides which rows it has, values of JSON."""
    return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:8]
