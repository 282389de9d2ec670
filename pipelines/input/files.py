"""The files of an input: a folder, a glob or a URI, each real file once, with its version."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
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
    utf8_path,
)
from pipelines.input.snapshots import Snapshot, take_snapshot
from pipelines.input.tables import table_among, table_around
from pipelines.input.text import COMPRESSIONS
from pipelines.storage import Folder, Location, file_info, has_empty_part, open_input, redact

_OF_DATASETS = ("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json")
"""What datasets and its hub write beside the data."""


_CONVERT = {
    (".avro",): "Avro is not read: convert it to Parquet",
    (".tar", ".tar.gz", ".tgz"): "WebDataset (.tar) is not read: unpack it, and write its texts as "
    "Parquet, JSON lines or .txt",
}
"""What to do with files of data, by their endings, that hold data in no format that is read."""


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
    snapshot: Snapshot | None = None
    """For a table, what its log says."""

    def name(self, path: str) -> str:
        """Return a file's path below the base; a table may have files elsewhere."""
        below = self.base.rstrip("/") + "/"
        return path[len(below) :] if path.startswith(below) else path.lstrip("/")


def find_files(source: Location, output: Folder | None = None) -> InputFiles:
    """Find the data files of `source`: a file, a folder, a glob, a table, or one of these as a URI.

    Hidden files and folders are passed over: their names begin with a dot or an underscore;
    `_key=value` of hive does not count. So are the outputs of jobs below the folder, which have a
    record, and `output`, that of this job.

    Raises:
        UserError: if there are no files or several formats, for a folder that holds the output, and
            for files of a table whose log does not lie in the folder.
    """
    filesystem, path, info = look_up(source)
    try:
        return _find_files(source, output, filesystem, path, info)
    except OSError as error:
        raise _cannot_be_read(source, error) from error


def _find_files(
    source: Location, output: Folder | None, filesystem: fs.FileSystem, path: str, info: fs.FileInfo
) -> InputFiles:
    base = _base(path, info)
    table = table_around(filesystem, base)
    if info.type == fs.FileType.Directory and table is not None and table[1] == base:
        _refuse_output_within(source, base, output)
        return _files_of_table(source, table[0], filesystem, base)
    listing = _list(filesystem, path, info)
    # The files of a table may be deleted or superseded, which its log alone says.
    table = table or table_among(listing.landmarks)
    if table is not None:
        kind, folder = table
        raise UserError(
            f"input '{source}' holds the files of a {kind} table ({folder}), among them deleted "
            "and superseded rows; give the folder of the table itself"
        )

    files = InputFiles(filesystem, base, {}, broken=listing.broken)
    entries = _without_outputs(files, listing, source, output)
    _choose_data(files, entries)
    if listing.again:
        files.notes.append(
            f"{len(listing.again):,} paths are links to what is read already: "
            f"{_some(files, listing.again)}"
        )
    if not files.versions and not files.broken:
        raise _no_data_file(source, files)
    formats = {str(file_format(file)) for file in files.versions}
    if len(formats) > 1:
        names = ", ".join(sorted(formats))
        raise UserError(f"input '{source}' mixes {names} files; choose some with a glob")

    if info.type == fs.FileType.Directory:
        _refuse_output_within(source, base, output)
    files.splits = _splits(files, entries)
    return files


def _refuse_output_within(source: Location, base: str, output: Folder | None) -> None:
    """Raise UserError for an output in the input folder.

    Its parts would be input of the next run, and of every other reader.
    """
    if output is None:
        return
    input_folder = _real_folder(_shown(source, base))
    if _real_folder(str(output)).startswith(input_folder):
        raise UserError(
            f"output '{output}' lies in the input folder, where whatever reads the input would "
            "find it, too; name another"
        )


def _files_of_table(
    source: Location, kind: str, filesystem: fs.FileSystem, base: str
) -> InputFiles:
    """Return the files that count in the snapshot that a table has now."""
    snapshot = take_snapshot(source, kind)
    if not snapshot.versions:
        raise UserError(
            f"input '{source}' has no rows ({snapshot.location.title}): an output keeps the parts "
            "that it has until a run finds rows again; remove the output to be rid of them now"
        )
    note = f"the input is a table, read as of {snapshot.location.title}"
    return InputFiles(filesystem, base, snapshot.versions, notes=[note], snapshot=snapshot)


def _base(path: str, info: fs.FileInfo) -> str:
    """Return the folder that an input's files lie in."""
    if info.type == fs.FileType.Directory:
        return path.rstrip("/")
    before_wildcards = WILDCARD.split(path, maxsplit=1)[0]
    before = path if info.type == fs.FileType.File else before_wildcards
    return before.rpartition("/")[0]


def _list(filesystem: fs.FileSystem, path: str, info: fs.FileInfo) -> Listing:
    """List an input's files."""
    if info.type == fs.FileType.File:
        return Listing([entry_of(filesystem, info)])
    base = _base(path, info)
    if info.type != fs.FileType.Directory:
        return list_glob(filesystem, base, path)
    if isinstance(filesystem, fs.LocalFileSystem):
        return list_local(base)
    return list_remote(filesystem, base)


