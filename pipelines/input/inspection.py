"""The files of an input and what is known of them before they are cut into shards.

An Inspection is a value: what staging reads of more files makes another one (`with_staged`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeAlias

import pyarrow as pa
from pyarrow import fs

from pipelines.errors import UserError
from pipelines.input.corpus import Corpus
from pipelines.input.files import InputFiles, conversions, find_files
from pipelines.input.formats import file_format, format_of
from pipelines.input.names import first_portable_name, former_name, portable_name
from pipelines.input.shapes import Shape
from pipelines.input.shards import Block, Format, Reading, Scan
from pipelines.input.staging import StagedFile, StageTask, stage_tasks
from pipelines.input.text import TextOptions
from pipelines.storage import Folder, Location, one_line

Columns: TypeAlias = pa.Schema | dict[str, Shape]
"""The columns of a file: their types, or what the text in them is."""
Fit: TypeAlias = tuple[str, str, pa.DataType]
"""A file, a column of it, and a type that holds each value there."""
_SHOWN_FILES = 5
_THREADS = 16  # that read footers


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """The files of an input and what is known of them."""

    source: Location
    """The input; of a table, the snapshot that is read."""
    files: InputFiles
    format: str
    options: TextOptions
    names: Mapping[str, str]
    """The name of each file in the names of its parts; files are in this order."""
    wanted: frozenset[str] | None
    """The columns that the job reads or keeps, None for all: others may have any type."""
    earlier: Corpus | None
    """The plan of an earlier run, whose columns stay as they are."""
    name_of: Callable[[str], str] = portable_name
    scans: Mapping[str, Scan] = field(default_factory=dict)
    """The rows of each file that is known."""
    columns: Mapping[str, Columns] = field(default_factory=dict)
    """The columns of files that the earlier run did not know."""
    unstaged: tuple[str, ...] = ()
    """Files that must be staged before their rows are known."""
    broken: Mapping[str, str] = field(default_factory=dict)
    """Files that cannot be read, with the reason."""
    notes: tuple[str, ...] = ()
    """Messages for the user."""
    known_fits: set[Fit] = field(default_factory=set, compare=False)
    """What was seen to fit: a cache, since values are read to tell."""

    @property
    def versions(self) -> dict[str, str]:
        """The version of each file."""
        return self.files.versions

    @property
    def has_former_names(self) -> bool:
        """Whether parts are named as in outputs that have them beside the record."""
        return self.name_of is first_portable_name

    def former_name(self, path: str) -> str:
        """Return the name that a file's parts had, where it is another now; else an empty text."""
        if not self.has_former_names:
            return ""
        former = former_name(self.files.name(path))
        return former if former != self.names[path] else ""

    def is_wanted(self, column: str) -> bool:
        """Tell whether the job reads or keeps a column."""
        return self.wanted is None or column in self.wanted

    def stage_tasks(self, path: str) -> list[StageTask]:
        """Return the tasks that stage a file."""
        stem = f"{self.names[path]}-{self.versions[path]}"
        return stage_tasks(self.source, path, self.format, stem, self.options)


def inspect_input(
    source: Location,
    options: TextOptions,
    *,
    output: Folder | None = None,
    wanted: frozenset[str] | None = None,
    texts: frozenset[str] = frozenset(),
    earlier: Corpus | None = None,
    name_of: Callable[[str], str] = portable_name,
) -> Inspection:
    """Find the files of an input, and their rows and columns where these can be read at once.

    Args:
        source: a file, a folder, a glob, or one of these as a URI.
        options: how text files are read.
        output: the output of the job, whose files are no input.
        wanted: the columns that the job reads or keeps, None for all.
        texts: those that hold its texts.
        earlier: the plan of an earlier run, whose unchanged files are not read again.
        name_of: makes the name of a file's parts from its path below the input.

    Raises:
        UserError: for an input that is missing, and where no file can be read.
    """
    files = find_files(source, output)
    names = {path: name_of(files.name(path)) for path in files.versions}
    in_order_of_names = sorted(names, key=names.__getitem__)
    files = replace(files, versions={path: files.versions[path] for path in in_order_of_names})
    if not files.versions:
        raise unreadable(source, files.broken)
    format_name = file_format(next(iter(files.versions))) or ""
    if files.snapshot is not None:
        source = files.snapshot.location
        format_name = files.snapshot.location.kind.lower()

    format_ = format_of(source, format_name)
    scans = _scans_of_earlier_run(earlier, format_, files.versions, names)
    columns: dict[str, Columns] = {}
    unstaged: list[str] = []
    broken = dict(files.broken)
    new_files = [path for path in files.versions if path not in scans]
    inspect_one = partial(inspect_file, format_, files.filesystem, wanted=wanted, texts=texts)
    with ThreadPoolExecutor(_THREADS) as pool:
        results = list(pool.map(inspect_one, new_files))
    for path, result in zip(new_files, results, strict=True):
        if result is None:
            unstaged.append(path)
        elif isinstance(result, str):
            broken[path] = result
        else:
            scans[path], columns[path] = result
    if files.versions.keys() <= broken.keys():
        raise unreadable(source, broken)
    return Inspection(
        source=source,
        files=files,
        format=format_name,
        options=options,
        names=names,
        wanted=wanted,
        earlier=earlier,
        name_of=name_of,
        scans=scans,
        columns=columns,
        unstaged=tuple(unstaged),
        broken=broken,
        notes=_notes(files),
    )


