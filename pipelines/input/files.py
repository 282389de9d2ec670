"""The files of an input: a folder, a glob or a URI, each real file once, with its version."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field

from pyarrow import fs

from pipelines.errors import UserError
from pipelines.input.formats import FORMATS, file_format
from pipelines.input.listing import (
    RECORD,
    WILDCARD,
    Entry,
    Listing,
    entry_of,
    folders_of,
    list_glob,
    list_local,
    list_remote,
    may_be_data,
    printable,
)
from pipelines.input.tables import table_among, table_around
from pipelines.input.text import COMPRESSIONS
from pipelines.storage import Folder, Location, file_info, has_empty_part, open_input, redact

_OF_DATASETS = ("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json")
"""What datasets and its hub write beside the data."""


@dataclass
class InputFiles:
    """The files of an input, as they were found."""

    filesystem: fs.FileSystem
    base: str
    """The folder that they lie in."""
    versions: dict[str, str]
    """The version of each data file by its path."""
    left_out: list[str] = field(default_factory=list)
    """The names, below the base, of files that may hold data in a format that is not read."""
    broken: dict[str, str] = field(default_factory=dict)
    """Paths that cannot be read, with the reason: links to nothing, folders without permission."""
    notes: list[str] = field(default_factory=list)
    """Messages for the user about what is left out."""
    splits: frozenset[str] = frozenset()
    """The folders, right below the base, that are the splits of a DatasetDict of datasets."""

    def name(self, path: str) -> str:
        """Return a file's path below the base."""
        return path[len(self.base.rstrip("/")) + 1 :]


def find_files(source: Location, output: Folder | None = None) -> InputFiles:
    """Find the data files of `source`: a file, a folder, a glob, or one of these as a URI.

    Hidden files and folders are passed over: their names begin with a dot or an underscore;
    `_key=value` of hive does not count. So are the outputs of jobs below the folder, which have a
    record, and `output`, that of this job.

    Raises:
        UserError: if there are no files or several formats, for a folder that holds the output, and
            for a table whose files cannot be read without its log.
    """
    filesystem, path, info = look_up(source)
    try:
        return _find_files(source, output, filesystem, path, info)
    except OSError as error:
        reason = redact(next(iter(str(error).splitlines()), type(error).__name__))
        raise UserError(f"input '{source}' cannot be read: {reason}") from error


def _find_files(
    source: Location, output: Folder | None, filesystem: fs.FileSystem, path: str, info: fs.FileInfo
) -> InputFiles:
    if info.type == fs.FileType.File:
        base = path.rpartition("/")[0]
        listing = Listing([entry_of(filesystem, info)])
    elif info.type == fs.FileType.Directory:
        base = path.rstrip("/")
        listing = (
            list_local(base)
            if isinstance(filesystem, fs.LocalFileSystem)
            else list_remote(filesystem, base)
        )
    else:
        base = WILDCARD.split(path, maxsplit=1)[0].rpartition("/")[0]
        listing = list_glob(filesystem, base, path)
    found = InputFiles(filesystem, base, {}, broken=listing.broken)
    table = table_around(filesystem, base) or table_among(listing.marks)
    if table:
        raise _is_table(source, *table)
    entries = _without_outputs(found, listing, source, output)
    _choose_data(found, entries)
    if listing.again:
        found.notes.append(
            f"{len(listing.again):,} paths are links to what is read already: "
            f"{_some(found, listing.again)}"
        )
    if not found.versions and not found.broken:
        raise _no_data_file(source, found)
    formats = {file_format(file) for file in found.versions}
    if len(formats) > 1:
        raise UserError(
            f"input '{source}' mixes {', '.join(sorted(map(str, formats)))} files; choose some "
            "with a glob"
        )
    is_folder = info.type == fs.FileType.Directory
    if is_folder and output is not None and _is_within(str(output), _shown(source, base)):
        raise UserError(
            f"output '{output}' lies in the input folder, where whatever reads the input would "
            "find it, too; name "
            f"another"
        )
    found.splits = _splits(found, entries)
    return found


def look_up(source: Location) -> tuple[fs.FileSystem, str, fs.FileInfo]:
    """Return an input's file system, its path there, and what that is; UserError if it is missing
    and no glob.
    """
    filesystem, path = source.filesystem_and_path
    if has_empty_part(filesystem, path):
        raise UserError(
            f"input '{source}' has an empty part (//) in its key; give the folder above it, which "
            "is read"
        )
    try:
        info = filesystem.get_file_info(path)
    except (OSError, ValueError) as error:
        raise UserError(
            f"input '{source}' cannot be read: {next(iter(str(error).splitlines()), '')}"
        ) from error
    if info.type == fs.FileType.NotFound and not WILDCARD.search(path):
        raise UserError(f"input '{source}' does not exist")
    return filesystem, path, info


