"""Listings: the files below a folder or of a glob, on disk or in object storage, each real file
once.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache

from pyarrow import fs

from pipelines.input.formats import file_format
from pipelines.input.tables import TABLE_MARKS, is_table_metadata
from pipelines.storage import can_read_empty_parts, has_empty_part

RECORD = "_run.json"
"""The record of an output (output/record.py)."""
WILDCARD = re.compile(r"[*?\[]")
_NO_DATA_ENDINGS = (
    *(
        ".md",
        ".rst",
        ".tex",
        ".py",
        ".sh",
        ".sql",
        ".yaml",
        ".yml",
        ".toml",
        ".ini",
        ".cfg",
        ".lock",
        ".log",
    ),
    *(
        ".png",
        ".jpg",
        ".jpeg",
        ".gif",
        ".svg",
        ".css",
        ".js",
        ".crc",
        ".md5",
        ".sha256",
        ".tmp",
        ".part",
    ),
)
_NO_DATA_NAMES = ("license", "licence", "readme", "notice", "changelog", "makefile", "dockerfile")
"""Files that nobody takes for data; all others that are not read are named."""


@dataclass(frozen=True)
class Entry:
    """A file in a listing."""

    path: str
    size: int
    changed: int | str | None
    """Its modification time in ns; of the hub, a digest of its content."""


@dataclass
class Listing:
    """What lies below a folder, or matches a pattern."""

    entries: list[Entry] = field(default_factory=list)
    marks: set[str] = field(default_factory=set)
    """What tells a table or an output from other folders: hidden folders and files, and the
    metadata of Iceberg.
    """
    broken: dict[str, str] = field(default_factory=dict)
    """Paths that cannot be read, with the reason."""
    again: list[str] = field(default_factory=list)
    """Links whose real files or folders are listed already."""


def entry_of(filesystem: fs.FileSystem, info: fs.FileInfo) -> Entry:
    """Make an entry of what a file system says of a file."""
    changed: int | str | None = info.mtime_ns
    if isinstance(filesystem, fs.PyFileSystem):  # the hub has digests in place of times
        changed = filesystem.handler.fs.info(info.path).get("blob_id", changed)
    return Entry(info.path, info.size, changed)


def list_remote(filesystem: fs.FileSystem, folder: str, pattern: str | None = None) -> Listing:
    """List the files below a folder of object storage, or those of them that match a pattern."""
    listing = Listing()
    for info in filesystem.get_file_info(
        fs.FileSelector(folder, recursive=True, allow_not_found=True)
    ):
        if not info.is_file:
            continue
        hidden = _hidden_path(info.path, folder)
        if hidden is not None:
            listing.marks.add(hidden)
        elif is_table_metadata(info.path):
            listing.marks.add(info.path)
        wanted = hidden is None if pattern is None else _matches(info.path, pattern)
        if wanted and has_empty_part(filesystem, info.path) and not can_read_empty_parts():
            listing.broken[info.path] = (
                "its key has an empty part (//), which Arrow does not open: pip install "
                "'modernbert-ray[s3]'"
            )
        elif wanted:
            listing.entries.append(entry_of(filesystem, info))
    return listing


def list_local(folder: str, hides: Callable[[str, bool], bool] | None = None) -> Listing:
    """List the files below a folder, those behind links after all others, so that a real file has
    its own path.

    `hides(name, is_folder)` says what is hidden; by default what `_is_hidden` says.
    """
    hides = hides or _is_hidden
    listing = Listing()
    links: list[str] = []
    seen = {os.path.realpath(folder)}

    def walk(top: str) -> None:
        for place, folders, files in os.walk(top, onerror=unreadable):
            paths = {name: os.path.join(place, name) for name in sorted([*folders, *files])}
            hidden = {name for name in paths if hides(name, name in folders)}
            listing.marks.update(paths[name] for name in hidden)
            listing.marks.update(path for path in paths.values() if is_table_metadata(path))
            linked = {name for name in paths if os.path.islink(paths[name])} - hidden
            links.extend(paths[name] for name in linked)
            real = os.path.realpath(place)
            reals = {name: os.path.join(real, name) for name in paths.keys() - hidden - linked}
            known = {
                name for name in reals if reals[name] in seen
            }  # where a link leads to a folder around another's
            listing.again += sorted(paths[name] for name in known)
            seen.update(
                real for name, real in reals.items() if name in folders or file_format(name)
            )
            folders[:] = sorted((set(folders) & reals.keys()) - known)
            for name in sorted((set(files) & reals.keys()) - known):
                _add_local(listing, paths[name])

    def unreadable(error: OSError) -> None:
        listing.broken[printable(str(error.filename))] = str(error.strerror)

    walk(folder)
    while links:
        round_of_links, links[:] = sorted(links), []
        for path in round_of_links:
            _follow(listing, path, seen, walk)
    return listing


def _follow(listing: Listing, path: str, seen: set[str], walk: Callable[[str], None]) -> None:
    """List what a link leads to, unless that is listed already."""
    real = os.path.realpath(path)
    if real in seen:
        listing.again.append(path)
        return
    if os.path.isdir(path):
        seen.add(real)
        walk(path)
        return
    if file_format(path) and os.path.exists(path):
        seen.add(real)
    _add_local(listing, path)


def _add_local(listing: Listing, path: str) -> None:
    """Add a file; one that is no file, or whose name no other library can open, is broken."""
    try:
        path.encode()
    except UnicodeEncodeError:
        if not may_be_data(path):
            return
        listing.broken[printable(path)] = "its name is not UTF-8; rename it"
        return
    try:
        status = os.stat(path)
    except OSError as error:
        if may_be_data(path):
            dangling = os.path.islink(path)
            listing.broken[path] = (
                f"is a link to {os.readlink(path)}, which cannot be read"
                if dangling
                else str(error)
            )
        return
    if os.path.isfile(path):
        listing.entries.append(Entry(path, status.st_size, status.st_mtime_ns))


def list_glob(filesystem: fs.FileSystem, base: str, pattern: str) -> Listing:
    """List the files that match a pattern: `*` within a name, `**` for any folders, `?`, `[…]`."""
    if not isinstance(filesystem, fs.LocalFileSystem):
        return list_remote(filesystem, base, pattern)
    listing = Listing()
    seen = set[str]()
    segments = pattern.split("/")
    if "**" in segments:
        found = _match_deep(listing, segments)
    else:
        found = [path for path in glob.glob(pattern) if not os.path.isdir(path)]

    def by_directness(path: str) -> tuple[bool, int, str]:
        return path != os.path.realpath(path), path.count("/"), path

    for path in sorted(found, key=by_directness):
        real = os.path.realpath(path)
        if real in seen:
            listing.again.append(path)
            continue
        if file_format(path) and os.path.exists(path):
            seen.add(real)
        _add_local(listing, path)
    for folder in folders_of(listing.entries, base):
        marks = [f"{folder}/{name}" for name in (RECORD, *TABLE_MARKS)]
        listing.marks.update(mark for mark in marks if os.path.exists(mark))
        listing.marks.update(
            filter(is_table_metadata, glob.glob(f"{glob.escape(folder)}/metadata/*.json"))
        )
    return listing


def _match_deep(listing: Listing, segments: list[str]) -> list[str]:
    """Return the files that match a pattern with `**`; glob.glob would follow links in circles."""
    deep = segments.index("**")
    below = "/".join(segments[deep:])
    names_dots = any(segment.startswith(".") for segment in segments[deep:])

    def hides(name: str, _: bool) -> bool:
        return name.startswith(".") and not names_dots

    found: list[str] = []
    for top in glob.glob("/".join(segments[:deep]) or "/"):
        if not os.path.isdir(top):
            continue
        listed = list_local(top, hides)
        start = len(top.rstrip("/")) + 1
        found += [entry.path for entry in listed.entries if _matches(entry.path[start:], below)]
        listing.again += [path for path in listed.again if _matches(path[start:], below)]
        listing.broken |= {
            path: why for path, why in listed.broken.items() if _matches(path[start:], below)
        }
    return found


def _matches(path: str, pattern: str) -> bool:
    """Tell whether a path matches a pattern as on disk (glob.glob), where `fnmatch` would let `*`
    match a slash.
    """
    return _glob_expression(pattern).fullmatch(path) is not None


@cache
def _glob_expression(pattern: str) -> re.Pattern[str]:
    expression = ""
    segments = pattern.split("/")
    for number, segment in enumerate(segments):
        last = number == len(segments) - 1
        if segment == "**":
            expression += r"(?:(?:[^/.][^/]*)?/)*" + (r"[^/.][^/]*" if last else "")
            continue
        expression += _segment_expression(segment) + ("" if last else "/")
    return re.compile(expression, re.DOTALL)


def _segment_expression(segment: str) -> str:
    """Translate a name with wildcards; these match no dot at its beginning."""
    expression = r"(?!\.)" if segment[:1] in ("*", "?", "[") else ""
    at = 0
    while at < len(segment):
        sign = segment[at]
        closing = segment.find("]", at + 2) if sign == "[" else -1
        if sign == "*":
            expression += "[^/]*"
        elif sign == "?":
            expression += "[^/]"
        elif closing > 0:
            inside = segment[at + 1 : closing].replace("\\", r"\\").replace("[", r"\[")
            if inside[0] == "!":
                inside = "^" + inside[1:]
            else:
                inside = inside.replace("^", r"\^", 1)
            expression += f"(?!/)[{inside}]"
            at = closing
        else:
            expression += re.escape(sign)
        at += 1
    return expression


def _is_hidden(name: str, is_folder: bool) -> bool:
    """Tell whether a file or folder is hidden: its name begins with a dot, or with an underscore.

    A folder _key=value is one of a hive table.
    """
    return name.startswith(".") or (name.startswith("_") and not (is_folder and "=" in name))


def _hidden_path(path: str, base: str) -> str | None:
    """Return the outermost hidden folder on the way from the base to a file, or the file if it is
    hidden itself.
    """
    *folders, file = path[len(base) + 1 :].split("/")
    for depth, folder in enumerate(folders, start=1):
        if _is_hidden(folder, is_folder=True):
            return "/".join([base, *folders[:depth]])
    return path if _is_hidden(file, is_folder=False) else None


def folders_of(entries: Iterable[Entry], base: str) -> set[str]:
    """Return the folders below the base that hold files, and those between them and the base."""
    folders = set[str]()
    for entry in entries:
        folder = entry.path.rpartition("/")[0]
        while len(folder) > len(base) and folder not in folders:
            folders.add(folder)
            folder = folder.rpartition("/")[0]
    return folders


def may_be_data(path: str) -> bool:
    """Tell whether a file may hold data, by its name: what is not known to hold none may."""
    name = path.rpartition("/")[2].lower()
    return not name.endswith(_NO_DATA_ENDINGS) and name.partition(".")[0] not in _NO_DATA_NAMES


def printable(path: str) -> str:
    """Return a path with its bytes that are not UTF-8 escaped, so that it can be printed and
    stored.
    """
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
