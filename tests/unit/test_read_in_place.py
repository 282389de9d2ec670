"""Parquet and Arrow files, read by ranges of rows: each is what pyarrow reads, cut to it."""

from __future__ import annotations

import datetime
import itertools
import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from corpora import plan, read_all
from fsspec.implementations.local import LocalFileSystem
from pyarrow import fs

from pipelines.input import ipc, ipc_messages, parquet
from pipelines.input.cutting import ShardSize
from pipelines.input.formats import FORMATS
from pipelines.input.inspection import inspect_file, inspect_input
from pipelines.input.names import shard_name
from pipelines.input.plan import cut
from pipelines.input.ranges import groups_of_ranges
from pipelines.input.shards import Scan
from pipelines.input.text import TextOptions
from pipelines.storage import Location

SEEDS = range(25)
LOCAL = fs.LocalFileSystem()
REMOTE = fs.PyFileSystem(fs.FSSpecHandler(LocalFileSystem()))
"""A file system that is none of this machine, as far as Arrow knows."""
DAY = datetime.datetime(2024, 5, 6)


def random_table(dice: random.Random, rows: int) -> pa.Table:
    """Columns of many types, some of them null."""

    def column(make, type_: pa.DataType) -> pa.Array:
        values = [None if dice.random() < 0.2 else make(i) for i in range(rows)]
        return pa.array(values, type_)

    def text(_: int) -> str:
        return "".join(dice.choices("abé ", k=dice.choice([0, 3, 40, 400])))

    columns = {
        "id": pa.array(range(rows)),
        "text": column(text, dice.choice([pa.string(), pa.large_string(), pa.string_view()])),
        "few": column(lambda i: f"kind {i % 3}", pa.string()),
        "coded": column(lambda i: f"kind {i % 5}", pa.string()).dictionary_encode(),
        "share": column(lambda i: i / 8, pa.float64()),
        "flag": column(lambda i: i % 2 == 0, pa.bool_()),
        "tags": column(lambda i: ["x"] * (i % 4), pa.list_(pa.string())),
        "doc": column(
            lambda i: {"text": text(i), "pages": [{"n": i}] * (i % 3)},
            pa.struct(
                {"text": pa.string(), "pages": pa.list_(pa.struct({"n": pa.int64()}))},
            ),
        ),
        "doc.text": column(lambda i: f"dotted {i}", pa.string()),
        "map": column(lambda i: [("k", i)] * (i % 3), pa.map_(pa.string(), pa.int64())),
        "when": column(lambda i: DAY + datetime.timedelta(hours=i), pa.timestamp("us")),
    }
    columns |= {f"c{i}": pa.array([i] * rows, pa.int32()) for i in range(dice.choice([0, 20]))}
    names = list(columns)
    dice.shuffle(names)
    return pa.table({name: columns[name] for name in names})


def random_ranges(dice: random.Random, rows: int) -> list[tuple[int, int]]:
    """Ranges of rows, ascending and apart, that may lie side by side and go over the end."""
    bounds = sorted(dice.sample(range(rows + 10), dice.choice([2, 4, 10])))
    ranges = [
        (start, stop - start) for start, stop in itertools.pairwise(bounds) if dice.random() < 0.7
    ]
    return ranges or [(0, rows)]


def random_columns(dice: random.Random, names: list[str]) -> list[str]:
    """Some of a file's columns, in any order, and one that it lacks."""
    chosen = dice.sample(names, dice.choice([1, 2, 5, len(names)]))
    if dice.random() < 0.3:
        chosen.insert(dice.randrange(len(chosen)), "absent")
    return chosen


def write_parquet(dice: random.Random, table: pa.Table, path: Path) -> pa.Table:
    """Write a Parquet file in one of many ways, and return what pyarrow reads of it."""
    pq.write_table(
        table,
        path,
        row_group_size=dice.choice([20, 100, 1000]),
        data_page_size=dice.choice([100, 5000, 1 << 20]),
        max_rows_per_page=dice.choice([3, 100, 20_000]),
        compression=dice.choice(["none", "snappy", "zstd", "gzip", "lz4", "brotli"]),
        use_dictionary=dice.choice([True, False, ["text", "few"]]),
        dictionary_pagesize_limit=dice.choice([50, 1 << 20]),
        data_page_version=dice.choice(["1.0", "2.0"]),
        write_page_index=dice.random() < 0.5,
        use_deprecated_int96_timestamps=dice.random() < 0.4,
    )
    return pq.ParquetFile(path, coerce_int96_timestamp_unit="us").read()


