"""The files of an input: a folder, a glob or a URI, with a version and the hive partition values of each file."""

from __future__ import annotations

import glob
import hashlib
import re
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
from pyarrow import fs

from pipelines.errors import UserError
from pipelines.input.formats import FORMATS, file_format
from pipelines.input.text import COMPRESSIONS
from pipelines.storage import open_location, redact_credentials

_OF_DATASETS = ("dataset_info.json", "state.json", "dataset_dict.json")
"""What `save_to_disk` of datasets writes beside Arrow files."""
_DATA_ENDINGS = tuple(
    f".{ending}"
    for ending in (
        *("txt", "text", "xml", "html", "orc", "avro", "xls", "xlsx", "ods", "npy", "npz", "pkl", "pickle", "sqlite"),
        *("xz", "br", "7z", "zip", "tar", "tgz", "snappy", "lzo", "gz", "zst", "bz2", "lz4"),
    )
)
"""Endings of files that may hold data in a format that is not read."""
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


def find_files(source: str) -> tuple[fs.FileSystem, dict[str, str], str, list[str]]:
    """Find the data files of `source`: a file, a folder, a glob, or one of these as a URI.

    Returns the file system, each file's path with its version (sorted), the folder that they lie in, and the names of
    files that look like data but are left out. Raises UserError if there are no files or several formats.
    """
    filesystem, path, info = look_up(source)
    if info.type == fs.FileType.NotFound:
        base = re.split(r"[*?\[]", path, maxsplit=1)[0].rpartition("/")[0]
        if isinstance(filesystem, fs.LocalFileSystem):
            found = [info for info in filesystem.get_file_info(glob.glob(path, recursive=True)) if info.is_file]
        else:
            found = [info for info in _walk(filesystem, base) if fnmatch(info.path, path)]
    elif info.type == fs.FileType.Directory:
        base, found = path.rstrip("/"), _walk(filesystem, path)
    else:
        base, found = path.rpartition("/")[0], [info]
    arrow = any(file_format(info.path) == "ipc" for info in found)
    found = [info for info in found if not (arrow and info.base_name in _OF_DATASETS)]
    files = {info.path: _version(filesystem, info) for info in found if file_format(info.path)}
    others = [info.path for info in found if info.path not in files]
    left_out = [path[len(base) + 1 :] for path in others if path.lower().endswith(_DATA_ENDINGS)]
    if not files:
        known = ", ".join(s for each in FORMATS.values() for s in each.suffixes if not s.endswith(COMPRESSIONS))
        raise UserError(
            f"input {redact_credentials(source)!r} holds no data file; known are {known}, text also with"
            f" {', '.join(COMPRESSIONS)}" + (f"; left out are {', '.join(left_out[:5])}" if left_out else "")
        )
    formats = {file_format(file) for file in files}
    if len(formats) > 1:
        raise UserError(
            f"input {redact_credentials(source)!r} mixes {', '.join(sorted(map(str, formats)))} files; "
            "choose some with a glob"
        )
    return filesystem, {path: files[path] for path in sorted(files, key=partial(file_slug, base=base))}, base, left_out


def look_up(source: str) -> tuple[fs.FileSystem, str, fs.FileInfo]:
    """Return an input's file system, its path there, and what that is; UserError if it is missing and no glob."""
    filesystem, path = open_location(source if "://" in source else str(Path(source).expanduser().absolute()))
    try:
        info = filesystem.get_file_info(path)
    except OSError as error:
        raise UserError(f"input {redact_credentials(source)!r} cannot be read: {error}") from error
    if info.type == fs.FileType.NotFound and not re.search(r"[*?\[]", path):
        raise UserError(f"input {redact_credentials(source)!r} does not exist")
    return filesystem, path, info


def file_slug(file: str, base: str) -> str:
    """Turn a file's path below `base` into a file name; different paths have different names."""
    path = file[len(base) + 1 :]
    name = re.sub(r"[^A-Za-z0-9._=-]", "_", path)
    return name if name == path else f"{name}-{hashlib.sha256(path.encode()).hexdigest()[:8]}"


def hive_partitions(files: list[str], base: str) -> tuple[list[tuple[tuple[str, str | int | None], ...]], pa.Schema]:
    """Read the hive partition values (folders named key=value below `base`) of each file, and the columns' types.

    A column whose values are all whole numbers is int64, any other string.
    """
    found: list[dict[str, str | int | None]] = []
    for file in files:
        pairs = (part.split("=", 1) for part in file[len(base) + 1 :].split("/")[:-1] if "=" in part)
        found.append({key: None if value == _HIVE_NULL else unquote(value) for key, value in pairs})
    names = sorted({name for values in found for name in values})
    numbers = {name for name in names if all(re.fullmatch(r"-?\d{1,18}", str(v.get(name) or 0)) for v in found)}
    typed = [
        tuple((name, int(value) if name in numbers and value is not None else value) for name, value in values.items())
        for values in found
    ]
    return typed, pa.schema([(name, pa.int64() if name in numbers else pa.string()) for name in names])


def _version(filesystem: fs.FileSystem, info: fs.FileInfo) -> str:
    changed = info.mtime_ns
    if changed is None and isinstance(filesystem, fs.PyFileSystem):  # the hub has digests in place of times
        changed = filesystem.handler.fs.info(info.path).get("blob_id")
    return hashlib.sha256(f"{info.size} {changed}".encode()).hexdigest()[:8]


def _walk(filesystem: fs.FileSystem, folder: str) -> list[fs.FileInfo]:
    """List the files below `folder`, without files and folders whose names begin with a dot or an underscore."""
    infos = filesystem.get_file_info(fs.FileSelector(folder, recursive=True))
    below = len(folder.rstrip("/")) + 1
    return [info for info in infos if info.is_file and not re.search(r"(^|/)[._]", info.path[below:])]
