"""Names of parts: any path of an input file as a name that all file systems and readers take."""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

LONGEST_NAME = 150
"""The most characters of a file's name; a part's, with version, rows and ending, has 200."""
_LONGEST_FORMER_NAME = 209
"""What disks took: 255 bytes with version, rows and ending, and what a temporary name adds."""
_DIGEST_CHARACTERS = 16
_LIKE_A_DIGEST = re.compile(r"-[0-9a-f]{16}$")
_LONGEST_FIRST_NAME = 132
"""LONGEST_NAME without what `shared_name` adds."""
_SHARED = re.compile(r".+-and-\d+-more-[0-9a-f]{8}-\d{9,}-\d{9,}$")
_SHARD = re.compile(r"(?P<file>.+)-(?P<version>[0-9a-f]{8})-(?P<start>\d{9,})-(?P<stop>\d{9,})")


def portable_name(path: str) -> str:
    """Turn a path below the input's folder into a name of lower-case letters, digits and `.-=`.

    It begins with a letter or digit and has at most LONGEST_NAME characters. No two paths have the
    same name: one that is not its own name has a digest of the path at its end, and so has one that
    looks as if it had such a digest. Names are in lower case, since two that differ in case alone
    are one file on some file systems.
    """
    name = re.sub(r"[^A-Za-z0-9.=-]", "-", path).lower()
    if not name[:1].isalnum():
        name = f"f{name}"
    if name == path and len(name) <= LONGEST_NAME and not _LIKE_A_DIGEST.search(name):
        return name
    digest = _digest(path)[:_DIGEST_CHARACTERS]
    stem = name[: LONGEST_NAME - 1 - _DIGEST_CHARACTERS]
    return f"{stem}-{digest}"


def former_name(path: str) -> str:
    """Turn a path into its name in outputs from before parts had a folder of their own."""
    name = re.sub(r"[^A-Za-z0-9._=-]", "_", path)
    if name == path:
        return name
    return f"{name}-{_digest(path)[:8]}"


def first_portable_name(path: str) -> str:
    """Turn a path into its name in such an output: the former one, if readers and disks take it."""
    name = former_name(path)
    is_skipped = name[:1] in "._"
    if is_skipped or len(name) > _LONGEST_FORMER_NAME:
        return portable_name(path)
    return name


def _digest(path: str) -> str:
    return hashlib.sha256(path.encode("utf-8", "surrogatepass")).hexdigest()


def shard_name(file: str, version: str, start: int, stop: int) -> str:
    """Return the stem of a part's name: its file's name and version, and the range of its rows."""
    return f"{file}-{version}-{start:09d}-{stop:09d}"


def shared_name(first: str, files: int) -> str:
    """Return what stands for the file in the name of a shard that several files share.

    `first`: the name of the first of them; `files`: how many they are.
    """
    return f"{first[:_LONGEST_FIRST_NAME]}-and-{files - 1}-more"


def is_shared(name: str) -> bool:
    """Tell whether a shard's name looks like that of several files; one file's may, too."""
    return _SHARED.match(name) is not None


class ShardName(NamedTuple):
    """What the name of a shard says."""

    file: str
    version: str
    start: int
    stop: int


def without_rows(name: str) -> str:
    """Return what of a shard's name its subshards have, too: the file and its version."""
    return name.rsplit("-", 2)[0]


def split_shard_name(name: str) -> ShardName | None:
    """Return what a shard's name says; None for a name that `shard_name` has not made."""
    match = _SHARD.fullmatch(name)
    if match is None:
        return None
    return ShardName(match["file"], match["version"], int(match["start"]), int(match["stop"]))