def _notes(files: InputFiles) -> tuple[str, ...]:
    if not files.left_out:
        return tuple(files.notes)
    shown = ", ".join(files.left_out[:_SHOWN_FILES])
    more = ", …" if len(files.left_out) > _SHOWN_FILES else ""
    count = len(files.left_out)
    left_out = f"{count:,} files are left out, whose format is not read: {shown}{more}"
    return (*files.notes, left_out, *conversions(files))


def _scans_of_earlier_run(
    earlier: Corpus | None, format_: Format, versions: Mapping[str, str], names: Mapping[str, str]
) -> dict[str, Scan]:
    """Return what an earlier run knows of files that have not changed since."""
    if earlier is None or earlier.format != format_.name:
        return {}
    scans: dict[str, Scan] = {}
    for file in earlier.files:
        if versions.get(file.path) != file.version:
            continue
        scan = file.scan
        if scan.parts and format_.blocks is None:
            # Up to version 0.2.0, files with huge row groups were staged, each into one part. The
            # rows and the size stay, which cut it into the same shards.
            scan = replace(scan, parts=(), group_rows=0)
        # A file that was staged under another name must be staged again.
        stem = f"{names[file.path]}-{file.version}"
        if all(part.startswith(stem) for part, _ in scan.parts):
            scans[file.path] = scan
    return scans


def inspect_file(
    format_: Format,
    filesystem: fs.FileSystem,
    path: str,
    wanted: frozenset[str] | None = None,
    texts: frozenset[str] = frozenset(),
) -> tuple[Scan, pa.Schema] | str | None:
    """Return a file's rows and columns, or why it cannot be read, or None: it must be staged."""
    if format_.inspect is None:
        return None
    try:
        return format_.inspect(filesystem, path, wanted, texts)
    except (pa.ArrowException, OSError, EOFError, ValueError) as error:
        return one_line(error)


def with_staged(inspection: Inspection, results: Mapping[str, StagedFile | str]) -> Inspection:
    """Return the inspection with what staging has read of files, or why it cannot read them."""
    scans = dict(inspection.scans)
    columns = dict(inspection.columns)
    broken = dict(inspection.broken)
    notes = list(inspection.notes)
    for path, staged in results.items():
        if isinstance(staged, str):
            broken[path] = staged
            continue
        scans[path] = Scan(staged.rows, staged.size, tuple(staged.parts))
        columns[path] = staged.schema or staged.shapes
        notes += [f"{path} {note}" for note in staged.notes]
    return replace(
        inspection,
        scans=scans,
        columns=columns,
        broken=broken,
        notes=tuple(notes),
        unstaged=tuple(path for path in inspection.unstaged if path not in results),
    )


def sample(
    inspection: Inspection, paths: Sequence[str]
) -> Iterator[tuple[Block, dict[str, Shape]]]:
    """Yield the first records of files that can be read, and the shapes of their columns.

    Raises:
        UserError: where no file of the input can be read.
    """
    failed: dict[str, str] = {}
    blocks = format_of(inspection.source, inspection.format).blocks
    for path in paths:
        assert blocks is not None  # its files are staged
        reading = Reading(inspection.files.filesystem, path, inspection.options)
        try:
            block = next(blocks(reading), Block(pa.table({}), []))
        except (pa.ArrowException, OSError, EOFError, ValueError) as error:
            failed[path] = one_line(error)
            continue
        yield block, reading.shapes
    broken = {**inspection.broken, **failed}
    if inspection.versions.keys() <= broken.keys():
        raise unreadable(inspection.source, broken)


def unreadable(source: Location, broken: Mapping[str, str]) -> UserError:
    """Make the error of an input none of whose files can be read; it names the first."""
    path, reason = next(iter(broken.items()))
    return UserError(f"input '{source}' cannot be read: {path}: {reason}")
