"""Tables in folders, whose log says which of their rows count: Delta, Iceberg, Hudi, Lance."""

from __future__ import annotations

from collections.abc import Iterable

from pyarrow import fs

TABLE_MARKS = {"_delta_log": "Delta", ".hoodie": "Hudi", "_versions": "Lance"}
"""The hidden folders by which tables are recognised; Iceberg has `metadata/*.metadata.json`."""


def table_around(filesystem: fs.FileSystem, folder: str) -> tuple[str, str] | None:
    """Return the kind and the folder of the table that `folder` is or lies in; None for no table.

    The parts of a table are its folders of partitions (key=value), and `data`, where Iceberg and
    Lance have files.
    """
    while folder:
        kind = _kind(filesystem, folder)
        if kind is not None:
            return kind, folder
        above, _, name = folder.rpartition("/")
        if "=" not in name and name != "data":
            return None
        folder = above
    return None


def table_among(landmarks: Iterable[str]) -> tuple[str, str] | None:
    """Return the kind and the folder of a table by the landmarks of a listing (listing.py)."""
    for path in sorted(landmarks):
        folder, _, name = path.rpartition("/")
        if name in TABLE_MARKS:
            return TABLE_MARKS[name], folder
        if is_table_metadata(path):
            return "Iceberg", folder.rpartition("/")[0]
    return None


def is_table_metadata(path: str) -> bool:
    """Tell whether a file is the metadata of an Iceberg table."""
    folder = path.rpartition("/")[0]
    return path.endswith(".metadata.json") and folder.endswith("/metadata")


def _kind(filesystem: fs.FileSystem, folder: str) -> str | None:
    paths = [f"{folder}/{name}" for name in (*TABLE_MARKS, "metadata")]
    try:
        for info in filesystem.get_file_info(paths):
            if info.type != fs.FileType.Directory:
                continue
            if info.base_name in TABLE_MARKS:
                return TABLE_MARKS[info.base_name]
            if _has_iceberg_metadata(filesystem, info.path):
                return "Iceberg"
    except OSError:  # a folder above the input may be closed to us
        return None
    return None


def _has_iceberg_metadata(filesystem: fs.FileSystem, folder: str) -> bool:
    infos = filesystem.get_file_info(fs.FileSelector(folder))
    return any(is_table_metadata(info.path) for info in infos)