def _version(entry: Entry) -> str:
    return hashlib.sha256(f"{entry.size} {entry.changed}".encode()).hexdigest()[:8]


def current_version(filesystem: fs.FileSystem, path: str) -> str | None:
    """Return the version of a file as it is now, None if it is gone."""
    info = file_info(filesystem, path)
    return _version(entry_of(filesystem, info)) if info.is_file else None


def _is_within(inner: str, outer: str) -> bool:
    """Tell whether a location lies in another one, by real paths where both are on this machine."""
    if "://" not in inner and "://" not in outer:
        inner, outer = os.path.realpath(inner), os.path.realpath(outer)
    return f"{inner.rstrip('/')}/".startswith(f"{outer.rstrip('/')}/")


def _shown(source: Location, path: str) -> str:
    """Return a path of the input's file system in the form that locations of outputs have."""
    filesystem, _ = source.filesystem_and_path
    return path if filesystem.type_name == "local" else f"{source.uri.partition('://')[0]}://{path}"


def _is_table(source: Location, kind: str, folder: str) -> UserError:
    return UserError(
        f"input '{source}' holds the files of a {kind} table ({folder}), among them deleted and "
        "superseded rows; write "
        f"a snapshot of the table as Parquet, and give that"
    )


def _without_outputs(
    found: InputFiles, listing: Listing, source: Location, output: Folder | None
) -> list[Entry]:
    """Leave out the files of this job's output, and those of other jobs' outputs below the base."""
    records = [path for path in listing.marks if path.endswith(f"/{RECORD}")]
    outputs = {
        path.rpartition("/")[0] for path in records if _is_record(found.filesystem, path)
    } - {found.base}
    inside = dict[str, str]()
    for folder in folders_of(listing.entries, found.base):
        other = next((each for each in outputs if f"{folder}/".startswith(f"{each}/")), None)
        if output is not None and _is_within(_shown(source, folder), str(output)):
            inside[folder] = str(output)
        elif other is not None:
            inside[folder] = other
    kept = [entry for entry in listing.entries if entry.path.rpartition("/")[0] not in inside]
    for each in sorted(set(inside.values())):
        count = sum(inside.get(entry.path.rpartition("/")[0]) == each for entry in listing.entries)
        found.notes.append(
            f"{count:,} files of the output {each} are left out: outputs of jobs are not read with "
            "others"
        )
    return kept


def _is_record(filesystem: fs.FileSystem, path: str) -> bool:
    """Tell whether a file is the record of a corpus job's output."""
    try:
        with open_input(filesystem, path) as stream:
            content = json.loads(stream.read())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and {"fingerprint", "attempts"} <= content.keys()


def _choose_data(found: InputFiles, entries: list[Entry]) -> None:
    """Tell data files from others by their endings, and name those of the others that may hold
    data.
    """
    data = [entry for entry in entries if file_format(entry.path)]
    other_formats = any(file_format(entry.path) != "json" for entry in data)
    for entry in entries:
        name = entry.path.rpartition("/")[2]
        if len(entries) > 1 and (
            name == "dataset_infos.json" or (name in _OF_DATASETS and other_formats)
        ):
            continue
        if file_format(entry.path):
            found.versions[entry.path] = _version(entry)
        elif entry.size and may_be_data(entry.path):
            found.left_out.append(found.name(entry.path))


def _splits(found: InputFiles, entries: list[Entry]) -> frozenset[str]:
    """Return the splits of a DatasetDict that datasets has saved."""
    record = f"{found.base}/dataset_dict.json"
    if all(entry.path != record for entry in entries):
        return frozenset()
    try:
        with open_input(found.filesystem, record) as stream:
            return frozenset(map(str, json.loads(stream.read())["splits"]))
    except (OSError, ValueError, KeyError, TypeError):
        return frozenset()


def _no_data_file(source: Location, found: InputFiles) -> UserError:
    endings = [
        s for each in FORMATS.values() for s in each.suffixes if not s.endswith(COMPRESSIONS)
    ]
    left_out = f"; left out are {', '.join(found.left_out[:5])}" if found.left_out else ""
    return UserError(
        f"input '{source}' holds no data file; known are {', '.join(endings)}, text also with "
        f"{', '.join(COMPRESSIONS)}{left_out}" + "".join(f"; {note}" for note in found.notes)
    )


def _some(found: InputFiles, paths: list[str]) -> str:
    names = [printable(found.name(path)) for path in paths[:5]]
    return ", ".join(names) + (", …" if len(paths) > len(names) else "")
