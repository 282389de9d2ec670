"""The files of an input and what is known of them before they are cut into shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import pyarrow as pa
from pyarrow import fs

from pipelines.errors import UserError
from pipelines.input.files import InputFiles, find_files
from pipelines.input.formats import FORMATS, file_format
from pipelines.input.names import first_portable_name, former_name, portable_name
from pipelines.input.shapes import Shape
from pipelines.input.shards import Block, Corpus, Format, Reading, Scan
from pipelines.input.staging import StagedFile, StageTask, stage_tasks
from pipelines.input.text import TextOptions
from pipelines.storage import Folder, Location, redact

Columns: TypeAlias = pa.Schema | dict[str, Shape]
"""The columns of a file: their types, or what the text in them is."""


@dataclass
class Inspection:
    """The files of an input and what is known of them."""

    source: Location
    found: InputFiles
    format: str
    options: TextOptions
    names: dict[str, str]
    """The name of each file in the names of its parts; files are in this order."""
    wanted: frozenset[str] | None
    """The columns that the job reads or keeps, None for all: others may have any type."""
    earlier: Corpus | None
    """The plan of an earlier run, whose columns stay as they are."""
    name_of: Callable[[str], str] = portable_name
    scans: dict[str, Scan] = field(default_factory=dict)
    columns: dict[str, Columns] = field(default_factory=dict)
    """The columns of files that the earlier run did not know."""
    unstaged: list[str] = field(default_factory=list)
    """Files that must be staged before their rows are known."""
    broken: dict[str, str] = field(default_factory=dict)
    """Files that cannot be read, with the reason."""
    notes: list[str] = field(default_factory=list)
    fitting: set[tuple[str, str, pa.DataType]] = field(default_factory=set)
    """Files, columns and types whose values were seen to fit."""

    @property
    def versions(self) -> dict[str, str]:
        """The version of each file."""
        return self.found.versions

    @property
    def has_former_names(self) -> bool:
        """Whether parts have the names of an output that was begun before they had a folder of
        their own.
        """
        return self.name_of is first_portable_name

    def former_name(self, path: str) -> str:
        """Return the name that a file's parts had, where it is another now; else an empty text."""
        former = former_name(self.found.name(path)) if self.has_former_names else ""
        return former if former != self.names[path] else ""

    def is_wanted(self, column: str) -> bool:
        """Tell whether the job reads or keeps a column."""
        return self.wanted is None or column in self.wanted

    def stage_tasks(self, path: str) -> list[StageTask]:
        """Return the tasks that stage a file."""
        return stage_tasks(
            self.source,
            path,
            self.format,
            f"{self.names[path]}-{self.versions[path]}",
            self.options,
        )

    def add_staged(self, path: str, staged: StagedFile) -> None:
        """Add what staging has found in a file."""
        self.scans[path] = Scan(staged.rows, staged.size, tuple(staged.parts))
        self.columns[path] = staged.schema or staged.shapes
        self.notes += [f"{path} {note}" for note in staged.notes]


def inspect_input(
    source: Location,
    options: TextOptions,
    *,
    output: Folder | None = None,
    wanted: frozenset[str] | None = None,
    earlier: Corpus | None = None,
    name_of: Callable[[str], str] = portable_name,
) -> Inspection:
    """Find the files of an input, and their rows and columns where these can be read at once.

    Args:
        source: a file, a folder, a glob, or one of these as a URI.
        options: how text files are read.
        output: the output of the job, whose files are no input.
        wanted: the columns that the job reads or keeps, None for all.
        earlier: the plan of an earlier run, whose unchanged files are not read again.
        name_of: makes the name of a file's parts from its path below the input.

    Raises:
        UserError: for an input that is missing, and where no file can be read.
    """
    files = find_files(source, output)
    names = {path: name_of(files.name(path)) for path in files.versions}
    files.versions = {
        path: files.versions[path] for path in sorted(names, key=lambda path: names[path])
    }
    format_name = next((file_format(path) for path in files.versions), None) or ""
    found = Inspection(source, files, format_name, options, names, wanted, earlier, name_of)
    found.broken |= files.broken
    found.notes += files.notes
    if files.left_out:
        shown = ", ".join(files.left_out[:5]) + (", …" if len(files.left_out) > 5 else "")
        found.notes.append(
            f"{len(files.left_out):,} files are left out, whose format is not read: {shown}"
        )
    if not files.versions:
        raise unreadable(found)
    known = (
        {file.path: file for file in earlier.files}
        if earlier and earlier.format == format_name
        else {}
    )
    for path, version in files.versions.items():
        if path not in known or known[path].version != version:
            continue
        stem = f"{names[path]}-{version}"
        if all(
            part.startswith(stem) for part, _ in known[path].scan.parts
        ):  # else it was staged under another name
            found.scans[path] = known[path].scan
    fresh = [path for path in files.versions if path not in found.scans]
    with ThreadPoolExecutor(16) as pool:
        inspected = list(
            pool.map(partial(inspect_file, FORMATS[format_name], files.filesystem), fresh)
        )
    for path, result in zip(fresh, inspected, strict=True):
        if result is None:
            found.unstaged.append(path)
        elif isinstance(result, str):
            found.broken[path] = result
        else:
            found.scans[path], found.columns[path] = result
    if found.versions.keys() <= found.broken.keys():
        raise unreadable(found)
    return found


def inspect_file(
    format_: Format, filesystem: fs.FileSystem, path: str
) -> tuple[Scan, pa.Schema] | str | None:
    """Return a file's rows and columns, the reason why it cannot be read, or None if it must be
    staged.
    """
    if format_.inspect is None:
        return None
    try:
        return format_.inspect(filesystem, path)
    except (pa.ArrowException, OSError, EOFError, ValueError) as error:
        return one_line(error)


def one_line(error: Exception) -> str:
    """Give an error in one line, with its type unless reading and writing usually raise it."""
    text = redact(next(iter(str(error).splitlines()), ""))
    usual = text and isinstance(error, pa.ArrowException | OSError | EOFError | ValueError)
    return text if usual else f"{type(error).__name__}: {text}"


def sample(found: Inspection, paths: list[str]) -> Iterator[tuple[Block | None, dict[str, Shape]]]:
    """Yield the first records of files that are not staged, and the shapes of their columns; None
    of unreadable ones.

    Raises:
        UserError: where no file of the input can be read.
    """
    filesystem = found.found.filesystem
    failed: dict[str, str] = {}
    for path in paths:
        reading = Reading(filesystem, path, found.options)
        try:
            yield (
                next(FORMATS[found.format].blocks(reading), Block(pa.table({}), [])),
                reading.shapes,
            )
        except (pa.ArrowException, OSError, EOFError, ValueError) as error:
            failed[path] = one_line(error)
            yield None, {}
    if found.versions.keys() <= failed.keys() | found.broken.keys():
        found.broken |= failed
        raise unreadable(found)


def unreadable(found: Inspection) -> UserError:
    """Make the error of an input none of whose files can be read; it names the first."""
    path, reason = next(iter(found.broken.items()))
    return UserError(f"input '{found.source}' cannot be read: {path}: {reason}")