def write_arrow(dice: random.Random, table: pa.Table, path: Path) -> pa.Table:
    """Write an Arrow file or stream in one of many ways, and return its rows."""
    is_file = dice.random() < 0.5
    options = pa.ipc.IpcWriteOptions(
        compression=dice.choice([None, "lz4", "zstd"]),
        emit_dictionary_deltas=is_file or dice.random() < 0.5,
        use_legacy_format=not is_file and dice.random() < 0.3,
    )
    make = pa.ipc.new_file if is_file else pa.ipc.new_stream
    with make(path, table.schema, options=options) as writer:
        for chunk in random_chunks(dice, table, grows=is_file or dice.random() < 0.5):
            writer.write_table(chunk)
    return table


def random_chunks(dice: random.Random, table: pa.Table, *, grows: bool) -> Iterator[pa.Table]:
    """Cut a table into chunks, some empty, whose dictionary grows, or is another each time."""
    coded = table["coded"].cast(pa.string()).combine_chunks()
    kinds = [f"kind {i}" for i in range(5)]
    at = table.column_names.index("coded")
    start = 0
    known = 1
    while start < len(table):
        rows = dice.choice([0, 1, 50, 700])
        values = coded.slice(start, rows)
        if grows:
            known = max([known, *(kinds.index(kind) + 1 for kind in values.to_pylist() if kind)])
        dictionary = pa.array(kinds[:known]) if grows else values.unique().drop_null()
        own = pa.DictionaryArray.from_arrays(pc.index_in(values, dictionary), dictionary)
        yield table.slice(start, rows).set_column(at, table.schema.field("coded"), own)
        start += rows


def plain(table: pa.Table) -> list[dict[str, object]]:
    return table.to_pylist()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("format_", ["parquet", "ipc"])
def test_random_ranges_of_random_files(format_, seed, tmp_path, monkeypatch):
    dice = random.Random(seed)
    rows = dice.choice([1, 63, 600])
    path = tmp_path / "x"
    write = write_parquet if format_ == "parquet" else write_arrow
    table = write(dice, random_table(dice, rows), path)
    # Chunks are read together, each by its own, and piece by piece.
    monkeypatch.setattr(parquet, "_TOGETHER_BYTES", dice.choice([0, 10_000, 32 << 20]))
    monkeypatch.setattr(parquet, "_MIN_PIECE_BYTES", 100)
    ranges = random_ranges(dice, rows)
    columns = random_columns(dice, table.column_names)
    filesystem = dice.choice([LOCAL, REMOTE])
    monkeypatch.setattr(ipc, "_AHEAD_BYTES", dice.choice([1, 1000, 4 << 20]))
    tables = list(FORMATS[format_].read(filesystem, str(path), ranges, columns))
    present = [name for name in columns if name in table.column_names]
    assert len(tables) == len(ranges)
    for (start, count), got in zip(ranges, tables, strict=True):
        want = table.select(present).slice(start, count)
        assert got.schema.equals(want.schema)
        assert plain(got) == plain(want)


@pytest.mark.parametrize("seed", SEEDS[:10])
@pytest.mark.parametrize("format_", ["parquet", "ipc"])
def test_a_scan_has_the_rows_and_columns(format_, seed, tmp_path):
    dice = random.Random(seed)
    rows = dice.choice([0, 1, 600])
    path = tmp_path / "x"
    write = write_parquet if format_ == "parquet" else write_arrow
    table = write(dice, random_table(dice, rows), path)
    inspect = FORMATS[format_].inspect
    scan, _ = inspect(LOCAL, str(path), frozenset(["text", "id"]), frozenset(["text"]))
    every, schema = inspect(LOCAL, str(path), None, frozenset())
    assert (scan.rows, scan.parts) == (rows, ())
    assert schema.equals(table.schema)
    assert scan.text_size < scan.size < every.size or rows <= 1
    assert scan.group_rows <= rows


