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
from pipelines.storage import redact_credentials

_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


def find_files(source: str) -> tuple[fs.FileSystem, dict[str, str], str]:
    """Find the data files of `source`: a file, a folder, a glob, or one of these as a URI.

    Returns the file system, each file's path with its version (sorted), and the folder that they lie in. Raises
    UserError if there are no files or several formats.
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
    files = {info.path: _version(info) for info in found if file_format(info.path)}
    if not files:
        known = ", ".join(suffix for each in FORMATS.values() for suffix in each.suffixes if not suffix.endswith(".gz"))
        raise UserError(
            f"input {redact_credentials(source)!r} holds no data file; known are {known} (text also as .gz)"
        )
    formats = {file_format(file) for file in files}
    if len(formats) > 1:
        raise UserError(
            f"input {redact_credentials(source)!r} mixes {', '.join(sorted(map(str, formats)))} files; "
            "choose some with a glob"
        )
    return filesystem, {path: files[path] for path in sorted(files, key=partial(file_slug, base=base))}, base


def look_up(source: str) -> tuple[fs.FileSystem, str, fs.FileInfo]:
    """Return an input's file system, its path there, and what that is; UserError if it is missing and no glob."""
    if "://" not in source:
        filesystem, path = fs.LocalFileSystem(), str(Path(source).expanduser().absolute())
    else:
        try:
            filesystem, path = fs.FileSystem.from_uri(source)
        except pa.ArrowInvalid as error:
            raise UserError(
                f"input {redact_credentials(source)!r} is not a location that can be read: {error}"
            ) from error
    info = filesystem.get_file_info(path)
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


def _version(info: fs.FileInfo) -> str:
    return hashlib.sha256(f"{info.size} {info.mtime_ns}".encode()).hexdigest()[:8]


def _walk(filesystem: fs.FileSystem, folder: str) -> list[fs.FileInfo]:
    """List the files below `folder`, without files and folders whose names begin with a dot or an underscore."""
    infos = filesystem.get_file_info(fs.FileSelector(folder, recursive=True))
    below = len(folder.rstrip("/")) + 1
    return [info for info in infos if info.is_file and not re.search(r"(^|/)[._]", info.path[below:])]
