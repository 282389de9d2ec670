"""Inputs planned and read in this process: what a corpus job does with Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from pipelines.input.corpus import Corpus
from pipelines.input.cutting import ShardSize
from pipelines.input.inspection import inspect_input, with_staged
from pipelines.input.plan import cut
from pipelines.input.reading import read_shard
from pipelines.input.staging import StagedFile, stage
from pipelines.input.text import TextOptions
from pipelines.storage import Folder, Location, one_line


def plan(
    source: Path | str,
    output: Path | str,
    limit: int | None = None,
    shard_rows: int | None = None,
    earlier: Corpus | None = None,
    wanted: frozenset[str] | None = None,
    **reading: Any,
) -> Corpus:
    """Plan an input; files that need it are staged under `output`."""
    options = TextOptions(limit=limit, **reading)
    inspection = inspect_input(
        Location.of_user(str(source)), options, earlier=earlier, wanted=wanted
    )
    results: dict[str, StagedFile | str] = {}
    for path in inspection.unstaged:
        staged = StagedFile()
        try:
            for task in inspection.stage_tasks(path):
                staged.add(stage(inspection.source, Folder.at(str(output)), task, options))
        except (pa.ArrowException, OSError, EOFError, ValueError) as error:
            results[path] = one_line(error)
        else:
            results[path] = staged
    size = ShardSize(rows=4096, text_bytes=1 << 40, rows_per_file=shard_rows)
    return cut(with_staged(inspection, results), size, limit)


def read_all(
    corpus: Corpus,
    source: Path | str | Location,
    output: Path | str,
    columns: list[str] | None = None,
) -> tuple[pa.Table, list[tuple[int, str, str]]]:
    """Read columns, all by default, of all shards: the rows, and the malformed ones, numbered over all."""
    tables = []
    bad = []
    before = 0
    place = source if isinstance(source, Location) else Location.of_user(str(source))
    folder = Folder.at(str(output))
    names = columns or corpus.schema.names
    for shard in corpus.shards:
        rows = read_shard(place, folder, shard, corpus.schema, names)
        bad_rows = [row for row, _, _ in rows.bad]
        assert sorted([*rows.positions.tolist(), *bad_rows]) == list(range(shard.rows))
        tables.append(rows.table)
        bad += [(before + row, reason, raw) for row, reason, raw in rows.bad]
        before += shard.rows
    return pa.concat_tables(tables), bad


def count_parts(out: Path) -> int:
    """The parts of an output that are committed."""
    return len(list((out / "data").glob("*.parquet")))