def test_groups_of_ranges():
    assert groups_of_ranges([], [(0, 3)]) == ([], [(0, 3)])
    assert groups_of_ranges([5, 5, 5], [(5, 5)]) == ([1], [(0, 5)])
    assert groups_of_ranges([5, 0, 5, 5], [(6, 2), (9, 3)]) == ([2, 3], [(1, 2), (4, 3)])
    assert groups_of_ranges([5, 5, 5, 5], [(1, 1), (16, 9)]) == ([0, 3], [(1, 1), (6, 9)])


ROWS = pa.table({"id": range(5000), "text": [f"text {i}" for i in range(5000)]})


def write_as(kind: str, path: Path, table: pa.Table, chunk_rows: int | None = None) -> None:
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=chunk_rows or len(table))
        return
    make = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
    with make(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=chunk_rows)


@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
def test_nothing_is_copied_whatever_the_row_groups(kind, tmp_path):
    path = tmp_path / ("x.parquet" if kind == "parquet" else "x.arrow")
    for chunk_rows in (None, 7, 300):
        write_as(kind, path, ROWS, chunk_rows)
        corpus = plan(path, tmp_path / "out")
        assert [piece.part for shard in corpus.shards for piece in shard.pieces if piece.part] == []
        assert corpus.files[0].scan.group_rows == (chunk_rows or 5000)
        assert read_all(corpus, path, tmp_path / "out")[0].equals(ROWS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
def test_a_few_rows_do_not_keep_the_others_in_memory(kind, tmp_path):
    write_as(kind, tmp_path / "x", ROWS)
    read = FORMATS["parquet" if kind == "parquet" else "ipc"].read
    small, large = read(LOCAL, str(tmp_path / "x"), [(10, 64), (1000, 4000)], ["text"])
    assert small.get_total_buffer_size() < 2 * small.nbytes
    assert large["text"].to_pylist() == ROWS["text"].to_pylist()[1000:]


@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
def test_files_that_are_cut_off_are_named_with_the_reason(kind, tmp_path):
    """A stream alone may end after any of its messages: the rows before are all there."""
    dice = random.Random(0)
    format_ = FORMATS["parquet" if kind == "parquet" else "ipc"]
    path = tmp_path / "x"
    write_as(kind, path, ROWS.slice(0, 300), 100)
    whole = path.read_bytes()
    for size in [*range(10), *dice.sample(range(10, len(whole)), 100)]:
        path.write_bytes(whole[:size])
        found = inspect_file(format_, LOCAL, str(path))
        if isinstance(found, str):
            assert found
            assert "\n" not in found
            continue
        scan, _ = found
        assert kind == "stream"
        [table] = format_.read(LOCAL, str(path), [(0, 300)], ["id"])
        assert table["id"].to_pylist() == list(range(scan.rows))


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_damaged_headers_are_no_surprise(kind, tmp_path):
    dice = random.Random(0)
    path = tmp_path / "x"
    write_as(kind, path, ROWS.slice(0, 30), 10)
    whole = path.read_bytes()
    rows_of = ipc_messages.rows_of_file if kind == "file" else ipc_messages.batches_of_stream
    for _ in range(300):
        damaged = bytearray(whole)
        for at in dice.sample(range(len(whole)), 8):
            damaged[at] = dice.choice([0, 1, 127, 255])
        with suppress(ValueError):
            rows_of(pa.BufferReader(bytes(damaged)))


@pytest.mark.parametrize("kind", ["parquet", "file"])
def test_a_file_that_an_earlier_version_has_copied_keeps_its_shards(kind, tmp_path):
    path = tmp_path / ("x.parquet" if kind == "parquet" else "x.arrow")
    write_as(kind, path, ROWS)
    now = plan(path, tmp_path / "out")
    [file] = now.files
    # The bytes of all columns, as they were copied: 128 rows of them are 32 MiB.
    copied = Scan(5000, (32 << 20) * 5000 // 128, ((f"{file.name}-{file.version}-0000", 5000),))
    earlier = replace(now, files=[replace(file, scan=copied, step=0)])
    inspection = inspect_input(Location.of_user(str(path)), TextOptions(), earlier=earlier)
    later = cut(inspection, ShardSize(rows=4096, text_bytes=1 << 40), former_rows=512)
    assert inspection.unstaged == ()
    assert [shard.name for shard in later.shards] == [
        shard_name(file.name, file.version, start, min(start + 128, 5000))
        for start in range(0, 5000, 128)
    ]
    assert read_all(later, path, tmp_path / "out")[0].equals(ROWS)
