"""An input to shards."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from pipelines.errors import UserError
from pipelines.input.columns import corpus_columns
from pipelines.input.corpus import CUT, Corpus, Shards
from pipelines.input.cutting import (
    ShardSize,
    cuts_of_file,
    former_step,
    name_of_group,
    share_of_each,
    share_shards,
)
from pipelines.input.inspection import Inspection, unreadable
from pipelines.input.names import shard_name
from pipelines.input.shards import DataFile, Partition, Piece


def cut(
    inspection: Inspection,
    size: ShardSize,
    limit: int | None = None,
    *,
    former_rows: int | None = None,
    present: Collection[str] = (),
) -> Corpus:
    """Cut the input into shards; all files must be staged that need it.

    Files that an earlier run has cut stay as they are.

    Args:
        inspection: the files and what is known of them.
        size: the most that a shard of a new file holds.
        limit: the number of rows to take, None for all.
        former_rows: the most rows in a shard, as the record of an output of a former version has
            them.
        present: the names of the shards that the output holds.

    Raises:
        UserError: for an input without rows, and for one where no file can be read.
    """
    columns = corpus_columns(inspection)
    broken = {**inspection.broken, **columns.misfits}
    paths = [path for path in inspection.versions if path not in broken]
    if not paths:
        raise unreadable(inspection.source, broken)
    total_rows = sum(inspection.scans[path].rows for path in paths)
    if not total_rows and broken:
        raise unreadable(inspection.source, broken)
    if not total_rows:
        raise UserError(f"input '{inspection.source}' has no rows")

    may_share = limit is None
    files, gone = _files(inspection, paths, size, former_rows, present, may_share=may_share)
    shards = _shards(inspection.format, files, gone, columns.partitions.of, limit)
    return Corpus(
        files=files,
        format=inspection.format,
        schema=columns.schema,
        shards=shards,
        gone=gone,
        broken=broken,
        notes=list(inspection.notes),
        stems=_stems_of_table(inspection),
    )


def _stems_of_table(inspection: Inspection) -> frozenset[str] | None:
    """Return the beginnings of the names of all parts that a table's snapshot may have."""
    if inspection.files.snapshot is None:
        return None
    names = inspection.names
    return frozenset(f"{names[path]}-{version}" for path, version in inspection.versions.items())


def _files(
    inspection: Inspection,
    paths: Sequence[str],
    size: ShardSize,
    former_rows: int | None,
    present: Collection[str],
    *,
    may_share: bool,
) -> tuple[list[DataFile], list[DataFile]]:
    """Return the files, each with the rows of its shards or the shard that it shares with others,
    and the files of such shards that have disappeared.
    """
    known = _unchanged(inspection)
    groups = _groups_of_earlier_run(inspection, known, present)
    files: list[DataFile] = []
    new: list[DataFile] = []
    for path in paths:
        file = DataFile(
            path,
            inspection.versions[path],
            inspection.scans[path],
            inspection.names[path],
            inspection.former_name(path),
        )
        earlier = known.get(path)
        if earlier is None and inspection.earlier is None and former_rows is not None:
            file = replace(file, step=former_step(file.scan, former_rows))
        elif earlier is None:
            new.append(file)
        elif earlier.group in groups.kept:
            file = replace(file, step=earlier.step, group=earlier.group)
        elif earlier.group in groups.apart:
            file = replace(file, step=max(earlier.step, file.scan.rows))
        elif earlier.group:  # of a shard that is no more
            new.append(file)
        elif earlier.step:
            file = replace(file, step=earlier.step)
        elif former_rows is not None:
            file = replace(file, step=former_step(file.scan, former_rows))
        else:
            new.append(file)
        files.append(file)

    share = share_of_each(size, [file.scan for file in new])
    cut_files: dict[str, DataFile] = {}
    for file in new:
        scan = file.scan
        if size.rows_per_file:
            # Each part has these rows, wherever row groups end.
            scan = replace(scan, group_rows=0)
        cut_files[file.path] = replace(file, scan=scan, step=size.step(scan, share))
    if may_share:
        for group in share_shards(size, list(cut_files.values()), share):
            name = name_of_group(group)
            for file in group:
                cut_files[file.path] = replace(file, group=name)
    return [cut_files.get(file.path, file) for file in files], groups.gone


