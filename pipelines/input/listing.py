"""Listings: the files below a folder or of a glob, on disk or in object storage, each once."""

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
from pipelines.storage import has_empty_part, has_s3_client

RECORD = "_run.json"
"""The record of an output (output/record.py)."""
WILDCARD = re.compile(r"[*?\[]")
_NO_DATA_ENDINGS = (
    *(".md", ".rst", ".tex", ".py", ".sh", ".sql", ".yaml", ".yml", ".toml", ".ini", ".cfg"),
    *(".lock", ".log", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".css", ".js"),
    *(".crc", ".md5", ".sha256", ".tmp", ".part"),
)
_NO_DATA_NAMES = ("license", "licence", "readme", "notice", "changelog", "makefile", "dockerfile")
"""Files that nobody takes for data; all others that are not read are named."""


@dataclass(frozen=True)
class Entry:
    """A file in a listing."""

    path: str
    size: int
    changed: int | str | None
    """Its modification time in ns, or a digest of its content from the hub."""


@dataclass
class Listing:
    """What lies below a folder, or matches a pattern."""

    entries: list[Entry] = field(default_factory=list)
    landmarks: set[str] = field(default_factory=set)
    """What may tell a table or an output from other folders: all that is hidden, and the metadata
    of Iceberg.
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
    selector = fs.FileSelector(folder, recursive=True, allow_not_found=True)
    for info in filesystem.get_file_info(selector):
        if not info.is_file:
            continue
        hidden = _hidden_path(info.path, folder)
        if hidden is not None:
            listing.landmarks.add(hidden)
        elif is_table_metadata(info.path):
            listing.landmarks.add(info.path)
        # A pattern says itself which hidden files it wants (`_glob_expression`).
        wanted = hidden is None if pattern is None else _matches(info.path, pattern)
        if not wanted:
            continue
        if has_empty_part(filesystem, info.path) and not has_s3_client():
            listing.broken[info.path] = (
                "its key has an empty part (//), which Arrow does not open: pip install "
                "'modernbert-ray[s3]'"
            )
            continue
        listing.entries.append(entry_of(filesystem, info))
    return listing


def list_local(folder: str, hides: Callable[[str, bool], bool] | None = None) -> Listing:
    """List the files below a folder, what links lead to after all others.

    So a real file has its own path. `hides(name, is_folder)` says what is hidden; by default what
    `_is_hidden` says.
    """
    walk = _Walk(hides or _is_hidden)
    walk.seen.add(os.path.realpath(folder))
    walk.list_below(folder)
    # What is behind a link may have links of its own: they make the next round.
    while walk.links:
        links = sorted(walk.links)
        walk.links.clear()
        for link in links:
            walk.follow(link)
    return walk.listing


class _Walk:
    """A walk through folders of this machine that lists each real file and folder once."""

    def __init__(self, hides: Callable[[str, bool], bool]):
        self.listing = Listing()
        self.hides = hides
        self.seen: set[str] = set()
        """The real paths of the folders and data files so far."""
        self.links: list[str] = []
        """The links that were passed and not followed yet."""

    def list_below(self, top: str) -> None:
        """List the files below a folder, but for what is behind links."""
        for place, folders, files in os.walk(top, onerror=self._note_unreadable):
            real_place = os.path.realpath(place)
            known_folders = set(folders)
            # os.walk goes on with the folders that are left in its list.
            folders.clear()
            for name in sorted([*known_folders, *files]):
                is_folder = name in known_folders
                if self._takes(name, is_folder, place, real_place):
                    if is_folder:
                        folders.append(name)
                    else:
                        _add_local(self.listing, os.path.join(place, name))

    def _takes(self, name: str, is_folder: bool, place: str, real_place: str) -> bool:
        """Tell whether a file or folder is to be listed here and now; note it where it is not."""
        path = os.path.join(place, name)
        if is_table_metadata(path):
            self.listing.landmarks.add(path)
        if self.hides(name, is_folder):
            self.listing.landmarks.add(path)
            return False
        if os.path.islink(path):
            self.links.append(path)
            return False
        real = os.path.join(real_place, name)
        if real in self.seen:  # a link has led to a folder around another one's
            self.listing.again.append(path)
            return False
        if is_folder or file_format(name):
            self.seen.add(real)
        return True

    def follow(self, link: str) -> None:
        """List what a link leads to, unless that is listed already."""
        real = os.path.realpath(link)
        if real in self.seen:
            self.listing.again.append(link)
            return
        if os.path.isdir(link):
            self.seen.add(real)
            self.list_below(link)
            return
        if file_format(link) and os.path.exists(link):
            self.seen.add(real)
        _add_local(self.listing, link)

    def _note_unreadable(self, error: OSError) -> None:
        self.listing.broken[utf8_path(str(error.filename))] = str(error.strerror)


def _add_local(listing: Listing, path: str) -> None:
    """Add a file. What may be data and cannot be opened, or whose name cannot, is broken."""
    try:
        path.encode()
    except UnicodeEncodeError:  # no other library opens it
        if may_be_data(path):
            listing.broken[utf8_path(path)] = "its name is not UTF-8; rename it"
        return
    try:
        status = os.stat(path)
    except OSError as error:
        if not may_be_data(path):
            return
        reason = str(error)
        if os.path.islink(path):
            reason = f"is a link to {os.readlink(path)}, which cannot be read"
        listing.broken[path] = reason
        return
    if os.path.isfile(path):  # not a pipe or a socket
        listing.entries.append(Entry(path, status.st_size, status.st_mtime_ns))


def list_glob(filesystem: fs.FileSystem, base: str, pattern: str) -> Listing:
    """List the files that match a pattern: `*` within a name, `**` for any folders, `?`, `[…]`."""
    if not isinstance(filesystem, fs.LocalFileSystem):
        return list_remote(filesystem, base, pattern)
    listing = Listing()
    segments = pattern.split("/")
    if "**" in segments:
        paths = _match_deep(listing, segments)
    else:
        paths = [path for path in glob.glob(pattern) if not os.path.isdir(path)]

    def by_directness(path: str) -> tuple[bool, int, str]:
        is_behind_link = path != os.path.realpath(path)
        return is_behind_link, path.count("/"), path

    # Real paths first, so that a real file has its own.
    seen: set[str] = set()
    for path in sorted(paths, key=by_directness):
        real = os.path.realpath(path)
        if real in seen:
            listing.again.append(path)
            continue
        if file_format(path) and os.path.exists(path):
            seen.add(real)
        _add_local(listing, path)

    # A pattern passes over what is hidden: what tells tables and outputs is looked up.
    for folder in folders_of(listing.entries, base):
        for name in (RECORD, *TABLE_MARKS):
            landmark = f"{folder}/{name}"
            if os.path.exists(landmark):
                listing.landmarks.add(landmark)
        metadata = glob.glob(f"{glob.escape(folder)}/metadata/*.json")
        listing.landmarks.update(filter(is_table_metadata, metadata))
    return listing


def _match_deep(listing: Listing, segments: list[str]) -> list[str]:
    """Return the files that match a pattern with `**`; glob.glob would follow links in circles."""
    depth = segments.index("**")
    tops = "/".join(segments[:depth]) or "/"
    below = "/".join(segments[depth:])
    names_dots = any(segment.startswith(".") for segment in segments[depth:])

    def hides(name: str, _: bool) -> bool:
        return name.startswith(".") and not names_dots

    matching: list[str] = []
    for top in glob.glob(tops):
        if not os.path.isdir(top):
            continue
        start = len(top.rstrip("/")) + 1  # of what is below it, in a path
        everything = list_local(top, hides)
        for entry in everything.entries:
            if _matches(entry.path[start:], below):
                matching.append(entry.path)
        for path in everything.again:
            if _matches(path[start:], below):
                listing.again.append(path)
        for path, reason in everything.broken.items():
            if _matches(path[start:], below):
                listing.broken[path] = reason
    return matching


def _matches(path: str, pattern: str) -> bool:
    """Tell whether a path matches a pattern as in glob.glob; `*` of fnmatch would match a slash."""
    return _glob_expression(pattern).fullmatch(path) is not None


@cache
def _glob_expression(pattern: str) -> re.Pattern[str]:
    *folders, last = pattern.split("/")
    visible_name = r"[^/.][^/]*"
    any_folders = rf"(?:(?:{visible_name})?/)*"
    expression = ""
    for segment in folders:
        if segment == "**":
            expression += any_folders
        else:
            expression += _segment_expression(segment) + "/"
    if last == "**":
        expression += any_folders + visible_name
    else:
        expression += _segment_expression(last)
    return re.compile(expression, re.DOTALL)


def _segment_expression(segment: str) -> str:
    """Translate a name with wildcards; these match no dot at its beginning."""
    expression = r"(?!\.)" if segment.startswith(("*", "?", "[")) else ""
    at = 0
    while at < len(segment):
        sign = segment[at]
        # A bracket right after the opening one is a sign of the set.
        closing = segment.find("]", at + 2) if sign == "[" else -1
        if sign == "*":
            expression += "[^/]*"
        elif sign == "?":
            expression += "[^/]"
        elif closing > 0:
            signs = segment[at + 1 : closing]
            signs = signs.replace("\\", r"\\").replace("[", r"\[")
            if signs[0] == "!":
                signs = "^" + signs[1:]
            else:
                signs = signs.replace("^", r"\^", 1)
            expression += f"(?!/)[{signs}]"
            at = closing
        else:
            expression += re.escape(sign)
        at += 1
    return expression


def _is_hidden(name: str, is_folder: bool) -> bool:
    """Tell whether a file or folder is hidden: its name begins with a dot or an underscore."""
    if name.startswith("."):
        return True
    is_hive_key = is_folder and "=" in name  # _key=value
    return name.startswith("_") and not is_hive_key


def _hidden_path(path: str, base: str) -> str | None:
    """Return the outermost hidden folder between the base and a file, or else the hidden file."""
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
    if name.endswith(_NO_DATA_ENDINGS):
        return False
    return name.partition(".")[0] not in _NO_DATA_NAMES


def utf8_path(path: str) -> str:
    """Return a path with its bytes that are not UTF-8 escaped, so that any file can hold it."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
