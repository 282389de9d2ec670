"""Names of parts: from any path of an input file to a name that every file system and every reader
takes.
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

LONGEST_NAME = 150
"""The most characters of a file's name; with its version, its rows and the ending a part has at
most 200.
"""
_LONGEST_FORMER_NAME = 209
"""What disks took: 255 bytes with the version, the rows, the ending, and what a temporary name
adds.
"""
_DIGEST_CHARACTERS = 16
_LIKE_A_DIGEST = re.compile(r"-[0-9a-f]{16}$")
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
    digest = hashlib.sha256(path.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST_CHARACTERS]
    return f"{name[: LONGEST_NAME - 1 - _DIGEST_CHARACTERS]}-{digest}"


def former_name(path: str) -> str:
    """Turn a path into its name in outputs that were begun before parts had a folder of their
    own.
    """
    name = re.sub(r"[^A-Za-z0-9._=-]", "_", path)
    if name == path:
        return name
    return f"{name}-{hashlib.sha256(path.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def first_portable_name(path: str) -> str:
    """Turn a path into its name in such an output: the former one, but where readers skip it, or it
    was too long.
    """
    name = former_name(path)
    return (
        name if name[:1] not in "._" and len(name) <= _LONGEST_FORMER_NAME else portable_name(path)
    )


def shard_name(file: str, version: str, start: int, stop: int) -> str:
    """Return the stem of a part's name: its file's name and version, and the range of its rows
    there.
    """
    return f"{file}-{version}-{start:09d}-{stop:09d}"


class ShardName(NamedTuple):
    """What the name of a shard says."""

    file: str
    version: str
    start: int
    stop: int


def split_shard_name(name: str) -> ShardName | None:
    """Return what `shard_name` was made from; None for a name that it has not made."""
    found = _SHARD.fullmatch(name)
    return (
        ShardName(found["file"], found["version"], int(found["start"]), int(found["stop"]))
        if found
        else None
    )
