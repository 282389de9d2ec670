"""The file formats that a corpus can have; a new one is a file beside this, named in FORMATS."""

from __future__ import annotations

from pipelines.input.csv import CSV
from pipelines.input.ipc import IPC
from pipelines.input.json import JSON
from pipelines.input.orc import ORC
from pipelines.input.parquet import PARQUET
from pipelines.input.shards import Format
from pipelines.input.snapshots import TableLocation, table_format
from pipelines.input.txt import TXT
from pipelines.storage import Location

FORMATS: dict[str, Format] = {
    format_.name: format_ for format_ in (PARQUET, IPC, ORC, JSON, CSV, TXT)
}
"""Every format by its name."""


def format_of(source: Location, name: str) -> Format:
    """Return the format of an input's files, of a table that of its snapshot's files."""
    return table_format(source) if isinstance(source, TableLocation) else FORMATS[name]


def file_format(path: str) -> str | None:
    """Return the name of a file's format by its ending, None for a file that holds no data."""
    lower = path.lower()
    for name, format_ in FORMATS.items():
        if lower.endswith(format_.suffixes):
            return name
    return None
