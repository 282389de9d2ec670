"""Which parts of an output are of the plan, and what becomes of the others."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.input.corpus import Corpus
from pipelines.input.names import is_shared, shard_name, split_shard_name, without_rows
from pipelines.output.committing import (
    FileRows,
    commit_shard,
    files_of_part,
    rejected_path,
)
from pipelines.output.parts import Listing, part_path
from pipelines.output.shard_stats import Stats
from pipelines.storage import Folder

_THREADS = 16
_AT_ONCE = 1 << 16
"""The shards whose names are in memory at a time."""


def find_todo(present: Listing, corpus: Corpus) -> tuple[list[int], set[str]]:
    """Return the places in the plan of the shards that an output lacks, and the names of its parts
    that no shard of the plan is in.

    `present`: the parts.
    """
    is_planned = np.zeros(len(present), bool)
    todo: list[int] = []
    for first in range(0, len(corpus.shards), _AT_ONCE):
        shards = corpus.shards[first : first + _AT_ONCE]
        places = present.index.places(shard.name for shard in shards)
        is_planned[places[places >= 0]] = True
        todo += (first + np.flatnonzero(places < 0)).tolist()
    unplanned = set(present.column.filter(pa.array(~is_planned)).to_pylist())
    if not unplanned:
        return todo, unplanned

    # A shard that was split is done where all its rows are there.
    ranges_of_file: defaultdict[str, list[tuple[int, int, str]]] = defaultdict(list)
    for name in unplanned:
        shard_name = split_shard_name(name)
        if shard_name is not None:
            ranges_of_file[without_rows(name)].append((shard_name.start, shard_name.stop, name))
    still_todo: list[int] = []
    for place in todo:
        shard = corpus.shards[place]
        first, stop = shard.start, shard.start + shard.rows
        ranges = ranges_of_file.get(without_rows(shard.name), [])
        inside = [each for each in ranges if first <= each[0] and each[1] <= stop]
        if sum(end - begin for begin, end, _ in inside) == shard.rows and inside:
            unplanned.difference_update(name for _, _, name in inside)
        else:
            still_todo.append(place)
    return still_todo, unplanned


def remove_stale(folder: Folder, parts: str, unplanned: Iterable[str], corpus: Corpus) -> bool:
    """Remove the parts of files whose rows the plan has in others: they have changed since.

    Of a table, those of files that it has removed go, too. Returns whether there were any.

    Args:
        folder: the output.
        parts: the folder of the parts there (RunRecord.parts).
        unplanned: the parts that no shard of the plan is in.
        corpus: the plan.
    """
    files = {file.name for file in corpus.files}
    files |= {file.former for file in corpus.files if file.former}
    stale: list[str] = []
    for name in unplanned:
        if _is_removed_from_table(name, corpus):
            stale.append(name)
            continue
        shared = _read_shared(folder, parts, name) if is_shared(name) else None
        if shared is None:
            is_stale = name.rsplit("-", 3)[0] in files
        else:
            is_stale = any(rows.file in files for rows in shared[1])
            if is_stale:
                _keep_gone(folder, parts, name, shared, files)
        if is_stale:
            stale.append(name)
    # The rejected rows first: without its part, nobody looks for them again.
    remove_all(folder, [rejected_path(name) for name in stale])
    remove_all(folder, [part_path(parts, name) for name in stale])
    return bool(stale)


def _is_removed_from_table(name: str, corpus: Corpus) -> bool:
    """Tell whether a part is of a file, or a version of one, that a table has no more."""
    return corpus.stems is not None and without_rows(name) not in corpus.stems


_Shared = tuple[pa.Table, list[FileRows]]
"""The rows of a part, and what of them is of which file."""


def _read_shared(folder: Folder, parts: str, name: str) -> _Shared | None:
    """Read a part that several files share; None where it is of one file."""
    content = pa.BufferReader(folder.read(part_path(parts, name)))
    part = pq.ParquetFile(content)
    files = files_of_part(part)
    return (part.read(), files) if files else None


def _keep_gone(folder: Folder, parts: str, name: str, shared: _Shared, files: set[str]) -> None:
    """Give the files of a part that have disappeared from the input parts of their own, before the
    others are predicted again.

    `files`: the names of the files that the input has.
    """
    table, files_of_part = shared
    rejected = _read_rejected(folder, name)
    first = 0
    for rows in files_of_part:
        labelled = table.slice(first, rows.labelled)
        first += rows.labelled
        if rows.file in files:
            continue
        own_name = shard_name(rows.file, rows.version, rows.start, rows.start + rows.rows)
        stats: Stats = {"name": own_name, "rows": rows.rows, "labelled": rows.labelled}
        of_file = pa.table({})
        if rejected is not None:
            of_file = rejected.filter(pc.equal(rejected["_file"], rows.path))
            place = of_file.column_names.index("_shard")
            names = pa.array([own_name] * len(of_file), pa.string())
            of_file = of_file.set_column(place, "_shard", names)
        commit_shard(folder, parts, stats, labelled, of_file)


def _read_rejected(folder: Folder, name: str) -> pa.Table | None:
    try:
        return pq.read_table(pa.BufferReader(folder.read(rejected_path(name))))
    except FileNotFoundError:
        return None


def remove_all(folder: Folder, names: Iterable[str]) -> None:
    """Remove files of an output."""
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(folder.remove, names))