def _unchanged(inspection: Inspection) -> dict[str, DataFile]:
    """Return the files, as an earlier run has cut them, that have not changed since."""
    if inspection.earlier is None or inspection.earlier.format != inspection.format:
        return {}
    return {
        file.path: file
        for file in inspection.earlier.files
        if inspection.versions.get(file.path) == file.version and file.path in inspection.scans
    }


@dataclass
class _Groups:
    """What becomes of the shards that files shared in an earlier run, by their names."""

    kept: set[str] = field(default_factory=set)
    apart: set[str] = field(default_factory=set)
    """Those that could not be read, where each file that can has a part of its own now."""
    gone: list[DataFile] = field(default_factory=list)
    """The files of kept ones that have disappeared."""


def _groups_of_earlier_run(
    inspection: Inspection, known: Mapping[str, DataFile], present: Collection[str]
) -> _Groups:
    """Decide what becomes of the shards that files shared: one is kept where no file has changed.

    Where a file has disappeared, its rows are in the output or nowhere: such a shard is kept if the
    output holds it. The rows of a file that a table has removed are to go.
    """
    groups = _Groups()
    if inspection.earlier is None:
        return groups
    rows_of_gone_files_stay = inspection.files.snapshot is None
    members: defaultdict[str, list[DataFile]] = defaultdict(list)
    for file in (*inspection.earlier.files, *inspection.earlier.gone):
        if file.group:
            members[file.group].append(file)
    for name, files in members.items():
        own_names = [shard_name(file.name, file.version, 0, file.scan.rows) for file in files]
        missing = [file for file in files if file.path not in known]
        has_changed = any(file.path in inspection.versions for file in missing)
        if any(own_name in present for own_name in own_names):
            groups.apart.add(name)
        elif has_changed or (missing and not rows_of_gone_files_stay):
            continue
        elif not missing or name in present:
            groups.kept.add(name)
            groups.gone += missing
    return groups


def _shards(
    format_: str,
    files: Sequence[DataFile],
    gone: Sequence[DataFile],
    partitions: Mapping[str, Partition],
    limit: int | None,
) -> Shards:
    """Cut files into shards."""
    members: defaultdict[str, list[DataFile]] = defaultdict(list)
    for file in sorted((*files, *gone), key=lambda file: file.name):
        if file.group:
            members[file.group].append(file)
    rows_left = sum(file.scan.rows for file in files) if limit is None else limit
    groups: list[tuple[str, tuple[Piece, ...]]] = []
    cuts: list[np.ndarray] = []
    cut_groups: set[str] = set()
    for number, file in enumerate(files):
        if not file.group:
            cuts.append(cuts_of_file(number, file.scan, file.step, rows_left))
            rows_left -= int(cuts[-1]["rows"].sum())
        elif file.group not in cut_groups:
            cut_groups.add(file.group)
            pieces = tuple(_whole(member, partitions) for member in members[file.group])
            groups.append((file.group, pieces))
            rows = sum(piece.rows for piece in pieces)
            cuts.append(np.array([(-len(groups), 0, rows, -1, 0, -1)], CUT))
    files_with_partitions = [(file, partitions.get(file.path, ())) for file in files]
    return Shards(format_, files_with_partitions, groups, np.concatenate(cuts))


def _whole(file: DataFile, partitions: Mapping[str, Partition]) -> Piece:
    """Return all rows of a file."""
    part = file.scan.parts[0][0] if file.scan.parts else ""
    return Piece(
        path=file.path,
        file=file.name,
        version=file.version,
        start=0,
        rows=file.scan.rows,
        partition=partitions.get(file.path, ()),
        part=part,
    )