def look_up(source: Location) -> tuple[fs.FileSystem, str, fs.FileInfo]:
    """Return an input's file system, its path there, and what that is.

    Raises UserError if it cannot be read, or is missing and not a glob.
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
        raise UserError(f"input '{source}' cannot be read: {_first_line(error)}") from error
    if info.type == fs.FileType.NotFound and not WILDCARD.search(path):
        raise UserError(f"input '{source}' does not exist")
    return filesystem, path, info


def _version(entry: Entry) -> str:
    return hashlib.sha256(f"{entry.size} {entry.changed}".encode()).hexdigest()[:8]


def current_version(filesystem: fs.FileSystem, path: str) -> str | None:
    """Return the version of a file as it is now, None if it is gone."""
    info = file_info(filesystem, path)
    return _version(entry_of(filesystem, info)) if info.is_file else None


def _cannot_be_read(source: Location, error: OSError) -> UserError:
    reason = redact(_first_line(error) or type(error).__name__)
    return UserError(f"input '{source}' cannot be read: {reason}")


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else ""


def _real_folder(location: str) -> str:
    """Return a folder by its real path where it is on this machine, with a slash at its end.

    One that begins with another one lies in it.
    """
    if "://" not in location:
        location = os.path.realpath(location)
    return location.rstrip("/") + "/"


def _shown(source: Location, path: str) -> str:
    """Return a path of the input's file system in the form that locations of outputs have."""
    filesystem, _ = source.filesystem_and_path
    if filesystem.type_name == "local":
        return path
    scheme = source.uri.partition("://")[0]
    return f"{scheme}://{path}"


def _without_outputs(
    files: InputFiles, listing: Listing, source: Location, output: Folder | None
) -> list[Entry]:
    """Leave out the files of this job's output, and those of other jobs' outputs below the base."""
    outputs: set[str] = set()
    for path in listing.landmarks:
        folder, _, name = path.rpartition("/")
        # The base itself may be an output: a folder of parts that is named is read.
        if name == RECORD and folder != files.base and _is_record(files.filesystem, path):
            outputs.add(folder)

    own_folder = None if output is None else _real_folder(str(output))
    output_of: dict[str, str] = {}  # by the folder of files
    for folder in folders_of(listing.entries, files.base):
        if own_folder is not None and _real_folder(_shown(source, folder)).startswith(own_folder):
            output_of[folder] = str(output)
            continue
        for other in outputs:
            if f"{folder}/".startswith(f"{other}/"):
                output_of[folder] = other
                break

    kept: list[Entry] = []
    left_out: Counter[str] = Counter()  # files by their output
    for entry in listing.entries:
        folder = entry.path.rpartition("/")[0]
        if folder in output_of:
            left_out[output_of[folder]] += 1
        else:
            kept.append(entry)
    for name in sorted(set(output_of.values())):
        files.notes.append(
            f"{left_out[name]:,} files of the output {name} are left out: outputs of jobs are not "
            "read with others"
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


def _choose_data(files: InputFiles, entries: list[Entry]) -> None:
    """Tell data files from others by their endings, and name those others that may hold data."""
    formats = {file_format(entry.path) for entry in entries}
    # In a folder of JSON files, state.json may be one of them; beside other data it is metadata.
    has_other_formats = bool(formats - {None, "json", "text"})
    # Text files are data where they are alone; beside other data they are requirements.txt.
    has_text_alone = not formats - {None, "text"}
    for entry in entries:
        name = entry.path.rpartition("/")[2]
        is_metadata = name == "dataset_infos.json" or (name in _OF_DATASETS and has_other_formats)
        if is_metadata and len(entries) > 1:
            continue
        format_ = file_format(entry.path)
        if format_ == "text" and len(entries) > 1:
            is_data = has_text_alone and may_be_data(entry.path)
        else:
            is_data = format_ is not None
        if is_data:
            files.versions[entry.path] = _version(entry)
        elif entry.size and may_be_data(entry.path):
            files.left_out.append(files.name(entry.path))


def _splits(files: InputFiles, entries: list[Entry]) -> frozenset[str]:
    """Return the splits of a DatasetDict that datasets has saved."""
    record = f"{files.base}/dataset_dict.json"
    if all(entry.path != record for entry in entries):
        return frozenset()
    try:
        with open_input(files.filesystem, record) as stream:
            content = json.loads(stream.read())
        return frozenset(str(split) for split in content["splits"])
    except (OSError, ValueError, KeyError, TypeError):
        return frozenset()


def _no_data_file(source: Location, files: InputFiles) -> UserError:
    plain_endings: list[str] = []
    for each in FORMATS.values():
        plain_endings += [ending for ending in each.suffixes if not ending.endswith(COMPRESSIONS)]
    message = (
        f"input '{source}' holds no data file; known are {', '.join(plain_endings)}, text also "
        f"with {', '.join(COMPRESSIONS)}"
    )
    if files.left_out:
        message += f"; left out are {', '.join(files.left_out[:5])}"
    for advice in conversions(files):
        message += f"; {advice}"
    for note in files.notes:
        message += f"; {note}"
    return UserError(message)


def conversions(files: InputFiles) -> list[str]:
    """Return what to do with data files that are left out, for each format that is known."""
    names = [name.lower() for name in files.left_out]
    return [
        advice
        for endings, advice in _CONVERT.items()
        if any(name.endswith(endings) for name in names)
    ]


def _some(files: InputFiles, paths: list[str]) -> str:
    names = ", ".join(utf8_path(files.name(path)) for path in paths[:5])
    return f"{names}, …" if len(paths) > 5 else names
