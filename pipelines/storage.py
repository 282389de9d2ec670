"""Folders of files, local or in object storage: list, read, remove, and write whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pyarrow as pa
from pyarrow import fs

from pipelines.errors import UserError

_OBJECT_STORES = ("s3", "gcs", "abfs")


@dataclass(frozen=True)
class Folder:
    """A folder, given by its absolute path or by a URI of object storage (s3://, gs://, abfs://)."""

    location: str

    @classmethod
    def at(cls, location: str) -> Folder:
        """Make the folder that a user names; UserError if nothing can be written there atomically."""
        if "://" not in location:
            return cls(str(Path(location).expanduser().absolute()))
        filesystem, path = open_location(location)
        if filesystem.type_name == "local":
            return cls(path)
        if filesystem.type_name not in _OBJECT_STORES:
            raise UserError(f"{redact_credentials(location)!r} must be a folder, or begin with s3://, gs:// or abfs://")
        return cls(location)

    def __str__(self) -> str:
        return redact_credentials(self.location)

    @property
    def is_local(self) -> bool:
        """Whether the folder is on this machine or mounted here."""
        return "://" not in self.location

    @property
    def filesystem_and_path(self) -> tuple[fs.FileSystem, str]:
        """The folder's Arrow file system, and its path there."""
        return resolve_filesystem(self.location)

    def files(self, below: str = "") -> dict[str, fs.FileInfo]:
        """List the files of the folder, or of the one `below` it, by name; an empty dictionary if it does not exist."""
        filesystem, path = self.filesystem_and_path
        infos = filesystem.get_file_info(fs.FileSelector(f"{path}/{below}".rstrip("/"), allow_not_found=True))
        return {info.base_name: info for info in infos}

    def read(self, name: str) -> bytes:
        """Read a file; FileNotFoundError if it is missing."""
        filesystem, path = self.filesystem_and_path
        with filesystem.open_input_file(f"{path}/{name}") as stream:
            return stream.read()

    def write_atomic(self, name: str, data: bytes | pa.Buffer) -> None:
        """Write a file so that others see the old or the new content, never a part, whenever this process ends.

        In object storage that is what one put does. On disk it takes a temporary name, and a sync of file and folder.
        """
        filesystem, path = self.filesystem_and_path
        if not self.is_local:
            stream = filesystem.open_output_stream(
                f"{path}/{name}"
            )  # leaving a `with` by an error would finish the put
            stream.write(data)
            stream.close()
            return
        final = Path(path, name)
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = final.with_name(f".{final.name}.{os.getpid()}")
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, final)
        except OSError:
            temporary.unlink(missing_ok=True)  # a full disk needs its room
            raise
        folder = os.open(final.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        filesystem, path = self.filesystem_and_path
        with suppress(FileNotFoundError):
            filesystem.delete_file(f"{path}/{name}")


def redact_credentials(location: str) -> str:
    """Return `location` without the credentials that a URI may hold, for messages and records."""
    if "://" not in location:
        return location
    parts = urlsplit(location)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


@lru_cache(maxsize=16)
def resolve_filesystem(location: str) -> tuple[fs.FileSystem, str]:
    """Return the Arrow file system of a path or URI, and the path there."""
    filesystem, path = open_location(location)
    return filesystem, path.rstrip("/")


def open_location(location: str) -> tuple[fs.FileSystem, str]:
    """Return the Arrow file system of a path or URI, and the path there; UserError for a URI that means nothing.

    hf://datasets/… and the like are read through huggingface_hub.
    """
    if "://" not in location:
        return fs.LocalFileSystem(), location
    if location.startswith("hf://"):
        from huggingface_hub import HfFileSystem

        return fs.PyFileSystem(fs.FSSpecHandler(HfFileSystem())), location.removeprefix("hf://").rstrip("/")
    try:
        return fs.FileSystem.from_uri(location)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{redact_credentials(location)!r} is not a location that can be used: {error}") from error
