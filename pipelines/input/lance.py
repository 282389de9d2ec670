"""Lance datasets: a fragment is a file here, whose rows pylance reads as a version has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from typing import Any

import pyarrow as pa
from lance import LanceDataset, LanceFragment
from pyarrow import fs

from pipelines.input.shards import Format, Scan
from pipelines.input.snapshots import Snapshot, TableLocation, file_version
from pipelines.storage import Location, store_options

_NAME = "fragment-"


def take_snapshot(source: Location) -> Snapshot:
    """Open the dataset as it is now."""
    uri, options = store_options(source)
    dataset = LanceDataset(uri, storage_options=options)
    location = TableLocation(source.uri, "Lance", str(dataset.version))
    versions: dict[str, str] = {}
    for path, fragment in _fragments(location).items():
        versions[path] = _version(fragment.metadata.to_json())
    return Snapshot(location, dataset.schema, versions)


def table_format(location: TableLocation) -> Format:
    """Return the format of the fragments of a version."""
    return Format(
        "lance",
        (),
        inspect=partial(_inspect, location),
        read=partial(_read, location),
    )


def _version(metadata: dict[str, Any]) -> str:
    """Return the version of a fragment: its files, which fields these have, and its deletions."""
    files = [[file["path"], file["fields"], file["column_indices"]] for file in metadata["files"]]
    overlays = metadata.get("overlays") or None  # older versions of pylance know none
    return file_version(files, metadata["deletion_file"], overlays)


@lru_cache(maxsize=4)
def _fragments(location: TableLocation) -> dict[str, LanceFragment]:
    """Return the fragments of a version by their paths."""
    _, folder = location.filesystem_and_path
    uri, options = store_options(location)
    dataset = LanceDataset(uri, version=int(location.snapshot), storage_options=options)
    fragments: dict[str, LanceFragment] = {}
    for fragment in dataset.get_fragments():
        # Its number has a fixed width, so that names are in the order of the rows.
        fragments[f"{folder}/{_NAME}{fragment.fragment_id:09d}"] = fragment
    return fragments


def _inspect(
    location: TableLocation,
    filesystem: fs.FileSystem,  # noqa: ARG001
    path: str,
    wanted: frozenset[str] | None,  # noqa: ARG001
    texts: frozenset[str],  # noqa: ARG001
) -> tuple[Scan, pa.Schema] | None:
    """Count the rows that are left."""
    fragment = _fragments(location)[path]
    sizes = [file.file_size_bytes or 0 for file in fragment.metadata.files]
    return Scan(fragment.count_rows(), sum(sizes)), fragment.schema


def _read(
    location: TableLocation,
    filesystem: fs.FileSystem,  # noqa: ARG001
    path: str,
    ranges: Sequence[tuple[int, int]],
    columns: list[str],
) -> Iterator[pa.Table]:
    """Yield rows, counted without those that are deleted."""
    fragment = _fragments(location)[path]
    present = [name for name in columns if name in fragment.schema.names]
    for start, rows in ranges:
        if present:
            yield fragment.scanner(columns=present, offset=start, limit=rows).to_table()
        else:
            yield pa.table({"": pa.nulls(rows)})
