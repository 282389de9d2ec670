"""The parts of an output: their names, and which of them are there."""

from __future__ import annotations

from pyarrow import fs

from pipelines.input.names import split_shard_name
from pipelines.storage import Folder

ENDING = ".parquet"


def part_path(parts: str, shard: str) -> str:
    """Return the path of a shard's part in an output; `parts` is the folder there (RunRecord)."""
    return f"{parts}/{shard}{ENDING}" if parts else f"{shard}{ENDING}"


def committed(folder: Folder, parts: str) -> dict[str, fs.FileInfo]:
    """Return the shards whose parts are in an output, by name, from one listing.

    Files whose names are not those of parts are passed over.
    """
    shards: dict[str, fs.FileInfo] = {}
    for file, info in folder.files(parts).items():
        name = file.removesuffix(ENDING)
        if file.endswith(ENDING) and split_shard_name(name):
            shards[name] = info
    return shards


def foreign_files(folder: Folder, parts: str) -> list[str]:
    """Return the names of data files beside the parts: whoever reads these reads them, too."""
    foreign: list[str] = []
    for file in folder.files(parts):
        is_read = file.endswith(ENDING) and file[0] not in "._"
        if is_read and not split_shard_name(file.removesuffix(ENDING)):
            foreign.append(file)
    return sorted(foreign)
